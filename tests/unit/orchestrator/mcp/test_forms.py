"""Forms for decisions, and what any answer to them becomes."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from mcp_types import ElicitResult

from minions.errors import InvalidInput
from orchestrator.mcp.forms import decided, form_of, key_of

SCHEMA = {
    "type": "object",
    "properties": {
        "order": {"type": "string", "description": "Its number.", "pattern": "^A"},
        "amount": {"type": "number", "minimum": 1},
        "speed": {"type": "string", "enum": ["slow", "fast"]},
    },
}
VALUE = {"order": "A-17", "amount": 25}
NAMED = {"step": 3, "proposal": "0123456789ab"}


def decision(kind: str = "approval", **more: Any) -> dict[str, Any]:
    both = {"approvals": None, "people": None, "name": "refund", "server": None, "value": VALUE, "schema": SCHEMA}
    return {"kind": kind, **NAMED, **both, **more}


def fields(found: dict[str, Any]) -> dict[str, Any]:
    return form_of(found, "It waits.").params.requested_schema["properties"]


def answer(action: Any, **content: Any) -> ElicitResult:
    return ElicitResult(action=action, content=content)


def test_simple_arguments_are_fields_with_the_proposed_values() -> None:
    assert fields(decision()) == {
        "argument.order": {"type": "string", "title": "order", "description": "Its number.", "default": "A-17"},
        "argument.amount": {"type": "number", "title": "amount", "minimum": 1, "default": 25},
        "argument.speed": {"type": "string", "title": "speed", "enum": ["slow", "fast"]},
        "reason": {"type": "string", "title": "Reason", "maxLength": 1000},
    }


@pytest.mark.parametrize(
    "schema",
    [
        {"type": "object", "properties": {"order": {"type": "object"}}},
        {"type": "object", "properties": {"order": {"enum": [1, 2], "type": "integer"}}},
        {"type": "object", "properties": {"order": True}},
        {"type": "object", "properties": {f"a{n}": {"type": "string"} for n in range(20)}},
        {"type": "object", "properties": {"other": {"type": "string"}}},
        {"type": "object"},
    ],
)
def test_other_arguments_are_json(schema: dict[str, Any]) -> None:
    found = fields(decision(schema=schema))
    assert found["arguments"]["default"] == '{\n  "order": "A-17",\n  "amount": 25\n}'


def test_masked_or_large_arguments_have_no_fields() -> None:
    assert fields(decision(value="(masked)", schema=None)).keys() == {"reason"}
    assert fields(decision(value={"text": "x" * 30_000}, schema={"type": "object"})).keys() == {"reason"}


def test_key_differs_for_each_proposal_and_approval() -> None:
    found = [decision(), decision(proposal="0" * 12), decision(step=4), decision(approvals=1)]
    assert len({key_of(each) for each in found}) == 4


def test_accepting_approves_and_declining_rejects() -> None:
    approved = {**NAMED, "verdict": "approve"}
    assert decided(decision(), answer("accept")) == approved
    assert decided(decision(), answer("accept", **{"argument.order": "A-17", "argument.amount": 25})) == approved
    changed = {**VALUE, "amount": 5}
    assert decided(decision(), answer("accept", reason="Half.", **{"argument.amount": 5})) == {
        **approved, "value": changed, "reason": "Half."
    }  # fmt: skip
    whole = decision(schema={"type": "object"})
    assert decided(whole, answer("accept", arguments='{"order": "A-18"}')) == {
        **approved, "value": {"order": "A-18"}
    }  # fmt: skip
    assert decided(decision(), answer("decline"))["verdict"] == "reject"
    assert decided(decision(), answer("cancel")) is None


def test_question_of_a_server_is_answered_or_declined() -> None:
    asked = decision(server="ci", question="Which order?", value={})
    assert "Accepting sends the answer" in form_of(asked, "It asks.").params.message
    assert decided(asked, answer("accept", **{"argument.order": "A-17"})) == {
        **NAMED, "verdict": "approve", "value": {"order": "A-17"}
    }  # fmt: skip
    assert decided(asked, answer("decline"))["verdict"] == "reject"
    assert fields({**asked, "schema": {"type": "object"}})["arguments"]["title"] == "Answer, as JSON"


def test_outcome_of_an_interrupted_call_is_asked_for() -> None:
    interrupted = decision("answer", schema=None)
    assert fields(interrupted).keys() == {"outcome", "result", "reason"}
    assert decided(interrupted, answer("accept", outcome="again")) == {**NAMED, "verdict": "again"}
    happened = {**NAMED, "verdict": "result", "value": {"sent": True}}
    assert decided(interrupted, answer("accept", outcome="result", result='{"sent": true}')) == happened
    typed = decision("answer", schema={"type": "object", "properties": {"sent": {"type": "boolean"}}})
    assert decided(typed, answer("accept", outcome="result", **{"argument.sent": True})) == happened
    assert decided(interrupted, answer("decline")) is None
    for wrong in ({}, {"outcome": "yes"}, {"outcome": "result", "result": "{"}):
        with pytest.raises(InvalidInput):
            decided(interrupted, answer("accept", **wrong))


@pytest.mark.parametrize(
    "content",
    [{"argument.other": "x"}, {"arguments": "{}"}, {"result": "{}"}, {"reason": 5}, {"reason": ["x"]}],
)
def test_field_that_the_form_does_not_have_is_refused(content: dict[str, Any]) -> None:
    with pytest.raises(InvalidInput):
        decided(decision(), answer("accept", **content))
    assert decided(decision(), answer("accept", confirmed=True)) == {**NAMED, "verdict": "approve"}


VALUES = st.none() | st.booleans() | st.integers() | st.text(max_size=9) | st.lists(st.text(max_size=3), max_size=2)
NAMES = st.sampled_from(["argument.order", "argument.x", "arguments", "outcome", "result", "reason", "", "\x00"])


@given(
    kind=st.sampled_from(["approval", "answer"]),
    action=st.sampled_from(["accept", "decline", "cancel"]),
    content=st.none() | st.dictionaries(NAMES, VALUES, max_size=4),
    value=st.sampled_from([VALUE, "(masked)", None, []]),
)
def test_any_answer_is_a_decision_or_refused(kind: str, action: Any, content: Any, value: Any) -> None:
    found = decision(kind, value=value, schema=SCHEMA if value == VALUE else None)
    form_of(found, "It waits.")
    try:
        arguments = decided(found, ElicitResult(action=action, content=content))
    except InvalidInput:
        return
    assert arguments is None or arguments["proposal"] == NAMED["proposal"]


def test_message_shows_arguments_without_hidden_characters() -> None:
    found = form_of(decision(value={"order": "A-17\u202e"}), "It waits.").params
    assert "It waits. Accepting approves it" in found.message
    assert '"A-17\\u202e"' in found.message
    assert found.requested_schema["properties"]["arguments"]["default"] == '{\n  "order": "A-17\\u202e"\n}'
    assert decided(decision(value={"order": "A-17\u202e"}), answer("accept", arguments='{"order": "A-17\\u202e"}')) == {
        **NAMED, "verdict": "approve"
    }  # fmt: skip
    assert "more characters" in form_of(decision(value="x" * 3000, schema=None), "It waits.").params.message
