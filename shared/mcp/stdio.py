"""MCP servers as processes of this machine, which the operator of a worker allows by name (`MINION_MCP_STDIO`).

A definition names the entry of that list, and nothing else: it chooses neither a program nor an argument. A server runs
in an environment that has only the variables which the list names. It is started with the first call, stays for further
ones, and ends with this process, however that ends: see `stdio_supervisor`.

Messages are lines of JSON. Calls of one server run one after the other. A call that gets no answer in time ends the
process, because a late answer could be taken for that of another call; the next call starts it again.
"""

from __future__ import annotations

import atexit
import json
import os
import re
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path

from shared.contracts.strict_json import parse
from shared.errors import InvalidInput, NotConfigured, TooLarge
from shared.mcp.eras import Era
from shared.mcp.faults import McpFault
from shared.mcp.http import BOUNDS
from shared.mcp.protocol import DISCOVER
from shared.mcp.stdio_supervisor import MOST_KEPT
from shared.mcp.transport import Message
from shared.secret_store import scrub
from shared.settings import Settings, StdioProgram

SUPERVISOR = Path(__file__).with_name("stdio_supervisor.py")
READ_BYTES = 64 << 10
KILL_SECONDS = 5.0
SECRET = re.compile(r"KEY|TOKEN|SECRET|PASS|CREDENTIAL|AUTH|(_|^)(PAT|DSN)(_|$)", re.IGNORECASE)
"""Names of environment variables whose values are secrets."""
SHORTEST_SECRET = 6
"""Shorter values, such as flags, would be found everywhere."""
MOST_WRITTEN = 1_000
"""Characters of a program's standard error that its operator is shown."""
COLOUR = re.compile(r"\x1b\[[0-9;]*m")


class StdioProcess:
    """One running server.

    Attributes:
        era: what is known about it; another process of the same program is asked again.
        secrets: values of environment variables that its messages must not repeat.
        lock: held during an exchange.
        notified: notifications since the last response. Some programs answer them with an error without an id.
    """

    def __init__(self, program: StdioProgram, era: Era) -> None:
        if not Path(program.command[0]).is_file():
            raise McpFault(f"its program {program.command[0]} (MINION_MCP_STDIO) is not on this machine", taken=False)
        self.era = era
        self.lock = threading.RLock()
        self.notified = 0
        self._begun = b""
        # Sockets, because reads and writes of them have time-outs, and let other greenlets run.
        self._socket, theirs = socket.socketpair()
        alive, self._alive = os.pipe()
        self._errors, errors = os.pipe()
        environment = {variable: os.environ[variable] for variable in program.env if variable in os.environ}
        self.secrets = [value for variable, value in environment.items() if _is_secret(variable, value)]
        command = [sys.executable, "-I", "-S", str(SUPERVISOR), str(alive), *program.command]
        try:
            self._process = subprocess.Popen(
                command,
                stdin=theirs.fileno(),
                stdout=theirs.fileno(),
                stderr=errors,
                env=environment,
                cwd=program.cwd,
                pass_fds=(alive,),
                start_new_session=True,
            )
        except OSError as error:
            os.close(self._alive)
            os.close(self._errors)
            self._socket.close()
            raise McpFault(f"its process cannot be started: {error}", taken=False) from None
        finally:
            theirs.close()
            os.close(alive)
            os.close(errors)

    @property
    def is_running(self) -> bool:
        """Whether it can be used."""
        return self._process.poll() is None and self._socket.fileno() >= 0

    def write(self, line: bytes, ends: float) -> None:
        """Send a line."""
        try:
            self._socket.settimeout(max(ends - time.monotonic(), 0.001))
            self._socket.sendall(line)
        except OSError as error:
            why = f"its process takes no message: {error}"
            raise McpFault(why, taken=False, temporary=True, written=self.kill()) from None

    def read(self, ends: float, max_bytes: int) -> bytes:
        """Return the next line."""
        while b"\n" not in self._begun:
            if len(self._begun) > max_bytes:
                self.kill()
                raise McpFault(f"its answer has more than {max_bytes} bytes (max_bytes)", taken=True)
            try:
                self._socket.settimeout(max(ends - time.monotonic(), 0.001))
                part = self._socket.recv(READ_BYTES)
            except TimeoutError:
                why = "it did not answer in time (timeout)"
                raise McpFault(why, taken=None, temporary=True, written=self.kill()) from None
            except OSError:
                part = b""
            if not part:
                raise McpFault("its process has ended", taken=None, temporary=True, written=self.kill())
            self._begun += part
        line, _, self._begun = self._begun.partition(b"\n")
        if len(line) > max_bytes:
            self.kill()
            raise McpFault(f"its answer has more than {max_bytes} bytes (max_bytes)", taken=True)
        return line

    def kill(self) -> str:
        """End the server and all processes of its group. May be repeated.

        Returns:
            the end of what it wrote to standard error.
        """
        self._socket.close()
        if self._alive < 0:
            return ""
        # The supervisor notices.
        alive, self._alive = self._alive, -1
        os.close(alive)
        with suppress(subprocess.TimeoutExpired):
            self._process.wait(KILL_SECONDS)
        return self._written()

    def _written(self) -> str:
        os.set_blocking(self._errors, False)
        try:
            said = os.read(self._errors, READ_BYTES)
        except BlockingIOError:
            said = b""
        os.close(self._errors)
        if len(said) == MOST_KEPT:
            # The first line may begin within a secret.
            said = said.partition(b"\n")[2]
        text = COLOUR.sub("", scrub(said.decode("utf-8", "replace"), self.secrets))
        return "".join(each if each.isprintable() or each == "\n" else " " for each in text).strip()[-MOST_WRITTEN:]


