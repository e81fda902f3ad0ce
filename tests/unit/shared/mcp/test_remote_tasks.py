"""Tasks of a server as a client reads them: whatever it says, times are bounded and states are known."""

from __future__ import annotations

import json
import math
from contextlib import suppress
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from shared.mcp import questions, remote_tasks
from shared.mcp.faults import McpFault, RpcError
from shared.mcp.remote_tasks import FASTEST, LONGEST_TTL, SLOWEST, USUAL
from tests.support.mcp_tasks import BRANCH, question

JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=True) | st.text(),
    lambda parts: st.lists(parts, max_size=4) | st.dictionaries(st.text(max_size=8), parts, max_size=4),
    max_leaves=12,
)
FIELDS = "taskId status statusMessage pollIntervalMs ttlMs inputRequests result error resultType requestState".split()


@pytest.mark.parametrize(
    ("milliseconds", "seconds"),
    [
        (1000, 1.0),
        (2500.5, 2.5005),
        (0, FASTEST),
        (-1, FASTEST),
        (-1e308, FASTEST),
        (1e12, SLOWEST),
        (math.inf, SLOWEST),
        (10**400, SLOWEST),
        (math.nan, USUAL),
        (None, USUAL),
        (True, USUAL),
        ("5", USUAL),
        ([], USUAL),
    ],
)
def test_poll_interval_is_bounded(milliseconds: Any, seconds: float) -> None:
    assert remote_tasks.poll_seconds(milliseconds) == seconds


@pytest.mark.parametrize(
    ("milliseconds", "seconds"),
    [
        (60_000, 60.0),
        (0, 0.0),
        (-5, 0.0),
        (LONGEST_TTL * 1000 + 1, None),
        (10**400, None),
        (math.nan, None),
        (None, None),
        ("x", None),
    ],
)
def test_time_to_live_is_bounded(milliseconds: Any, seconds: float | None) -> None:
    assert remote_tasks.ttl_seconds(milliseconds) == seconds


@settings(max_examples=60, deadline=None)
@given(st.dictionaries(st.sampled_from(FIELDS), JSON))
def test_any_answer_is_a_task_or_a_fault(result: dict[str, Any]) -> None:
    result = {"taskId": "t", **result}
    for read in (remote_tasks.created, lambda given: remote_tasks.read(given, "t")):
        with suppress(McpFault):
            assert FASTEST <= read(result).poll_seconds <= SLOWEST


@settings(max_examples=60, deadline=None)
@given(
    st.dictionaries(
        st.text(max_size=5), st.fixed_dictionaries({"method": st.just("elicitation/create"), "params": JSON})
    )
)
def test_any_questions_are_a_form_or_a_fault(requests: dict[str, Any]) -> None:
    try:
        asked = questions.read(requests)
    except McpFault:
        return
    assert json.loads(asked.form())["schema"]["type"] == "object"
    questions.responses(requests, "approve", asked.proposed)


def test_answered_questions_are_not_asked_again() -> None:
    result = {"taskId": "t", "status": "input_required", "inputRequests": {"a": question(), "b": question()}}
    assert set(remote_tasks.read(result, "t").questions.requests) == {"a", "b"}  # type: ignore[union-attr]
    assert set(remote_tasks.read(result, "t", ["a"]).questions.requests) == {"b"}  # type: ignore[union-attr]
    assert remote_tasks.read(result, "t", ["a", "b"]).questions is None


def test_defaults_complete_an_answer() -> None:
    schema = {"type": "object", "properties": {"a": {"type": "string", "default": "x"}, "b": {"type": "string"}}}
    requests = {"q": question(schema=schema)}
    assert questions.read(requests).proposed == {"a": "x"}
    answers = questions.responses(requests, "approve", {"b": "y"})
    assert answers == {"q": {"action": "accept", "content": {"a": "x", "b": "y"}}}


def test_question_may_use_an_earlier_dialect() -> None:
    email = {"type": "string", "format": "email", "pattern": r"^(?!\.)[a-z.]+@[a-z.]+$"}
    schema = {
        "$schema": "http://json-schema.org/draft-07/schema#",
        "type": "object",
        "properties": {"to": email, "size": {"type": "string", "enum": ["s", "m"], "enumNames": ["Small", "Medium"]}},
        "required": None,
    }
    assert questions.read({"q": question(schema=schema)}).schema["properties"]["to"] == {
        "type": "string",
        "format": "email",
    }


def test_the_same_questions_have_the_same_mark() -> None:
    first, second = questions.read({"q": question()}), questions.read({"q": question(schema=dict(BRANCH))})
    assert first.mark == second.mark
    assert questions.read({"q": question("Really?")}).mark != first.mark


@pytest.mark.parametrize("value", [None, [], 5, {"a": 1}])
def test_answer_of_another_form_is_a_fault(value: Any) -> None:
    with pytest.raises(McpFault):
        questions.responses({"q": question(), "r": question()}, "approve", value)


def test_only_invalid_params_mean_an_unknown_task() -> None:
    assert remote_tasks.is_unknown(RpcError("Gone.", number=-32602))
    assert not remote_tasks.is_unknown(RpcError("Oops.", number=-32603))
    assert not remote_tasks.is_unknown(McpFault("HTTP 404", taken=False))


def test_references_in_a_schema_are_never_fetched() -> None:
    with pytest.raises(McpFault, match="invalid schema"):
        questions.read({"q": question(schema={"type": "object", "$ref": "https://example.com/schema.json"})})
