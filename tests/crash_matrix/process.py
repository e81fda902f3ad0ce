"""The processes of a lane, from the test's point of view."""

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
from tests.crash_matrix.world import BUILTIN
from tests.support.lanes import NURSERY, lanes_of
from tests.support.processes import ROOT, wait_until

LISTENING = re.compile(r'"address": "(http://[^"]+)"')


@dataclass
class ProductProcess:
    """A worker or an orchestrator that the nursery has started, in a separate process group."""

    pid: int
    log: Path
    lanes: str

    def tree(self) -> list[int]:
        """Return the process, its descendants, and the lanes of a worker."""
        return [self.pid, *descendants(self.pid), *lanes_of(self.lanes, self.pid)]

    @property
    def running(self) -> bool:
        with suppress(ProcessLookupError):
            os.kill(self.pid, 0)
            return True
        return False

    def kill(self) -> None:
        """Kill the process and all its descendants with SIGKILL."""
        for pid in self.tree():
            with suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        wait_until(lambda: not self.running, f"{self.log.name} is gone", 10)

    def freeze(self) -> list[int]:
        """Stop the process and all its descendants; return them."""
        return freeze(self.tree())

    def api_address(self) -> str | None:
        """Return the address of an orchestrator's API; None before it listens."""
        found = LISTENING.search(self.output())
        return found[1] if found else None

    def output(self) -> str:
        """Return all its output so far."""
        return self.log.read_text(errors="replace") if self.log.exists() else ""

    def timeout_message(self) -> str:
        """Return the message of a wait that times out."""
        return f"{self.log.name} at work:\n{self.output()[-3000:]}"


def freeze(pids: list[int]) -> list[int]:
    """Stop processes; return them."""
    for pid in pids:
        with suppress(ProcessLookupError):
            os.kill(pid, signal.SIGSTOP)
    return pids


def thaw(pids: Iterable[int]) -> None:
    """Continue frozen processes."""
    for pid in pids:
        with suppress(ProcessLookupError):
            os.kill(pid, signal.SIGCONT)


class Nursery:
    """The two processes that fork all others."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.lanes = str(folder / "lanes")
        self._lock = threading.Lock()
        self._ready = False

    def __enter__(self) -> Self:
        offer_tools(self.folder)
        env = {**os.environ, "PYTHONPATH": os.pathsep.join([str(self.folder), str(ROOT)]), NURSERY: self.lanes}
        command = [sys.executable, "-m", "tests.crash_matrix.nursery"]
        self._process = subprocess.Popen(
            command, cwd=ROOT, env=env, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        )
        command = [sys.executable, "-m", "tests.support.lane_nursery", self.lanes, "tests.crash_matrix.points"]
        self._of_lanes = subprocess.Popen(command, cwd=ROOT, env=env)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for process in (self._process, self._of_lanes):
            process.kill()
            process.communicate()

    def start(self, role: str, argv: list[str], env: Mapping[str, str], log: Path) -> ProductProcess:
        """Start a process without waiting for it."""
        birth = json.dumps({"role": role, "argv": argv, "env": dict(env), "log": str(log)})
        with self._lock:
            # Their imports take seconds, and nothing waits for them.
            self._ready = self._ready or self._answer() == "ready"
            wait_until(lambda: Path(self.lanes).exists(), "the nursery of lanes listens", 60)
            assert self._process.stdin is not None
            self._process.stdin.write(birth + "\n")
            self._process.stdin.flush()
            return ProductProcess(int(self._answer()), log, self.lanes)

    def _answer(self) -> str:
        assert self._process.stdout is not None
        line = self._process.stdout.readline()
        assert line, "the nursery has ended; its traceback is above"
        return line.strip()


def offer_tools(folder: Path) -> None:
    """Make the folder, which is on PYTHONPATH, an installed package that offers the builtin tools."""
    about = folder / "minion_crash_tools-1.0.dist-info"
    about.mkdir()
    (about / "METADATA").write_text(
        "Metadata-Version: 2.1\nName: minion-crash-tools\nVersion: 1.0\nLicense-Expression: MIT\n"
    )
    lines = [f"crash-{name} = tests.crash_matrix.tools:{name}" for name in BUILTIN]
    (about / "entry_points.txt").write_text("\n".join(["[minions.tools]", *lines, ""]))
