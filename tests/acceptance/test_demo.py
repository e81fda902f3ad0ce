"""`make demo`'s job, end to end, with real servers and real Celery processes."""

from __future__ import annotations

import importlib.metadata
import json
from pathlib import Path

from tests.acceptance.conftest import all_pids, described, run_minion


def test_the_demo_audits_everything_replays_what_failed_and_leaves_nothing_running(environment):
    done = run_minion(environment, "demo", "--json", timeout=280)

    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-2000:]
    result = json.loads(done.stdout)
    installed = {name.lower().replace("_", "-") for d in importlib.metadata.distributions() if (name := d.name)}
    refused = [name for names in result["failed"].values() for name in names]
    assert result["ok"]
    assert result["tasks"]["inspect"]["succeeded"] + result["tasks"]["inspect"]["failed"] > 2 * len(installed)
    assert refused, "version 1 refuses some real distributions"
    assert (result["replayed"], result["cured"]) == (len(refused), len(refused))
    page = Path(result["report"])
    assert "<table" in page.read_text()
    assert page.with_suffix(".md").read_text().count("\n|") > len(installed)
    folder = environment["MINION_DATA_DIR"]
    assert not Path(folder, "run.json").exists()
    assert not [pid for pid in all_pids() if folder.encode() in described(pid)]
