from __future__ import annotations

from shared.errors import MinionError
from shared.sandbox import SandboxFault, SandboxRefused


def test_fault_is_stored_without_unknown_fields() -> None:
    fault = SandboxFault("timeout", "late", limit=5.0, observed=5.01)
    assert fault.as_dict() == {"type": "timeout", "message": "late", "limit": 5.0, "observed": 5.01}


def test_refusal_is_an_expected_error() -> None:
    assert issubclass(SandboxRefused, MinionError)
    assert SandboxRefused("x").as_dict()["type"] == "sandbox_refused"
