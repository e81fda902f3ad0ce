"""`make demo`'s job, end to end, with real servers and real Celery processes."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

from tests.acceptance.conftest import all_pids, describe, run_minion

COUNT = "import importlib.metadata as m; print(len({d.name.lower().replace('_', '-') for d in m.distributions()}))"


def installed_distributions(environment: dict[str, str]) -> int:
    """Return the distributions that the demo's processes see: tests of this process may install one more."""
    done = subprocess.run([sys.executable, "-c", COUNT], env=environment, capture_output=True, text=True, check=True)
    return int(done.stdout)


def test_demo_audits_replays_failures_and_stops_everything(environment):
    done = run_minion(environment, "demo", "--json", timeout=280)

    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-2000:]
    result = json.loads(done.stdout)
    installed = installed_distributions(environment)
    refused = [name for names in result["failed"].values() for name in names]
    assert result["ok"]
    assert result["tasks"]["inspect"]["succeeded"] + result["tasks"]["inspect"]["failed"] > 2 * installed
    assert refused, "version 1 refuses some real distributions"
    assert (result["replayed"], result["cured"]) == (len(refused), len(refused))
    page = Path(result["report"])
    assert "<table" in page.read_text()
    assert page.with_suffix(".md").read_text().count("\n|") > installed
    folder = environment["MINION_DATA_DIR"]
    assert not Path(folder, "run.json").exists()
    assert not [pid for pid in all_pids() if folder.encode() in describe(pid)]
