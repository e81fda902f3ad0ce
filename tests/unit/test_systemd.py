"""The systemd units: what they promise about settings, secrets and confinement."""

from __future__ import annotations

import re
import shutil
import subprocess
from collections import defaultdict
from pathlib import Path

import pytest

from shared.settings import Settings, secret_variables, variable_of
from tests.support.secrets_of_processes import NEEDED

FOLDER = Path(__file__).resolve().parents[2] / "deploy" / "systemd"
UNITS = {re.sub(r"^minion-(\w+)@?\.service$", r"\1", file.name): file for file in sorted(FOLDER.glob("*.service"))}
# Variables that are no settings of ours: Python's, and those that the command lines use.
FOREIGN = {"PYTHONUNBUFFERED", "CAPABILITIES", "CONCURRENCY"}
Unit = dict[str, list[str]]


def read(name: str) -> Unit:
    """Return the values of a unit by key; its sections have no keys in common."""
    values: Unit = defaultdict(list)
    for line in UNITS[name].read_text(encoding="utf-8").splitlines():
        if line and line[0] not in "#;[":
            key, _, value = line.partition("=")
            values[key].append(value)
    return values


def environment(unit: Unit) -> dict[str, str]:
    assignments = (each.partition("=") for line in unit["Environment"] for each in line.split())
    return {name: value for name, _, value in assignments}


def test_every_process_has_a_unit() -> None:
    assert UNITS.keys() == NEEDED.keys()


@pytest.mark.parametrize("name", UNITS)
def test_variables_are_settings(name: str) -> None:
    known = {variable_of(each) for each in Settings.model_fields} - {*secret_variables()}
    files = {f"{secret}_FILE" for secret in secret_variables()}
    assert environment(read(name)).keys() <= known | files | FOREIGN


@pytest.mark.parametrize("name", UNITS)
def test_process_receives_the_secrets_that_it_needs_and_no_others(name: str) -> None:
    unit = read(name)
    files = {key: value for key, value in environment(unit).items() if key.endswith("_FILE")}
    assert {key.removesuffix("_FILE") for key in files} == NEEDED[name]
    credentials = {each.partition(":")[0] for each in unit["LoadCredential"]}
    assert set(files.values()) == {f"%d/{credential}" for credential in credentials}


@pytest.mark.parametrize("name", UNITS)
def test_unit_is_confined(name: str) -> None:
    unit = read(name)
    assert unit["User"] == ["minions"]
    wanted = {
        "NoNewPrivileges": "yes",
        "CapabilityBoundingSet": "",
        "ProtectSystem": "strict",
        "ProtectHome": "yes",
        "PrivateTmp": "yes",
        "PrivateDevices": "yes",
        "LimitCORE": "0",
    }
    assert {key: unit[key] for key in wanted} == {key: [value] for key, value in wanted.items()}
    # The sandbox, which an orchestrator uses too when a function is stored, needs these.
    allowed, denied = unit["SystemCallFilter"]
    assert {"@system-service", "seccomp", "landlock_restrict_self"} <= set(allowed.split())
    assert denied.startswith("~")
    assert "@privileged" not in denied


def test_worker_may_make_the_namespaces_of_the_sandbox() -> None:
    worker = read("worker")
    assert set(worker["RestrictNamespaces"][0].split()) == {"user", "mnt", "pid", "net", "ipc", "uts", "cgroup"}
    assert "@mount" in worker["SystemCallFilter"][0]
    assert worker["ProtectProc"] == []
    assert worker["OOMPolicy"] == ["continue"]


def test_worker_hands_its_tasks_back_before_it_is_killed() -> None:
    worker = read("worker")
    assert (worker["KillMode"], worker["KillSignal"]) == (["mixed"], ["SIGQUIT"])
    assert int(worker["TimeoutStopSec"][0]) >= 15


@pytest.mark.skipif(not shutil.which("systemd-analyze"), reason="systemd-analyze is not installed on this machine")
def test_systemd_accepts_the_units(tmp_path: Path) -> None:
    copies = []
    for file in UNITS.values():
        copy = tmp_path / file.name.replace("@", "@search")
        # The program need not be installed here.
        copy.write_text(file.read_text(encoding="utf-8").replace("/opt/minions/bin/minion", "/bin/true"))
        copies.append(copy)
    checked = subprocess.run(["systemd-analyze", "verify", *copies], capture_output=True, text=True, timeout=60)
    assert "".join(line for line in checked.stderr.splitlines(keepends=True) if str(tmp_path) in line) == ""
    assert checked.returncode == 0, checked.stderr
