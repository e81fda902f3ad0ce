"""Runs the commands of a page of the documentation as its reader would: in a shell, one block after the other.

A page is a list of blocks. `bash` blocks run in one shell. Blocks with a title are files, which are written first. A
`text` block after a `bash` block lists texts that its output must contain, one a line; "…" is for lines that the page
leaves out. A comment before a block says:

`<!-- not run: REASON -->`     the block needs what a test does not have
`<!-- terminal: NAME -->`      the block runs in the background until the end; its output must have the expected text
`<!-- repeat -->`              the block is repeated until its output has the expected text
`<!-- fails -->`               the block may end with another exit code than 0
"""

from __future__ import annotations

import os
import re
import select
import signal
import subprocess
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

BLOCK = re.compile(
    r"(?:^<!-- (?P<direction>[^>\n]+) -->\n)?"
    r'^```(?P<language>\w+)(?: title="(?P<title>[^"]+)")?\n(?P<body>.*?)^```$',
    re.DOTALL | re.MULTILINE,
)
END = "--- end of block"
CUT = "…"
SECONDS = 120


@dataclass(frozen=True, slots=True)
class Block:
    """A block of a page.

    Attributes:
        direction: the comment before it.
        title: the name of the file that it is.
        expected: texts that the output must contain.
    """

    language: str
    body: str
    direction: str
    title: str
    expected: tuple[str, ...]


def blocks_of(page: Path) -> list[Block]:
    """Return the blocks that run or are files, in order."""
    found = list(BLOCK.finditer(page.read_text(encoding="utf-8")))
    blocks = []
    for index, each in enumerate(found):
        after = found[index + 1] if index + 1 < len(found) else None
        lines = after["body"].splitlines() if after and after["language"] == "text" else ()
        expected = [line for line in lines if line != CUT]
        if each["language"] == "bash" or each["title"]:
            blocks.append(
                Block(each["language"], each["body"], each["direction"] or "", each["title"] or "", tuple(expected))
            )
    return blocks


class Terminal:
    """A shell that runs block after block in a folder, with the variables that earlier blocks set."""

    def __init__(self, folder: Path, environment: Mapping[str, str]) -> None:
        self.folder = folder
        self._shell = subprocess.Popen(
            ["bash", "--norc", "-e"],
            cwd=folder,
            env={**environment},
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )

    def run(self, body: str) -> str:
        """Run a block to its end, and return its output.

        Raises:
            AssertionError: a command failed.
        """
        self.send(f"{{\n{body}\n}} </dev/null\necho '{END}'\n")
        return self.read_until(END)

    def send(self, text: str) -> None:
        """Write to the shell."""
        assert self._shell.stdin is not None
        self._shell.stdin.write(text.encode())
        self._shell.stdin.flush()

    def read_until(self, text: str) -> str:
        """Return the output up to a text."""
        assert self._shell.stdout is not None
        output, deadline = "", time.monotonic() + SECONDS
        while text not in output:
            ready, _, _ = select.select([self._shell.stdout], [], [], max(0.0, deadline - time.monotonic()))
            assert ready, f"not within {SECONDS} s: {text}\n{output}"
            read = os.read(self._shell.stdout.fileno(), 65536)
            assert read, f"the shell ended:\n{output}"
            output += read.decode(errors="replace")
        return output.partition(text)[0]

    def close(self) -> None:
        """Interrupt what runs as Ctrl-C does, and end the shell."""
        os.killpg(self._shell.pid, signal.SIGINT)
        assert self._shell.stdin is not None
        assert self._shell.stdout is not None
        self._shell.stdin.close()
        self._shell.stdout.read()
        self._shell.stdout.close()
        self._shell.wait(timeout=60)


@contextmanager
def read(page: Path, folder: Path, environment: Mapping[str, str], ports: Mapping[str, str]) -> Iterator[Terminal]:
    """Do what a page says, in a folder. What runs in the background ends with the context.

    Args:
        ports: replacements for the ports that the page names.
    """
    background: list[Terminal] = []
    terminal = Terminal(folder, environment)
    try:
        for block in blocks_of(page):
            if block.direction.startswith("terminal"):
                background.append(Terminal(folder, environment))
                background[-1].send(_with(ports, block.body))
                background[-1].read_until(block.expected[0].split("127.0.0.1")[0])
            else:
                _do(terminal, block, ports)
        yield terminal
    finally:
        for each in reversed([*background, terminal]):
            each.close()


def replay(page: Path, terminal: Terminal) -> None:
    """Do what a page says, in a terminal of an earlier page and its folder."""
    for block in blocks_of(page):
        _do(terminal, block, {})


def _do(terminal: Terminal, block: Block, ports: Mapping[str, str]) -> None:
    if block.direction.startswith("not run"):
        return
    if block.title:
        (terminal.folder / block.title).write_text(block.body, encoding="utf-8")
    else:
        _run(terminal, block, _with(ports, block.body))


def _with(ports: Mapping[str, str], body: str) -> str:
    for documented, free in ports.items():
        body = body.replace(documented, free)
    return body


def _run(terminal: Terminal, block: Block, body: str) -> None:
    deadline = time.monotonic() + SECONDS
    while True:
        output = terminal.run(f"( {body} ) || true" if block.direction == "fails" else body)
        missing = [text for text in block.expected if text not in output]
        if not missing:
            return
        assert block.direction == "repeat", f"{body}\n{output}\nlacks {missing}"
        assert time.monotonic() < deadline, f"{body}\n{output}\nlacks {missing}"
