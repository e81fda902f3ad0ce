"""Comparison of two tasks: differences that count, and those that do not."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Any

import pytest

from minions.comparison import Record, compare
from minions.task import Task


def record(*steps: dict[str, Any], id: str = "a", executions: Any = (), outcomes: Any = None, **fields: Any) -> Record:
    task = Task(
        id=id, agent="Agent", created_at=datetime.now(UTC), labels={}, root_id=id, **{"state": "succeeded", **fields}
    )
    return Record(
        task, [step(number, **each) for number, each in enumerate(steps, 1)], list(executions), outcomes or {}
    )


def step(number: int, **fields: Any) -> dict[str, Any]:
    plain = {"kind": "tool_call", "name": "act", "status": "finished", "request_hash": "h", "child_id": None}
    return {"number": number, **plain, "input": None, "output": None, "error": None, "copied_from": None, **fields}


def tool_call(call: str, *, kind: str = "tool_use", **fields: Any) -> dict[str, Any]:
    block = {"type": kind, "id": call, "name": "act", "input": {}}
    return {"kind": "model_call", "output": {"content": [block], "stop_reason": "tool_use", **fields}}


def tool_result(call: str) -> dict[str, Any]:
    result = {"type": "tool_result", "tool_use_id": call, "content": "1"}
    return {"kind": "model_call", "input": {"messages": [{"role": "user", "content": [result]}]}}


def function_call(version: str, arguments: Any) -> dict[str, Any]:
    request = {"function": version, "arguments": arguments}
    return {"kind": "function_call", "input": request, "function_version_id": version, "output": 1}


def child(id: str, **fields: Any) -> dict[str, Any]:
    return {"kind": "subtask", "name": "Helper", "child_id": id, **fields}


@pytest.mark.parametrize(
    ("a", "b"),
    [
        (record({"output": 1}), record({"output": 1}, id="b")),
        (
            record(tool_call("toolu_x"), tool_result("toolu_x")),
            record(tool_call("toolu_y"), tool_result("toolu_y"), id="b"),
        ),
        (record(tool_call("x", id="msg_1")), record(tool_call("y", id="msg_7"), id="b")),
        (record(tool_call("x", kind="server_tool_use")), record(tool_call("y", kind="server_tool_use"), id="b")),
        (
            record(child("c"), output=[{"task_id": "c"}], outcomes={"c": {"output": 1, "error": None}}),
            record(child("d"), id="b", output=[{"task_id": "d"}], outcomes={"d": {"output": 1, "error": None}}),
        ),
        (
            record(child("c"), outcomes={"c": {"output": 1, "error": None}}),
            record(
                child("c", copied_from="a", output={"task_id": "c", "state": "succeeded", "output": 1, "error": None}),
                id="b",
            ),
        ),
        (
            record({"kind": "wait", "output": {"arguments": 1, "by": "x", "at": "1"}}),
            record({"kind": "wait", "output": {"arguments": 1, "by": "y", "at": "2"}}, id="b"),
        ),
        (record(agent_version=1), record(id="b", agent_version=2)),
        (record(function_call("v1", 5)), record(function_call("v2", 5), id="b")),
    ],
)
def test_ids_times_and_versions_are_no_difference(a: Record, b: Record) -> None:
    assert compare(a, b).differences == []
    assert compare(b, a).equal


@pytest.mark.parametrize(
    ("a", "b", "found"),
    [
        (record(output=1), record(output=2), [(None, "output", 1, 2)]),
        (record(input=1), record(messages=["x"]), [(None, "input", 1, ["x"])]),
        (record({"output": 1}), record({"output": 2}), [(1, "output", 1, 2)]),
        (record({"name": "x"}), record({"name": "y"}), [(1, "name", "x", "y")]),
        (record(function_call("v1", 5)), record(function_call("v2", 6)), [(1, "input", 5, 6)]),
        (
            record(child("c"), outcomes={"c": {"output": 1, "error": None}}),
            record(child("d"), outcomes={"d": {"output": 2, "error": None}}),
            [(1, "output", 1, 2)],
        ),
        (
            record(tool_call("x"), tool_call("y"), tool_result("x")),
            record(tool_call("x"), tool_call("y"), tool_result("y")),
            [(3, "input", tool_result("(tool call 1)")["input"], tool_result("(tool call 2)")["input"])],
        ),
    ],
)
def test_differences_have_a_location(a: Record, b: Record, found: list[tuple[Any, ...]]) -> None:
    assert [(each.step, each.what, each.a, each.b) for each in compare(a, b).differences] == found


def test_step_of_one_task_only_is_a_difference() -> None:
    found = compare(record({}, {"output": 2}), record({}))
    assert (found.of_step(1), found.of_step(2), found.equal) == ([], ["step"], False)
    assert found.differences[0].a["output"] == 2
    assert found.differences[0].b is None


def test_costs_are_shown_and_are_no_difference() -> None:
    run = {"input_tokens": 10, "output_tokens": 5, "cost_microdollars": 7, "cpu_seconds": None}
    found = compare(record({}, executions=[run, run]), record({"copied_from": "a"}, id="b"))
    assert found.equal
    first, second = found.as_dict()["tasks"]
    assert (first["cost"]["input_tokens"], first["cost"]["cost_microdollars"], first["cost"]["executions"]) == (
        20,
        14,
        2,
    )
    assert (second["cost"]["input_tokens"], second["cost"]["copied_steps"]) == (0, 1)
