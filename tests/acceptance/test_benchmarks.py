"""The benchmark runner, as `make bench BENCH=--quick` starts it: two minutes, because every system starts."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

from tests.support.processes import ROOT


@pytest.mark.soak
@pytest.mark.timeout(900)
def test_quick_run_measures_every_installed_system(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "benchmarks", "--quick", "--output", str(tmp_path)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    report = json.loads((tmp_path / "report.json").read_text())
    tables = {table["name"]: table["rows"] for table in report["tables"]}
    assert {"noop", "noop-cpu", "round-trip-p50", "chain", "fan-out", "fibo-light", "bulk", "growth"} <= set(tables)
    assert set(tables["noop"]) == set(report["systems"])
    assert all(row["values"] for name in ("noop", "bulk", "growth") for row in tables[name].values())
    assert (tmp_path / "report.svg").read_text().startswith("<svg")
