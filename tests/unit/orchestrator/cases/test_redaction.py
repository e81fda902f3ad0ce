"""Redaction: no redacted value is left in any form."""

from __future__ import annotations

import json
from typing import Any

import pytest

from orchestrator.cases.redaction import redact
from shared.errors import InvalidInput

SECRET = "ann@example.com"


def case_with(text: Any) -> dict[str, Any]:
    step = {"number": 1, "kind": "tool_call", "name": "t", "request": text, "error": {"type": "e", "message": text}}
    below = {"agent": "B", "input": text, "output": text, "steps": [step]}
    subtask = {"number": 2, "kind": "subtask", "name": "B", "task": below}
    return {
        "task": {"agent": "A", "input": {"mail": SECRET}, "messages": [{"content": text}], "steps": [step, subtask]}
    }


@pytest.mark.parametrize(
    "text",
    [
        SECRET,
        f"To {SECRET}.",
        {SECRET: [SECRET]},
        json.dumps({"mail": SECRET}),
        f"Result: {json.dumps(json.dumps({'a': SECRET}))}",
        # No strict JSON: `json.loads` would drop the first value, or write another text.
        '{"a": "ann@example.com", "a": 1}',
        '{"a": "ann@example.com", "b": NaN}',
        '["ann@example.com", 1e999]',
        '["ann@example.com"',
    ],
)
def test_value_is_replaced_in_every_form(text: Any) -> None:
    redacted = redact(case_with(text), ["$.task.input.mail"])
    assert SECRET not in json.dumps(redacted)
    assert "[redacted 1]" in json.dumps(redacted["task"]["steps"])


@pytest.mark.parametrize("value", [True, False, 7, -1])
def test_value_that_means_something_elsewhere_is_refused(value: Any) -> None:
    case = {"task": {"agent": "A", "input": {"is_ill": value}, "steps": []}}
    with pytest.raises(InvalidInput, match="cannot be redacted"):
        redact(case, ["$.task.input"])
