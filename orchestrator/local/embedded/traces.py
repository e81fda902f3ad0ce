"""Recognising a server that an earlier owner left running, without trusting a pid."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from orchestrator.local.embedded.locks import try_lock
from shared.errors import Conflict

_PATIENCE_SECONDS = 10.0  # for an orderly end
_DEADLINE_SECONDS = 30.0
_POLL_SECONDS = 0.01


@dataclass(frozen=True)
class Traces:
    """Traces by which a later owner recognises a running server of its data folder, and its main process.

    Attributes:
        lock: locked by every process of the server, so it is free exactly when none is left.
        pid_file: its first line is the pid of the server's main process.
        marker: a part of that process's command line and of no other's.
        stop_signal: ends the server in good order.
    """

    lock: Path
    pid_file: Path
    marker: str
    stop_signal: signal.Signals

    def take_over(self) -> int:
        """End processes that an earlier owner left running; return the locked descriptor for the server to start.

        A pid is signalled only while the lock shows that a server lives, and only if its command line is that
        server's: the process number may have been reused.

        Raises:
            Conflict: a process of the server is still alive and cannot be identified or ended.
        """
        start = time.monotonic()
        asked = False
        while (descriptor := try_lock(self.lock)) is None:
            waited = time.monotonic() - start
            if waited > _DEADLINE_SECONDS:
                raise self._still_running()
            if waited > _PATIENCE_SECONDS:
                self._kill()
            asked = asked or self._signal_main_process(self.stop_signal)
            time.sleep(_POLL_SECONDS)
        return descriptor

    def _signal_main_process(self, number: signal.Signals) -> bool:
        """Signal the process of the pid file if it is the server. Return False if there is no such process."""
        pid = self.main_pid()
        if pid is None or self.marker not in command_line(pid):
            return False
        with suppress(ProcessLookupError):
            os.kill(pid, number)
        return True

    def _kill(self) -> None:
        """SIGKILL the main process and the children that it left behind: a busy child may take long to notice."""
        self._signal_main_process(signal.SIGKILL)
        for pid in holders(self.lock):
            with suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)

    def main_pid(self) -> int | None:
        """Return the pid in the pid file, which may be stale."""
        try:
            pid = int(self.pid_file.read_text().splitlines()[0])
        except (OSError, ValueError, IndexError):
            return None
        return pid if pid > 1 else None

    def _still_running(self) -> Conflict:
        return Conflict(
            f"A server from an earlier run still runs in {self.lock.parent} (its pid file: {self.pid_file}): find its "
            f"processes with `fuser {self.lock}` and end them.",
            pid=self.main_pid(),
        )


def command_line(pid: int) -> str:
    """Return a process's arguments, separated by spaces; empty if there is no such process."""
    if sys.platform == "linux":
        try:
            return Path(f"/proc/{pid}/cmdline").read_bytes().replace(b"\0", b" ").decode(errors="replace")
        except OSError:
            return ""
    listing = ["ps", "-ww", "-o", "command=", "-p", str(pid)]
    return subprocess.run(listing, capture_output=True, text=True, check=False).stdout


def holders(path: Path) -> list[int]:
    """Return the other processes that hold a file open. Linux only, and limited to processes that we may inspect."""
    found = set()
    for link in Path("/proc").glob("[0-9]*/fd/*"):
        with suppress(OSError):
            if os.readlink(link) == str(path):
                found.add(int(link.parts[2]))
    return sorted(found - {os.getpid()})