def _is_secret(variable: str, value: str) -> bool:
    return len(value) >= SHORTEST_SECRET and SECRET.search(variable) is not None


class StdioProcesses:
    """The servers of this process, by the entry of the operator's list and the namespace that uses it."""

    def __init__(self) -> None:
        self._running: dict[tuple[str, str], StdioProcess] = {}
        self._lock = threading.Lock()

    def get(self, name: str, namespace: str, settings: Settings) -> StdioProcess:
        """Return a running server. Namespaces share none.

        Raises:
            NotConfigured: the operator of this process does not allow it.
            McpFault: it cannot be started.
        """
        program = settings.mcp_stdio.get(name)
        if program is None:
            raise NotConfigured(
                f"This process may not start the MCP server {name!r}: its operator must list it in MINION_MCP_STDIO."
            )
        with self._lock:
            known = self._running.get((name, namespace))
            if known is None or not known.is_running:
                era = Era() if known is None else known.era
                if known is not None:
                    known.kill()
                    era.known = None
                known = self._running[name, namespace] = StdioProcess(program, era)
            return known

    def close(self) -> None:
        """End all servers."""
        with self._lock:
            for process in self._running.values():
                process.kill()
            self._running.clear()


PROCESSES = StdioProcesses()
atexit.register(PROCESSES.close)


class StdioTransport:
    """The way to a server that is a process.

    Args:
        start: returns the running process, which it starts if there is none.
        seconds: limit for all requests together.
        max_bytes: limit of a message.
    """

    def __init__(self, start: Callable[[], StdioProcess], *, seconds: float, max_bytes: int) -> None:
        self.start = start
        self.process = start()
        self.seconds = seconds
        self.ends = time.monotonic() + seconds
        self.max_bytes = max_bytes

    @contextmanager
    def send(self, message: Message, headers: Mapping[str, str]) -> Iterator[StdioExchange]:
        """Send a message. Headers are those of HTTP."""
        if not self.process.lock.acquire(timeout=max(self.ends - time.monotonic(), 0.001)):
            raise McpFault(f"other calls kept it busy for {self.seconds:g} s (timeout)", taken=False, temporary=True)
        process = self.process
        try:
            ends = self._ends_of(message)
            process.write(json.dumps(message).encode() + b"\n", ends)
            process.notified += "id" not in message
            id = message.get("id") if "method" in message else None
            exchange = StdioExchange(process, ends, self.max_bytes, id)
            try:
                yield exchange
            finally:
                if exchange.awaits:
                    process.kill()
        finally:
            process.lock.release()

    def _ends_of(self, message: Message) -> float:
        """Return the time at which the answer must be there. Some programs give none until they are initialized."""
        now = time.monotonic()
        return self.ends if message.get("method") != DISCOVER else now + (self.ends - now) / 2

    def restart(self) -> bool:
        """Start the program again if its process has ended."""
        if self.process.is_running:
            return False
        self.process = self.start()
        return True

    def allow(self, seconds: float) -> None:
        """Do nothing: a process that gives no answer in time is ended."""

    def end_session(self, headers: Mapping[str, str]) -> None:
        """Do nothing: the session is the process."""

    def close(self) -> None:
        """Do nothing: the process stays for further calls."""


class StdioExchange:
    """A line and what comes back for it.

    Args:
        id: of the request; None: it is none.

    Attributes:
        awaits: the response has not come yet.
    """

    session: str | None = None

    def __init__(self, process: StdioProcess, ends: float, max_bytes: int, id: int | None) -> None:
        self.process = process
        self.ends = ends
        self.max_bytes = max_bytes
        self.id = id
        self.awaits = id is not None

    def messages(self) -> Iterator[Message]:
        """Yield requests of the server, and the response.

        Notifications and what is no message are skipped. Only the time limits them: nothing reads between calls what a
        program writes.
        """
        while self.awaits:
            message = self._read()
            if message is not None and self._is_ours(message):
                self.awaits = "method" in message
                yield message
            elif time.monotonic() > self.ends:
                why = "it writes one line after the other, but no response (timeout)"
                raise McpFault(why, taken=None, temporary=True)

    def _read(self) -> Message | None:
        """Return the message in the next line; None if it is something else."""
        line = self.process.read(self.ends, self.max_bytes).decode("utf-8", "replace")
        if not line.lstrip().startswith("{"):
            return None
        line = scrub(line, self.process.secrets)
        try:
            message: Message = parse(line, what="Its answer", bounds=BOUNDS)
        except (InvalidInput, TooLarge) as error:
            raise McpFault(error.message, taken=True) from None
        return message if message.get("jsonrpc") == "2.0" else None

    def _is_ours(self, message: Message) -> bool:
        """Return whether a message matters. Some programs answer twice, or answer notifications."""
        id = message.get("id")
        if "method" in message:
            return id is not None
        if id is None and self.process.notified == 0:
            return True
        if id is None:
            self.process.notified -= 1
        elif id == self.id:
            self.process.notified = 0
        return id == self.id
