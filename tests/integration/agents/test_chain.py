"""Agents that delegate to sub-tasks: strategies, failures, cancellation, depth."""

from __future__ import annotations

from typing import Any
from uuid import UUID

import pytest

from shared.database.connections import transaction
from shared.errors import InvalidDefinition
from shared.tasks import lifecycle
from tests.conftest import Define
from tests.integration.conftest import InlineWorker, Tasks

pytestmark = pytest.mark.usefixtures("steps")

ECHO = {"kind": "tool", "name": "echo", "type": "builtin", "builtin": "echo", "effect": "pure"}


@pytest.fixture
def steps(act: Any) -> None:
    """`Echo` returns its input, `Act` does what its input says, `Refuse` fails for good."""
    act("Act", config={"max_attempts": 1})


@pytest.fixture
def chain(define: Define) -> Any:
    """Defines a chain: `chain("Name", "Act", {"agent": "Act", "for_each": "items"}, strategy=…, **config)`."""

    def make(name: str, *relations: Any, strategy: str = "sequential", **config: Any) -> str:
        define(
            {
                "kind": "agent",
                "name": name,
                "type": "function",
                "description": f"The chain {name}",
                "relations": [{"agent": r} if isinstance(r, str) else r for r in relations],
                "config": {"capabilities": ["work"], "chain_strategy": strategy, **config},
            }
        )
        return name

    return make


@pytest.fixture
def ended(tasks: Tasks, inline_worker: InlineWorker) -> Any:
    """Runs a task and everything below it: `ended("Agent", input)` is the task."""

    def run(agent: str, value: Any) -> dict[str, Any]:
        task = tasks.submit(agent, value)
        inline_worker.run_all()
        return tasks.get(task)

    return run


def answer(value: Any) -> dict[str, Any]:
    return {"answer": value}


def test_sequential_passes_each_output_on(chain: Any, ended: Any, tasks: Tasks) -> None:
    task = ended(chain("Line", "Act", "Act", "Act"), answer(answer(answer("end"))))
    assert (task["state"], task["output"]) == ("succeeded", "end")
    assert [e["outcome"] for e in tasks.executions(task["id"])] == ["suspended"] * 3 + ["succeeded"]
    assert [child["depth"] for child in tasks.children(task["id"])] == [1, 1, 1]
    assert {child["root_id"] for child in tasks.children(task["id"])} == {task["id"]}


def test_parallel_chain_gives_all_the_same_input(chain: Any, ended: Any, tasks: Tasks) -> None:
    task = ended(chain("Both", "Act", "Act", strategy="parallel"), answer(5))
    assert [result["output"] for result in task["output"]["results"]] == [5, 5]
    assert [e["outcome"] for e in tasks.executions(task["id"])] == ["suspended", "succeeded"]


def test_for_each_makes_one_sub_task_for_each_element(chain: Any, ended: Any) -> None:
    each = {"agent": "Act", "for_each": "items"}
    task = ended(chain("Each", each), {"items": [answer(n) for n in range(30)]})
    assert [result["output"] for result in task["output"]["results"]] == list(range(30))


def test_for_each_of_empty_list_finishes(chain: Any, ended: Any) -> None:
    assert ended(chain("Each", {"agent": "Act", "for_each": "items"}), {"items": []})["output"] == {"results": []}


@pytest.mark.parametrize("value", [{}, {"items": 5}, [], "text"])
def test_for_each_wants_a_list(chain: Any, ended: Any, value: Any) -> None:
    task = ended(chain("Each", {"agent": "Act", "for_each": "items"}), value)
    assert task["error"]["type"] == "invalid_input"
    assert "its input has no list of that name" in task["error"]["message"]


@pytest.mark.parametrize("failures", ["fail", "collect"])
def test_fallback_uses_first_success(chain: Any, ended: Any, act: Any, failures: str) -> None:
    act("Strict", config={"max_attempts": 1}, input_schema={"type": "object", "required": ["never"]})
    task = ended(chain("Any", "Strict", "Act", "Act", strategy="fallback", on_child_failure=failures), answer("second"))
    assert (task["state"], task["output"]) == ("succeeded", "second")


def test_fallback_that_runs_out_fails_with_the_first_cause(chain: Any, ended: Any, tasks: Tasks) -> None:
    task = ended(chain("Any", "Act", "Act", strategy="fallback"), {"do": "fail"})
    assert task["state"] == "failed"
    assert "(and 1 more)" in task["error"]["message"]
    assert task["error"]["cause"]["task_id"] == str(tasks.children(task["id"])[0]["id"])


