"""The test kit where its users have it: in repositories of their own, whose tests pytest runs in another process."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from orchestrator.local.embedded import scratch_dir
from tests.acceptance.conftest import all_pids, clean_environment, describe, wait_until

ROOT = Path(__file__).resolve().parent.parent.parent
REPOSITORIES = ["tests/kit", "examples/django_shop", "examples/fastapi_service", "examples/nightly_script"]
HANGING = """
import os, pathlib, time

def test_hangs(live_minions):
    live_minions.apply({"kind": "agent", "name": "A", "description": "A.", "type": "function", "tool": "echo",
                        "config": {"capabilities": ["any"]}},
                       {"kind": "tool", "name": "echo", "type": "builtin", "builtin": "echo", "effect": "pure"})
    pathlib.Path("ready").touch()
    time.sleep(600)
"""


def run_pytest(folder: Path, state: Path, *options: str) -> subprocess.Popen[str]:
    """Run the tests of a folder as if it were a repository: without the configuration and fixtures of this one."""
    # The folders of the examples hold nothing but what a user copies.
    environment = {**clean_environment(state / "data"), "PYTHONDONTWRITEBYTECODE": "1"}
    command = [sys.executable, "-W", "error", "-m", "pytest", "-q", "--confcutdir", ".", "--rootdir", ".", *options]
    return subprocess.Popen(
        [*command, "-p", "no:cacheprovider", "."],
        cwd=folder, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
    )  # fmt: skip


@pytest.mark.parametrize("folder", REPOSITORIES)
def test_tests_of_a_repository_pass(folder: str) -> None:
    with scratch_dir() as state:
        process = run_pytest(ROOT / folder, state)
        output, _ = process.communicate(timeout=240)
    assert process.returncode == 0, output[-8000:]


@pytest.mark.skipif(sys.platform != "linux", reason="elsewhere, servers outlive a kill until the next start")
def test_killed_test_run_leaves_no_process(tmp_path: Path) -> None:
    (tmp_path / "test_hanging.py").write_text(HANGING)
    with scratch_dir() as state:
        mark = str(state).encode()
        process = run_pytest(tmp_path, state)
        try:
            wait_until(lambda: (tmp_path / "ready").exists(), seconds=120, what="the test runs with its workers")
            family = {pid for pid in all_pids() if mark in describe(pid)}
            assert len(family) >= 4  # this one, the orchestrator, the worker and its slots
        finally:
            os.kill(process.pid, signal.SIGKILL)
            process.communicate(timeout=30)
        wait_until(lambda: not any(mark in describe(pid) for pid in all_pids()), seconds=40, what="all have ended")


def test_plugin_that_is_not_used_loads_nothing(tmp_path: Path) -> None:
    (tmp_path / "test_other.py").write_text(
        "import sys\n\n\ndef test_nothing_is_loaded():\n"
        "    assert not {'orchestrator', 'workers', 'shared', 'minions', 'sqlalchemy'} & sys.modules.keys()\n"
    )
    process = run_pytest(tmp_path, tmp_path)
    output, _ = process.communicate(timeout=60)
    assert process.returncode == 0, output
