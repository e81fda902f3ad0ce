"""Installed as a wheel outside the checkout, everything works: migrations and default agents are inside."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import sysconfig
import venv
from pathlib import Path

import pytest

from shared.embedded import scratch_dir
from tests.acceptance.conftest import System, clean_environment, stop, wait_until

ROOT = Path(__file__).resolve().parent.parent.parent


@pytest.fixture(scope="module")
def installed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The Python of an environment that holds the wheel, and sees this session's other packages."""
    folder = tmp_path_factory.mktemp("wheel")
    build = [sys.executable, "-m", "build", "--wheel", "--no-isolation", "--outdir", str(folder / "dist"), str(ROOT)]
    subprocess.run(build, check=True, capture_output=True)
    venv.create(folder / "venv", with_pip=False)
    python = folder / "venv" / "bin" / "python"
    packages = subprocess.run(
        [python, "-c", "import sysconfig; print(sysconfig.get_path('purelib'))"],
        check=True,
        capture_output=True,
        text=True,
    ).stdout.strip()
    wheel = next((folder / "dist").glob("*.whl"))
    pip = [sys.executable, "-m", "pip", "--python", str(python), "install", "--quiet", "--no-deps", "--no-index"]
    subprocess.run([*pip, str(wheel)], check=True, capture_output=True)
    # Behind the wheel's own packages; its editable install in this session's environment is not followed.
    (Path(packages) / "session.pth").write_text(sysconfig.get_path("purelib") + "\n")
    return python


def test_the_wheel_runs_everything_from_an_empty_folder(installed, tmp_path):
    with scratch_dir() as folder:
        environment = clean_environment(folder / "data")
        environment.pop("PYTHONPATH", None)
        process = subprocess.Popen(
            [installed, "-m", "orchestrator.cli", "up", "--no-flower"],
            cwd=tmp_path, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
        )  # fmt: skip
        system = System(process, environment, folder / "data", [])
        try:
            assert process.stdout is not None
            said = ""
            for line in process.stdout:
                said += line
                if "Everything is running" in line:
                    break
            assert process.poll() is None, said

            submit = [str(installed), "-m", "orchestrator.cli", "submit", "echo", '{"from": "the wheel"}', "--wait"]
            done = subprocess.run(submit, cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=60)
            where = subprocess.run(
                [installed, "-c", "import shared; print(shared.__file__)"], cwd=tmp_path, env=environment,
                capture_output=True, text=True, check=True,
            ).stdout  # fmt: skip
        finally:
            stop(system)

    assert json.loads(done.stdout) == {"from": "the wheel"}
    assert not where.startswith(str(ROOT))
    wait_until(lambda: not os.path.exists(folder), seconds=5, what="the data folder is gone")
