"""Earlier releases, taken from the repository's history."""

from __future__ import annotations

import io
import os
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest
from sqlalchemy import Engine

from tests.support.processes import ROOT

COMMITS = {
    "0.1.0": "cd37370286ceb828f108720ecdea6d89cff7601c",
    "0.2.0": "9edb19b7a6566e8af91d6731cf3839eb4de42780",
}


def unpack(release: str, folder: Path) -> Path:
    """Write the files of a release to a folder; a clone without its commit skips the test."""
    archive = subprocess.run(
        ["git", "archive", "--format=zip", COMMITS[release]], cwd=ROOT, capture_output=True, timeout=60
    )
    if archive.returncode != 0:
        pytest.skip(f"this clone does not have release {release}: {archive.stderr.decode().strip()}")
    with zipfile.ZipFile(io.BytesIO(archive.stdout)) as tree:
        tree.extractall(folder)
    return folder


def run_python(tree: Path, engine: Engine, *arguments: str) -> str:
    """Run Python with a release's packages on a database; returns what it printed."""
    url = engine.url.render_as_string(hide_password=False)
    env = {**os.environ, "DATABASE_URL": url, "PYTHONPATH": ""}
    command = [sys.executable, *arguments]
    done = subprocess.run(command, cwd=tree, env=env, capture_output=True, text=True, timeout=100)
    assert done.returncode == 0, done.stderr
    return done.stdout
