"""Base class of a server program: start, wait until ready, stop."""

from __future__ import annotations

import os
import signal
import subprocess
import time
from abc import ABC, abstractmethod
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import IO, ClassVar

from orchestrator.local.embedded.launcher import launch
from orchestrator.local.embedded.system_user import SystemUser
from orchestrator.local.embedded.traces import Traces
from shared.errors import Unavailable

START_SECONDS = 30.0
# After a kill, a server first reads its log or its file: with large ones, a laptop's disk may take minutes.
RECOVERY_SECONDS = 600.0
_POLL_SECONDS = 0.02
_LOG_BYTES = 10 << 20
_LOG_TAIL_BYTES = 2000


class Server(ABC):
    """One server program in its data folder: start it, wait for it, stop it."""

    name: ClassVar[str]
    death_signal: ClassVar[signal.Signals]
    stop_signals: ClassVar[Sequence[tuple[signal.Signals, float]]]  # with the seconds to wait after each

    def __init__(self, traces: Traces, log: Path, user: SystemUser | None) -> None:
        self.traces = traces
        self.log = log
        self.user = user
        self._process: subprocess.Popen[bytes] | None = None

    @property
    def pid(self) -> int | None:
        """The main process's pid; None when it does not run."""
        return self._process.pid if self._process and self.running else None

    @property
    def running(self) -> bool:
        """True while the main process lives."""
        return self._process is not None and self._process.poll() is None

    def start(self) -> None:
        """Start the server and wait until it answers. Do nothing if it already runs.

        Raises:
            Unavailable: it ended at once, or did not answer in `START_SECONDS` (`RECOVERY_SECONDS` if it reports
                that it is still reading its files); the end of its log is included.
            Conflict: a server from an earlier run cannot be ended.
        """
        if self.running:
            return
        lock = self.traces.take_over()
        try:
            self.prepare(lock)
            self._process = self.launch(self.command(), lock)
        finally:
            os.close(lock)  # from now on only the server's processes hold it
        try:
            self._wait_until_ready()
        except BaseException:
            self.stop()
            raise

    def stop(self) -> None:
        """Shut down in good order and wait for the last process. Do nothing if the server does not run."""
        if self._process is None:
            return
        for number, patience in self.stop_signals:
            if not self.running:
                break
            self._process.send_signal(number)
            with suppress(subprocess.TimeoutExpired):
                self._process.wait(patience)
        with suppress(FileNotFoundError):  # the data folder was removed
            os.close(self.traces.take_over())
        self._process = None

    def kill(self) -> None:
        """SIGKILL the main process, as a fault would."""
        if self._process is not None:
            self._process.kill()
            self._process.wait()

    @abstractmethod
    def prepare(self, lock: int) -> None:
        """Prepare the data folder while no server runs in it."""

    @abstractmethod
    def command(self) -> list[str]:
        """The server's command line."""

    @abstractmethod
    def probe(self) -> str | None:
        """Return None if the server is ready for clients, else its answer."""

    @abstractmethod
    def recovers(self, reason: str) -> bool:
        """Return whether this answer of `probe` means that the server is still reading its files."""

    def launch(self, command: list[str], lock: int) -> subprocess.Popen[bytes]:
        """Start a program as the servers' user, bound to our lifetime, writing to the log."""
        with open_log(self.log) as log:
            return launch(command, self.user, self.death_signal, log, lock)

    def _wait_until_ready(self) -> None:
        began = time.monotonic()
        while (reason := self.probe()) is not None:
            if not self.running:
                raise self.failed("ended right after its start")
            patience = RECOVERY_SECONDS if self.recovers(reason) else START_SECONDS
            if time.monotonic() - began > patience:
                raise self.failed(f"did not answer within {patience:.0f} s ({reason})")
            time.sleep(_POLL_SECONDS)

    def failed(self, what: str) -> Unavailable:
        """Return an error with the cause and the end of the log."""
        return Unavailable(f"{self.name} {what}. The end of {self.log}:\n{log_tail(self.log)}")


def open_log(path: Path) -> IO[bytes]:
    """Open a log for appending; one that grew too large is rotated first."""
    if path.exists() and path.stat().st_size > _LOG_BYTES:
        path.replace(path.with_name(path.name + ".1"))
    return os.fdopen(os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o600), "ab")


def log_tail(path: Path) -> str:
    """Return the last lines of a log."""
    with suppress(OSError):
        return path.read_bytes()[-_LOG_TAIL_BYTES:].decode(errors="replace").strip()
    return ""
