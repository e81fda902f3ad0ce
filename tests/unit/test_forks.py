"""Processes that the nursery forks: each is what a new interpreter would be, and none outlives the tests."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from tests.support import forks
from tests.support.forks import ROOT, Nursery
from tests.support.processes import Process, wait_until

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="only Linux has nurseries")

PROGRAM = """
import atexit, gc, json, os, signal, sys, threading, warnings
print(json.dumps({
    "arguments": sys.argv,
    "name": [__name__, __spec__.name],
    "path": sys.path,
    "environment": dict(os.environ),
    "folder": os.getcwd(),
    "descriptors": sorted(os.readlink(f"/proc/self/fd/{number}") for number in (0, 1, 2)),
    "others": [number for number in range(3, 100) if os.path.exists(f"/proc/self/fd/{number}")],
    "leads its session": os.getsid(0) == os.getpid(),
    "handlers": [str(signal.getsignal(number)) for number in sorted(signal.valid_signals())],
    "blocked": sorted(signal.pthread_sigmask(signal.SIG_BLOCK, [])),
    "collector": [gc.isenabled(), gc.get_threshold()],
    "threads": threading.active_count(),
    "filters": [str(each) for each in warnings.filters],
}))
atexit.register(print, "ended", flush=True)
sys.exit(7)
"""
KILLED = """
import os, signal, sys
from tests.support.forks import IMPORTS, Nursery
IMPORTS["sleeper"] = ()
print(Nursery("sleeper").start([], dict(os.environ), sys.stderr.fileno()).pid, flush=True)
os.kill(os.getpid(), signal.SIGKILL)
"""


@pytest.fixture
def environment(tmp_path: Path) -> dict[str, str]:
    return {**os.environ, "PYTHONPATH": str(tmp_path), "PYTHONWARNINGS": "default", "GREETING": "hello"}


def test_fork_is_what_a_new_interpreter_would_be(
    tmp_path: Path, environment: dict[str, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "looker.py").write_text(PROGRAM)
    monkeypatch.setitem(forks.IMPORTS, "looker", ())
    nursery, log = Nursery("looker"), tmp_path / "looker.log"
    try:
        with log.open("ab") as output:
            assert nursery.start(["one", "two"], environment, output.fileno()).wait(30) == 7
    finally:
        nursery._end()
    forked = log.read_text()
    log.unlink()
    fresh = Process([sys.executable, "-m", "looker", "one", "two"], log, environment)
    assert fresh.wait() == 7
    assert seen(forked) == seen(log.read_text())


def seen(output: str) -> dict[str, Any]:
    """Return what a process has found, and the last line that it wrote."""
    found, last = output.splitlines()
    return {**json.loads(found), "last": last}


def test_interrupt_of_the_tests_leaves_their_processes_to_them(monkeypatch: pytest.MonkeyPatch) -> None:
    """A terminal sends it to all processes of its session."""
    monkeypatch.setitem(forks.IMPORTS, "looker", ())
    nursery = Nursery("looker")
    try:
        assert os.getsid(nursery._process.pid) != os.getsid(0)
    finally:
        nursery._end()


def test_forks_end_when_the_tests_are_killed(tmp_path: Path, environment: dict[str, str]) -> None:
    (tmp_path / "sleeper.py").write_text("import time\ntime.sleep(1000)\n")
    command = [sys.executable, "-c", KILLED]
    killed = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, timeout=60, check=False)
    assert killed.returncode == -signal.SIGKILL
    wait_until(lambda: not Path(f"/proc/{int(killed.stdout)}").exists(), "the fork ends")
