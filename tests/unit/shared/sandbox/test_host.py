from __future__ import annotations

import inspect

import pytest

from shared.sandbox import SAFE_IMPORTS, Sandbox, host


def test_public_interface_is_stable() -> None:
    call = inspect.signature(Sandbox.call).parameters
    assert list(call)[1:4] == ["source", "entrypoint", "arguments"]
    assert call["allowed_imports"].default is SAFE_IMPORTS
    assert (call["memory_limit"].default, call["timeout"].default) == (128, 5.0)
    assert (call["check"].default, call["context"].default) == (True, None)
    assert list(inspect.signature(Sandbox.validate).parameters)[1:3] == ["source", "entrypoint"]


def test_validate_reports_line_and_column() -> None:
    with Sandbox() as sandbox:
        problem = sandbox.validate("def f():\n    return open('x')", "f")[0]
    assert (problem.line, problem.column, problem.code) == (2, 12, "forbidden_name")


@pytest.mark.parametrize("source", ["#" * (300 << 10), "\ud800", "(" * 100_000, "x = " + "-" * 200_000 + "1"])
def test_validate_survives_hostile_sources(source: str) -> None:
    with Sandbox() as sandbox:
        assert sandbox.validate(source, "f")


def test_zygote_that_never_starts_is_an_outcome(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: object) -> None:
        raise host.ZygoteLost("no processes left")

    monkeypatch.setattr(host.ForkServer, "start", fail)
    with Sandbox() as sandbox:
        outcome = sandbox.call("def f(): pass", "f", {})
        assert outcome.error is not None
        assert outcome.error.type == "unavailable"
        assert "no processes left" in outcome.error.message
        with pytest.raises(host.Unavailable):
            _ = sandbox.level
