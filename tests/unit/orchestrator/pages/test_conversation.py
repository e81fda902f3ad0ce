"""The turns of an agent with its model."""

from __future__ import annotations

from typing import Any

import pytest

from orchestrator.pages.conversation import turns_of


def call(number: int, messages: Any, content: Any, **more: Any) -> dict[str, Any]:
    output = None if content is None else {"content": content, "stop_reason": "end_turn"}
    asked = {"messages": messages}
    return {"number": number, "kind": "model_call", "input": asked, "output": output, "error": None, **more}


def test_turns_are_what_was_new() -> None:
    steps = [
        call(1, [{"role": "user", "content": "hello"}], [
            {"type": "thinking", "thinking": "hm", "signature": "s"},
            {"type": "tool_use", "id": "1", "name": "find", "input": {"q": 1}},
        ]),
        {"number": 2, "kind": "tool_call", "input": {"q": 1}, "output": {"found": 2}, "error": None},
        call(3, [{"role": "user", "content": [{"type": "tool_result", "tool_use_id": "1", "content": '{"found": 2}'}]}],
             [{"type": "text", "text": "two"}]),
    ]  # fmt: skip
    said = [(turn["step"], turn["role"], [(b["kind"], b["value"]) for b in turn["blocks"]]) for turn in turns_of(steps)]
    assert said == [
        (1, "user", [("text", "hello")]),
        (1, "model", [("thought", "hm"), ("call", {"q": 1})]),
        (3, "user", [("result", {"found": 2})]),
        (3, "model", [("text", "two")]),
    ]


def test_failed_call_shows_its_error() -> None:
    turns = turns_of([call(1, [], None, error={"message": "overloaded"})])
    assert turns[0]["role"] == "error"


@pytest.mark.parametrize(
    "step",
    [
        call(1, "text", "text"),
        call(1, [1, None, {}], [None, 1, {"type": 2}, {"type": "text", "text": {"a": 1}}]),
        call(1, [], {"type": "text", "text": "x"}),
        {**call(1, [], []), "input": "(masked)", "output": "(masked)"},
        {**call(1, [], []), "input": None, "output": [1]},
    ],
)
def test_unknown_forms_are_shown_as_they_are(step: dict[str, Any]) -> None:
    for turn in turns_of([step]):
        assert turn["blocks"] or step["output"] is not None