def test_router_chooses_by_the_words_of_the_input(chain: Any, ended: Any, act: Any, tasks: Tasks) -> None:
    act("Boats", description="Knows everything about boats and ships")
    act("Trains", description="Knows everything about trains and railways")
    task = ended(chain("Router", "Boats", "Trains", strategy="router"), {"answer": "which railways are old?"})
    assert [child["agent"] for child in tasks.children(task["id"])] == ["Trains"]


def test_router_without_a_choice_fails_with_reason(chain: Any, ended: Any, act: Any) -> None:
    act("Boats", description="boats")
    task = ended(chain("Router", "Act", "Boats", strategy="router"), {"answer": "xyzzy"})
    assert task["error"]["type"] == "ambiguous_route"
    assert set(task["error"]["candidates"]) == {"Act", "Boats"}


def test_one_failure_fails_the_chain_with_its_cause(chain: Any, ended: Any, tasks: Tasks) -> None:
    each = {"agent": "Act", "for_each": "items"}
    task = ended(chain("Each", each), {"items": [answer(1), {"do": "fail"}, {"do": "refuse"}]})
    assert task["state"] == "failed"
    assert task["error"]["type"] == "subtask_failed"
    assert "attempt 1 fails" in task["error"]["message"]
    assert task["error"]["cause"]["agent"] == "Act"
    assert [child["state"] for child in tasks.children(task["id"])] == ["succeeded", "failed", "failed"]


def test_collect_lists_failures_and_successes(chain: Any, ended: Any) -> None:
    each = {"agent": "Act", "for_each": "items"}
    task = ended(chain("Each", each, on_child_failure="collect"), {"items": [answer(1), {"do": "fail"}]})
    first, second = task["output"]["results"]
    assert (first["state"], first["output"]) == ("succeeded", 1)
    assert (second["state"], second["input"], second["error"]["type"]) == ("failed", {"do": "fail"}, "tool_error")


def test_cause_of_deep_failure_is_reported(chain: Any, ended: Any) -> None:
    task = ended(chain("Top", chain("Middle", chain("Bottom", "Act"))), {"do": "fail"})
    assert task["error"]["cause"]["agent"] == "Act"
    assert task["error"]["cause"]["error"]["type"] == "tool_error"


def test_nested_chains_need_one_slot(chain: Any, ended: Any) -> None:
    bottom = chain("Bottom", "Act", "Act")
    middle = chain("Middle", {"agent": bottom, "for_each": "items"}, {"agent": "Act"}, on_child_failure="collect")
    value = {"items": [answer(answer(n)) for n in range(5)]}
    task = ended(chain("Top", middle, middle, strategy="parallel"), value)
    assert task["state"] == "succeeded"


def test_a_chain_may_not_be_deeper_than_its_limit(chain: Any, ended: Any) -> None:
    task = ended(chain("Top", chain("Middle", chain("Bottom", "Act")), max_chain_depth=2), answer(1))
    assert task["state"] == "failed"
    assert "The chain below the agent 'Top' would be deeper than its max_chain_depth of 2" in task["error"]["message"]


def test_agent_disabled_later_fails_the_chain(chain: Any, ended: Any, database: Any) -> None:
    chain("Line", "Act")
    with database.begin() as connection:
        connection.exec_driver_sql("UPDATE agents SET status = 'disabled' WHERE name = 'Act'")
    assert "'Act' is disabled" in ended("Line", answer(1))["error"]["message"]


def test_a_child_that_is_cancelled_fails_the_parent(chain: Any, tasks: Tasks, inline_worker: InlineWorker) -> None:
    task = waiting(tasks, inline_worker, chain("Line", "Act"))
    [child] = tasks.children(task)
    assert tasks.cancel(child["id"]) == "cancelled"
    inline_worker.run_all()
    parent = tasks.get(task)
    assert parent["state"] == "failed"
    assert parent["error"]["cause"]["error"]["message"] == "Cancelled by the test."


def test_cancelling_parent_cancels_sub_tasks(chain: Any, tasks: Tasks, inline_worker: InlineWorker) -> None:
    task = waiting(tasks, inline_worker, chain("Both", "Act", "Act", strategy="parallel"))
    assert tasks.cancel(task) == "cancelled"
    assert {child["state"] for child in tasks.children(task)} == {"cancelled"}
    inline_worker.run_all()


def test_parent_cancelled_while_running_creates_no_children(
    chain: Any, tasks: Tasks, inline_worker: InlineWorker
) -> None:
    task = tasks.submit(chain("Line", "Act"), answer(1))
    [message] = inline_worker.dispatch()
    with transaction() as connection:
        row = lifecycle.claim(connection, task, message.claim, inline_worker.id)
    assert row is not None
    assert tasks.cancel(task) == "running"
    child = {"step": 1, "name": "Act", "request_hash": "x", "request": {"agent": "Act", "input": {}}}
    with transaction() as connection:
        assert lifecycle.suspend(connection, task, row["claim"], {}, [child]) == "cancelled"
    assert tasks.count() == {"cancelled": 1}


