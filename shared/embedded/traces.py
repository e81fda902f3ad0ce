"""How a later owner recognises a server that still runs, without trusting a pid."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from shared.embedded.locks import try_lock
from shared.errors import Conflict

_PATIENCE_SECONDS = 10.0  # for an orderly end
_DEADLINE_SECONDS = 30.0
_POLL_SECONDS = 0.01


@dataclass(frozen=True)
class Traces:
    """How a later owner tells whether a server of its data folder still runs, and which process it is.

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
        """End what an earlier owner left running; the locked descriptor for the server to start.

        A pid is signalled only while the lock shows that a server lives, and only if its command line is that
        server's: a stale pid may belong to anybody by now.

        Raises:
            Conflict: a process of the server lives on, and is not to be recognised or not to be ended.
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
        """Signal the process of the pid file if it is the server. False: there is none, or it is not."""
        pid = self.main_pid()
        if pid is None or self.marker not in command_line(pid):
            return False
        with suppress(ProcessLookupError):
            os.kill(pid, number)
        return True

    def _kill(self) -> None:
        """SIGKILL the main process, and the children that it left behind: a busy one may not notice for long."""
        self._signal_main_process(signal.SIGKILL)
        for pid in holders(self.lock):
            with suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)

    def main_pid(self) -> int | None:
        """The pid in the pid file, which may be stale."""
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
    """A process's arguments, separated by spaces; empty when there is no such process."""
    if sys.platform == "linux":
        try:
            return Path(f"/proc/{pid}/cmdline").read_bytes().replace(b"\0", b" ").decode(errors="replace")
        except OSError:
            return ""
    listing = ["ps", "-ww", "-o", "command=", "-p", str(pid)]
    return subprocess.run(listing, capture_output=True, text=True, check=False).stdout


def holders(path: Path) -> list[int]:
    """The other processes that hold a file open. Linux only, and only those that we may look into."""
    found = set()
    for link in Path("/proc").glob("[0-9]*/fd/*"):
        with suppress(OSError):
            if os.readlink(link) == str(path):
                found.add(int(link.parts[2]))
    return sorted(found - {os.getpid()})
