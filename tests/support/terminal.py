"""A command at a pseudo-terminal: what a person sees, and types."""

from __future__ import annotations

import fcntl
import os
import pty
import re
import select
import signal
import struct
import subprocess
import sys
import termios
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

OURS = re.compile(r"\x1b(?:\[[0-9;?]*[A-Za-z]|[=>])")
"""Colours, positions and modes, which the command itself sends."""


class Terminal:
    """A process of the `minion` command, and the terminal that it runs at."""

    def __init__(self, words: tuple[str, ...], env: Mapping[str, str], columns: int, rows: int) -> None:
        self.end, child = pty.openpty()
        self.resize(columns, rows)
        self.received = ""
        command = [sys.executable, "-m", "orchestrator.cli", *words]
        self.process = subprocess.Popen(
            command, stdin=child, stdout=child, stderr=child, env={**os.environ, **env}, start_new_session=True,
            preexec_fn=lambda: fcntl.ioctl(0, termios.TIOCSCTTY, 0),
        )  # fmt: skip
        os.close(child)

    def resize(self, columns: int, rows: int) -> None:
        """Give the window another size; the process is notified."""
        fcntl.ioctl(self.end, termios.TIOCSWINSZ, struct.pack("HHHH", rows, columns, 0, 0))

    def type(self, text: str) -> None:
        """Type a text."""
        os.write(self.end, text.encode())

    def interrupt(self) -> None:
        """Press Ctrl-C when the command sleeps: `input` does not notice one between its prompt and its wait."""
        before, deadline = None, time.monotonic() + 30
        while (now := self._sleeping()) is None or now != before:
            assert time.monotonic() < deadline, "The command does not sleep."
            before = now
            time.sleep(0.05)
        self.type("\x03")

    def _sleeping(self) -> str | None:
        """Return how often the main thread has fallen asleep; None while it runs."""
        lines = Path(f"/proc/{self.process.pid}/status").read_text()
        status = dict(re.findall(r"^(\w+):\s+(\w+)", lines, re.MULTILINE))
        return status["voluntary_ctxt_switches"] if status["State"] == "S" else None

    def see(self, text: str, timeout: float = 30.0) -> str:
        """Wait until the text appears, and return all up to it; what follows is read by the next call."""
        deadline = time.monotonic() + timeout
        while text not in (shown := OURS.sub("", self.received)):
            assert self._receive(deadline), f"{text!r} did not appear in:\n{shown}"
        before, _, rest = shown.partition(text)
        self.received = rest
        return before + text

    def ended(self, timeout: float = 30.0) -> int:
        """Return the exit code, when the process has ended."""
        deadline = time.monotonic() + timeout
        while self._receive(deadline):
            pass
        return self.process.wait(timeout)

    def _receive(self, deadline: float) -> bool:
        ready, _, _ = select.select([self.end], [], [], max(0.0, deadline - time.monotonic()))
        try:
            more = os.read(self.end, 65_536) if ready else b""
        except OSError:  # on Linux, the other side is closed
            more = b""
        self.received += more.decode(errors="replace")
        return bool(more)


@contextmanager
def at_terminal(*words: str, env: Mapping[str, str], columns: int = 80, rows: int = 24) -> Iterator[Terminal]:
    """Run a command at a terminal; it is killed at the end."""
    terminal = Terminal(words, {"TERM": "xterm", "NO_COLOR": "1", **env}, columns, rows)
    try:
        yield terminal
    finally:
        if terminal.process.poll() is None:
            os.killpg(terminal.process.pid, signal.SIGKILL)
        terminal.process.wait(30)
        os.close(terminal.end)
