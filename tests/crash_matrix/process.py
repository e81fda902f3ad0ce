"""The processes of a lane, as the test sees them."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
import threading
from collections.abc import Iterable, Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Self

from tests.chaos.system import descendants
from tests.support.processes import ROOT, wait_until

LISTENING = re.compile(r'"address": "(http://[^"]+)"')


@dataclass
class Born:
    """A worker or an orchestrator that the nursery has started, in a group of its own."""

    pid: int
    log: Path

    @property
    def running(self) -> bool:
        with suppress(ProcessLookupError):
            os.kill(self.pid, 0)
            return True
        return False

    def kill(self) -> None:
        """kill -9 of the process and of all that it has started."""
        for pid in (self.pid, *descendants(self.pid)):
            with suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        wait_until(lambda: not self.running, f"{self.log.name} is gone", 10)

    def freeze(self) -> list[int]:
        """Stops the process and all that it has started; returns them."""
        frozen = [self.pid, *descendants(self.pid)]
        for pid in frozen:
            with suppress(ProcessLookupError):
                os.kill(pid, signal.SIGSTOP)
        return frozen

    def api_address(self) -> str | None:
        """Where an orchestrator's API listens; None before it does."""
        found = LISTENING.search(self.output())
        return found[1] if found else None

    def output(self) -> str:
        """All it has written so far."""
        return self.log.read_text(errors="replace") if self.log.exists() else ""

    def complaint(self) -> str:
        """For the message when it is waited for in vain."""
        return f"{self.log.name} at work:\n{self.output()[-3000:]}"


def thaw(pids: Iterable[int]) -> None:
    """Lets frozen processes go on."""
    for pid in pids:
        with suppress(ProcessLookupError):
            os.kill(pid, signal.SIGCONT)


class Nursery:
    """The process that forks all others."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._lock = threading.Lock()
        self._ready = False

    def __enter__(self) -> Self:
        offer_tools(self.folder)
        self._process = subprocess.Popen(
            [sys.executable, "-m", "tests.crash_matrix.nursery"],
            cwd=ROOT,
            env={**os.environ, "PYTHONPATH": os.pathsep.join([str(self.folder), str(ROOT)])},
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._process.kill()
        self._process.communicate()

    def start(self, role: str, argv: list[str], env: Mapping[str, str], log: Path) -> Born:
        """Starts a process and does not wait for it."""
        birth = json.dumps({"role": role, "argv": argv, "env": dict(env), "log": str(log)})
        with self._lock:
            # It imports for seconds, in which nobody waits.
            self._ready = self._ready or self._answer() == "ready"
            assert self._process.stdin is not None
            self._process.stdin.write(birth + "\n")
            self._process.stdin.flush()
            return Born(int(self._answer()), log)

    def _answer(self) -> str:
        assert self._process.stdout is not None
        line = self._process.stdout.readline()
        assert line, "the nursery has ended; its traceback is above"
        return line.strip()


def offer_tools(folder: Path) -> None:
    """Makes the folder, on PYTHONPATH, an installed package that offers the builtin tools."""
    about = folder / "minion_crash_tools-1.0.dist-info"
    about.mkdir()
    (about / "METADATA").write_text(
        "Metadata-Version: 2.1\nName: minion-crash-tools\nVersion: 1.0\nLicense-Expression: MIT\n"
    )
    lines = [f"crash-{name} = tests.crash_matrix.tools:{name}" for name in ("peek", "charge", "mail", "refund")]
    (about / "entry_points.txt").write_text("\n".join(["[minions.tools]", *lines, ""]))
