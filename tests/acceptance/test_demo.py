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
    assert result["ok"]
    assert result["distributions"] == len(installed)
    assert result["failed"], "version 1 refuses some real distributions"
    assert result["replayed"] == {"succeeded": len(result["failed"])}
    folder = Path(environment["MINION_DATA_DIR"])
    assert (folder / result["report"]["markdown"]).read_text().count("\n|") > len(installed)
    assert "<table" in (folder / result["report"]["html"]).read_text()
    assert not (folder / "run.json").exists()
    assert not [pid for pid in all_pids() if str(folder).encode() in described(pid)]
