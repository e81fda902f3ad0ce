"""All attacks and all honest functions, in every setting of a worker."""

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


def run(command: list[str], folder: Path, **options: Any) -> dict[str, Any]:
    """Run the corpora with a command prefix and return what the script printed."""
    script = [str(folder / "sandbox" / "run_corpus.py"), str(folder), str(folder / "sandbox" / "data")]
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


def assert_holds(result: dict[str, Any], level: str, layers: set[str]) -> None:
    assert result["level"] == level
    assert set(result["layers"]) - {"landlock"} == ALWAYS | layers
    assert result["attacks with policy"] == []
    assert result["attacks on the kernel layers alone"] == []
    assert result["honest functions"] == []
    assert result["tried"] == [252, 245]


@as_root
def test_corpora_hold_as_root(public_copy: Path) -> None:
    assert_holds(run([sys.executable], public_copy), "full", {"empty_root"} | NAMESPACES)


@as_root
def test_corpora_hold_as_nobody_with_user_namespaces(public_copy: Path, public_python: str) -> None:
    result = run([public_python], public_copy, user=65534, group=65534, extra_groups=[])
    assert_holds(result, "full", {"empty_root"} | NAMESPACES)


@as_user
def test_corpora_hold_as_the_current_user(public_copy: Path) -> None:
    assert_holds(run([sys.executable], public_copy), "full", {"empty_root"} | NAMESPACES)


@as_root
@pytest.mark.parametrize("uid", [0, 65534])
def test_corpora_hold_in_a_default_container(public_copy: Path, public_python: str, uid: int) -> None:
    container = [str(public_copy / "sandbox" / "container.py"), str(public_copy / "shared" / "sandbox")]
    command = [public_python, *container, str(uid), public_python]
    assert_holds(run(command, public_copy), "strong", set() if uid else {"chroot"})