def test_a_child_of_a_cancelled_parent_gets_no_claim(chain: Any, tasks: Tasks, inline_worker: InlineWorker) -> None:
    task = waiting(tasks, inline_worker, chain("Line", "Act"))
    [message] = inline_worker.dispatch()
    tasks.cancel(task)
    with transaction() as connection:
        assert lifecycle.claim(connection, message.task_id, message.claim, inline_worker.id) is None


def waiting(tasks: Tasks, inline_worker: InlineWorker, agent: str) -> UUID:
    """A task that waits for its sub-tasks, none of which has begun."""
    from workers import minion

    task = tasks.submit(agent, answer(1))
    [message] = inline_worker.dispatch()
    assert minion.run(task, message.claim, inline_worker.id) == "waiting"
    return task


def test_a_chain_of_depth_ten_needs_one_slot(chain: Any, ended: Any, tasks: Tasks) -> None:
    below = "Act"
    for depth in range(10):
        below = chain(f"Level{depth}", below, max_chain_depth=20)
    task = ended(below, answer("deep"))
    assert (task["state"], task["output"]) == ("succeeded", "deep")
    assert tasks.count() == {"succeeded": 11}


def test_a_fan_out_of_a_thousand_needs_one_slot(chain: Any, tasks: Tasks, inline_worker: InlineWorker) -> None:
    name = chain("Fan", {"agent": "Act", "for_each": "items"})
    task = tasks.submit(name, {"items": [answer(n) for n in range(1000)]})
    inline_worker.run_all(timeout=120)
    ended = tasks.get(task)
    assert [result["output"] for result in ended["output"]["results"]] == list(range(1000))
    assert (ended["claim"], ended["open_waits"]) == (2, 0)
    assert tasks.count() == {"succeeded": 1001}


def test_chain_limits_concurrent_sub_tasks(chain: Any, tasks: Tasks, inline_worker: InlineWorker) -> None:
    chain("Many", {"agent": "Act", "for_each": "items"}, max_parallel=2)
    task = tasks.submit("Many", {"items": [answer(number) for number in range(5)]})
    most = 0
    while not tasks.get(task)["output"]:
        inline_worker._round()
        states = [child["state"] for child in tasks.children(task)]
        most = max(most, len(states) - states.count("succeeded"))
    assert most == 2
    assert [entry["output"] for entry in tasks.get(task)["output"]["results"]] == [0, 1, 2, 3, 4]


NUMBER = {"type": "object", "properties": {"n": {"type": "integer"}}, "required": ["n"]}
TEXT = {"type": "string"}


@pytest.mark.parametrize(
    ("strategy", "relations", "input_schema", "output_schema", "fault"),
    [
        ("sequential", ["Counts", "Reads"], None, None, r"relations\.1: the output of 'Counts' never fits 'Reads'"),
        ("sequential", ["Writes", "Reads"], None, None, r"relations\.1: the output of 'Writes' never fits 'Reads'"),
        ("sequential", ["Reads"], NUMBER, None, r"relations\.0: its input never fits 'Reads'"),
        ("parallel", ["Counts", "Reads"], NUMBER, None, r"relations\.1: its input never fits 'Reads'"),
        ("sequential", ["Counts"], None, TEXT, r"output_schema: the output of 'Counts' never fits it"),
        ("sequential", ["Counts"], None, {"allOf": [TEXT]}, r"output_schema: .*'Counts' .* \$: no value is allowed"),
        (
            "sequential",
            [("Counts", "texts")],
            {"properties": {"texts": {"items": TEXT}}},
            None,
            r"relations\.0: its input",
        ),
        ("sequential", ["Counts", "Counts"], NUMBER, NUMBER, None),
        ("parallel", ["Counts", "Reads"], None, None, None),
    ],
)
def test_a_chain_that_can_never_work_is_refused(
    define: Define, strategy: str, relations: list[Any], input_schema: Any, output_schema: Any, fault: str | None
) -> None:
    function = {"kind": "agent", "type": "function", "tool": "act"}
    given = [{"agent": r} if isinstance(r, str) else {"agent": r[0], "for_each": r[1]} for r in relations]
    documents = (
        {**function, "name": "Counts", "input_schema": NUMBER, "output_schema": NUMBER},
        {**function, "name": "Reads", "input_schema": TEXT},
        {"kind": "agent", "name": "Writes", "model": "offline"},
        {
            "kind": "agent",
            "name": "Chain",
            "type": "function",
            "relations": given,
            "input_schema": input_schema,
            "output_schema": output_schema,
            "config": {"chain_strategy": strategy},
        },
    )
    if fault is None:
        define(*documents)
    else:
        with pytest.raises(InvalidDefinition, match=fault):
            define(*documents)
