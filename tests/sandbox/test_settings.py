"""All attacks and all honest functions as root, and a third of them in every other setting of a worker.

`make soak` plays all of them in every setting.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

as_root = pytest.mark.skipif(os.geteuid() != 0, reason="needs root to become another user")
as_user = pytest.mark.skipif(os.geteuid() == 0, reason="covered as root by the other settings")


ALL = (0, 1)


def share(first: int) -> pytest.MarkDecorator:
    """Play every third entry of the corpora from this one on, or all in `make soak`. Three settings play each once."""
    return pytest.mark.parametrize("part", [(first, 3), pytest.param(ALL, marks=pytest.mark.soak)])


def run(command: list[str], folder: Path, part: tuple[int, int] = ALL, **options: Any) -> dict[str, Any]:
    """Run a part of the corpora with a command prefix and return what the script printed."""
    script = [str(folder / "sandbox" / "run_corpus.py"), str(folder), str(folder / "sandbox" / "data"), *map(str, part)]
    environment = {"PYTHONDONTWRITEBYTECODE": "1"}
    done = subprocess.run(
        [*command, *script], capture_output=True, text=True, env=environment, cwd="/", check=False, **options
    )
    assert done.returncode == 0, done.stderr
    result: dict[str, Any] = json.loads(done.stdout)
    return result


ALWAYS = {
    "unprivileged_uid",
    "no_capabilities",
    "no_new_privs",
    "not_dumpable",
    "zygote_seccomp",
    "seccomp",
    "rlimits",
}
NAMESPACES = {f"{name}_namespace" for name in ("user", "pid", "net", "mount", "ipc", "uts", "cgroup")}


def assert_holds(result: dict[str, Any], level: str, layers: set[str], part: tuple[int, int] = ALL) -> None:
    assert result["level"] == level
    assert set(result["layers"]) - {"landlock"} == ALWAYS | layers
    assert result["attacks with policy"] == []
    assert result["attacks on the kernel layers alone"] == []
    assert result["honest functions"] == []
    assert result["tried"] == [len(range(size)[part[0] :: part[1]]) for size in (252, 245)]


@as_root
def test_corpora_hold_as_root(public_copy: Path) -> None:
    assert_holds(run([sys.executable], public_copy), "full", {"empty_root"} | NAMESPACES)


@as_root
@share(0)
def test_corpora_hold_as_nobody_with_user_namespaces(
    public_copy: Path, public_python: str, part: tuple[int, int]
) -> None:
    result = run([public_python], public_copy, part, user=65534, group=65534, extra_groups=[])
    assert_holds(result, "full", {"empty_root"} | NAMESPACES, part)


@as_user
def test_corpora_hold_as_the_current_user(public_copy: Path) -> None:
    assert_holds(run([sys.executable], public_copy), "full", {"empty_root"} | NAMESPACES)


@as_root
@share(1)
def test_corpora_hold_as_root_in_a_container(public_copy: Path, public_python: str, part: tuple[int, int]) -> None:
    assert_holds(run(contained(public_copy, public_python, 0), public_copy, part), "strong", {"chroot"}, part)


@as_root
@share(2)
def test_corpora_hold_as_nobody_in_a_container(public_copy: Path, public_python: str, part: tuple[int, int]) -> None:
    assert_holds(run(contained(public_copy, public_python, 65534), public_copy, part), "strong", set(), part)


def contained(folder: Path, python: str, uid: int) -> list[str]:
    """Return the prefix of a command that runs in a default container."""
    container = [str(folder / "sandbox" / "container.py"), str(folder / "shared" / "sandbox")]
    return [python, *container, str(uid), python]
