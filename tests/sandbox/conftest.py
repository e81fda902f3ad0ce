"""Fixtures of the sandbox's test suites."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

import minions
import shared
from shared.sandbox import Sandbox

HERE = Path(__file__).parent


@pytest.fixture(scope="session")
def sandbox() -> Iterator[Sandbox]:
    """Sandbox without preloaded packages."""
    with Sandbox() as started:
        yield started


@pytest.fixture(scope="session")
def bare_sandbox() -> Iterator[Sandbox]:
    """Sandbox whose functions can use the operating system, if called with `check=False`."""
    with Sandbox(preload=("os", "ctypes", "socket", "signal", "threading", "resource", "sys")) as started:
        yield started


@pytest.fixture(scope="session")
def public_copy(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """Folder that every user can read, with `minions`, `shared` and this folder in it; its path contains a space."""
    folder = Path("/var/tmp") / f"sandbox tests {os.getpid()}"
    for package in (minions, shared):
        source = Path(package.__file__).parent
        shutil.copytree(source, folder / source.name, ignore=shutil.ignore_patterns("__pycache__"))
    shutil.copytree(HERE, folder / "sandbox", ignore=shutil.ignore_patterns("__pycache__"))
    for path in (folder, *folder.rglob("*")):
        path.chmod(0o755 if path.is_dir() else 0o644)
    yield folder
    shutil.rmtree(folder)


@pytest.fixture(scope="session")
def public_python() -> str:
    """Interpreter that every user can start; a separate one only if this one is in a home folder."""
    for candidate in (os.path.realpath(sys.executable), "/usr/bin/python3", "/usr/local/bin/python3"):
        test = "import sys; sys.exit(sys.version_info < (3, 11))"
        try:
            found = subprocess.run(
                [candidate, "-c", test], user=65534, group=65534, extra_groups=[], cwd="/", check=False
            )
        except OSError:
            continue
        if found.returncode == 0:
            return candidate
    pytest.skip("no Python ≥ 3.11 that another user may start")
