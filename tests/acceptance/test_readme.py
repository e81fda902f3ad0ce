"""A newcomer's first steps: a fresh clone, the README's commands, nothing else."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
from pathlib import Path

import pytest

from orchestrator.local.embedded import scratch_dir

ROOT = Path(__file__).resolve().parent.parent.parent
NESTED = "MINION_TEST_NESTED"


def commands_of_the_quickstart() -> list[str]:
    """Return the commands in the README's first `sh` block."""
    block = re.search(r"```sh\n(.*?)```", (ROOT / "README.md").read_text(), re.DOTALL)
    assert block is not None
    return [line for line in block.group(1).splitlines() if line and not line.startswith("#")]


def test_quickstart_is_two_commands():
    assert commands_of_the_quickstart() == ["make demo", "make test"]


@pytest.mark.soak  # installs a second time; `make test` runs in an installed clone already
@pytest.mark.timeout(900)
@pytest.mark.skipif(not (ROOT / ".git").exists(), reason="not a git checkout")
@pytest.mark.skipif(NESTED in os.environ, reason="this is the clone's own run")
def test_quickstart_works_in_a_clone_with_a_space_in_its_path(tmp_path):
    clone = tmp_path / "a fresh clone"
    subprocess.run(["git", "clone", "--quiet", "--no-hardlinks", str(ROOT), str(clone)], check=True)
    kept = ("PATH", "HOME", "LANG", "TMPDIR", "PIP_", "SSL_", "REQUESTS_CA_BUNDLE")
    with scratch_dir() as folder:
        environment = {name: value for name, value in os.environ.items() if name.startswith(kept)}
        environment |= {
            NESTED: "1",
            "MINION_DATA_DIR": str(folder / "data"),
            # Tests of the clone that need no other clone and no long wait: this session runs the rest.
            "PYTEST_ADDOPTS": "-q tests/unit/shared/tasks/test_states.py tests/acceptance/test_demo.py",
        }
        for command in commands_of_the_quickstart():
            done = subprocess.run(command.split(), cwd=clone, env=environment, capture_output=True, text=True)
            assert done.returncode == 0, f"{command}:\n{done.stdout[-3000:]}\n{done.stderr[-3000:]}"
    shutil.rmtree(clone)
