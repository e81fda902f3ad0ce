"""Memory of a worker, with its children."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from workers import memory
from workers.memory import MemoryGauge, memory_of

MEGABYTE = 1 << 20
HOLD = "held = bytearray(b'x') * (64 << 20); print(flush=True); input()"


@pytest.mark.skipif(not Path("/proc/self/smaps_rollup").exists(), reason="this system does not report it")
def test_memory_includes_that_of_children() -> None:
    before = memory_of(os.getpid())
    assert before is not None
    with subprocess.Popen([sys.executable, "-c", HOLD], stdin=subprocess.PIPE, stdout=subprocess.PIPE) as child:
        assert child.stdout is not None
        child.stdout.readline()
        after = memory_of(os.getpid())
        child.communicate(b"\n")
    assert after is not None
    assert after - before > 60 * MEGABYTE


def test_memory_is_unknown_where_it_is_not_reported(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(memory, "PROC", tmp_path)
    assert MemoryGauge().read() is None


def test_gauge_reads_seldom(monkeypatch: pytest.MonkeyPatch) -> None:
    gauge, values = MemoryGauge(), iter((1, 2))
    monkeypatch.setattr(memory, "memory_of", lambda pid: next(values))
    assert (gauge.read(), gauge.read()) == (1, 1)
