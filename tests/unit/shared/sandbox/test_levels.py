from __future__ import annotations

import pytest

from shared.sandbox import levels

STRONG = {*levels.ESSENTIAL, "landlock"}


def test_full_requires_all_namespaces() -> None:
    assert levels.level_of(STRONG | levels.ISOLATING) == "full"
    for name in ("cgroup", "ipc", "mount", "net", "pid", "user", "uts"):
        assert levels.level_of(STRONG | levels.ISOLATING - {f"{name}_namespace"}) == "strong"
    assert levels.level_of(STRONG | levels.ISOLATING - {"empty_root"}) == "strong"


@pytest.mark.parametrize("missing", sorted(levels.ESSENTIAL))
def test_missing_essential_layer_is_refused(missing: str) -> None:
    assert levels.level_of(STRONG | levels.ISOLATING - {missing}) is not None
    assert levels.level_of((STRONG | levels.ISOLATING) - {missing}) is None


def test_refusal_names_missing_layer_and_remedy() -> None:
    notes = ["mount_namespace: not permitted", "seccomp: no such thing"]
    text = levels.explain_layers({"rlimits"}, notes, ["socket"])
    assert "mount_namespace" not in text
    for part in (
        "seccomp, unprivileged_uid",
        "run as another user than root",
        "not stopped: socket",
        "seccomp: no such thing",
        "MINION_SANDBOX",
    ):
        assert part in text


def test_strong_names_the_steps_to_full() -> None:
    text = levels.explain_strong(["pid_namespace: [Errno 1] not permitted", "landlock: no such call"])
    for part in (
        "nothing needs to be done",
        "Missing: pid_namespace, landlock.",
        "seccomp=unconfined",
        "docs/production.md",
    ):
        assert part in text


@pytest.mark.parametrize(("system", "machine"), [("darwin", "arm64"), ("linux", "riscv64")])
def test_unknown_machines_are_refused(monkeypatch: pytest.MonkeyPatch, system: str, machine: str) -> None:
    monkeypatch.setattr("sys.platform", system)
    monkeypatch.setattr("platform.machine", lambda: machine)
    assert levels.unsupported()
