"""The benchmark runner, as `make bench` starts it, with two systems. The full run is `make bench BENCH=--quick`."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

from tests.support.processes import ROOT


@pytest.mark.soak
def test_run_measures_the_chosen_systems_and_writes_its_files(tmp_path: Path) -> None:
    chosen = ["--only", "chain", "--systems", "builtin tool", "redis results, late"]
    command = [sys.executable, "-m", "benchmarks", "--quick", *chosen, "--output", str(tmp_path)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    report = json.loads((tmp_path / "report.json").read_text())
    rows = {table["name"]: table["rows"] for table in report["tables"]}
    assert rows.keys() == {"chain"}
    assert rows["chain"].keys() == {"minions, builtin tool", "celery, redis results, late"}
    assert all(row["values"] for row in rows["chain"].values())
    assert (tmp_path / "report.svg").read_text().startswith("<svg")
    assert "**a chain of 20 (s)**" in (tmp_path / "report.md").read_text()
