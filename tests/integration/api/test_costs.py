"""`GET /v1/costs` and `minion costs`: what model calls cost, and what they would cost otherwise."""

from __future__ import annotations

import json
import math
from decimal import Decimal
from typing import Any
from uuid import UUID

import httpx2
import pytest
from genai_prices import Usage, calc_price

from minions import Client
from orchestrator.observe import costs
from orchestrator.observe.counting import catch_up
from shared.errors import InvalidInput
from shared.tasks import lifecycle
from tests.conftest import Define
from tests.integration.api.conftest import Run, WithKey
from tests.support.lifecycle_driver import LifecycleDriver
from tests.support.providers import use_providers

FIRST, SECOND = "claude-opus-5-5", "claude-haiku-5-5"
MOMENT = "2026-11-29T12:00:00+00:00"
STEP = {
    "kind": "model_call",
    "status": "finished",
    "effect": "idempotent",
    "request_hash": "1",
    "started_at": MOMENT,
    "finished_at": MOMENT,
}
USAGE = {
    "input_tokens": 10_000,
    "output_tokens": 1000,
    "cache_read_input_tokens": 6000,
    "cache_creation_input_tokens": 2000,
}


def price(model: str, calls: int = 1) -> int:
    """The micro-dollars of calls with `USAGE`, by genai-prices."""
    used = Usage(input_tokens=10_000, output_tokens=1000, cache_read_tokens=6000, cache_write_tokens=2000)
    total = calc_price(used, model_ref=model, provider_id="anthropic").total_price
    return calls * math.ceil(total * 1_000_000)


def call(number: int, model: str) -> dict[str, Any]:
    return {**STEP, "number": number, "name": model, "usage": USAGE, "cost_microdollars": price(model)}


@pytest.fixture
def counted(driver: LifecycleDriver) -> LifecycleDriver:
    """Two tasks of `A`, of the tenants acme and globex, with three calls of two models; one of `B` without a call."""
    for key, models in (("acme", (FIRST, SECOND)), ("globex", (FIRST,))):
        task = driver.run("A", key=key)
        steps = [call(number, model) for number, model in enumerate(models, 1)]
        steps += [{**STEP, "number": len(models) + 1, "kind": "tool_call", "name": "search", "effect": "pure"}]
        driver.call(lifecycle.write_steps, task, 1, steps)
        driver.finish(task)
    driver.finish(driver.run("B"))
    catch_up(driver.engine)
    return driver


def ask(http: httpx2.Client, **query: Any) -> dict[str, Any]:
    answer = http.get("/v1/costs", params=query)
    assert answer.status_code == 200, answer.text
    found: dict[str, Any] = answer.json()
    return found


def dollars(found: dict[str, Any], *by: str) -> dict[Any, float]:
    return {tuple(item[name] for name in by): item["dollars"] for item in found["items"] if item["calls"]}


def test_costs_by_agent_and_model(http: httpx2.Client, counted: LifecycleDriver) -> None:
    found = ask(http, by=["agent", "model"])
    assert dollars(found, "agent", "model") == {
        ("A", FIRST): price(FIRST, 2) / 1e6,
        ("A", SECOND): price(SECOND) / 1e6,
    }
    [first, *_] = found["items"]
    assert first["tokens"] == {"input": 20_000, "output": 2000, "cache_read": 12_000, "cache_write": 4000}
    assert found["total"]["dollars"] == pytest.approx((price(FIRST, 2) + price(SECOND)) / 1e6)
    assert found["total"]["calls"] == 3


@pytest.mark.parametrize(
    ("by", "groups"),
    [
        ("version", {(1,): 3}),
        ("key", {("acme",): 2, ("globex",): 1}),
        ("namespace", {("default",): 3}),
        ("capability", {("work",): 3}),
    ],
)
def test_costs_by_other_groups(http: httpx2.Client, counted: LifecycleDriver, by: str, groups: dict[Any, int]) -> None:
    found = ask(http, by=by)
    assert {(item[by],): item["calls"] for item in found["items"] if item["calls"]} == groups


@pytest.mark.parametrize(
    ("what_if", "microdollars"),
    [
        (["model=claude-sonnet-5-5"], price("claude-sonnet-5-5", 3)),
        (["lane=batch"], (price(FIRST, 2) + price(SECOND)) / 2),
        (["model=claude-sonnet-5-5", "lane=batch"], price("claude-sonnet-5-5", 3) / 2),
    ],
)
def test_what_if_prices_the_recorded_tokens(
    http: httpx2.Client, counted: LifecycleDriver, what_if: list[str], microdollars: float
) -> None:
    found = ask(http, by="agent", what_if=what_if)
    [a] = found["items"]
    assert a["what_if_dollars"] == pytest.approx(microdollars / 1e6, abs=1e-6)
    assert found["total"]["what_if_dollars"] == a["what_if_dollars"]
    assert a["dollars"] == pytest.approx((price(FIRST, 2) + price(SECOND)) / 1e6)


def test_lane_of_a_provider_without_batches_has_no_price(monkeypatch: pytest.MonkeyPatch) -> None:
    with use_providers("http://127.0.0.1:9", monkeypatch):
        sums = costs._Sums(count=1, tokens={"input_tokens": 10, "output_tokens": 1})
        assert costs.WhatIf(lane="batch").dollars("own:qwen3:8b", sums) is None
        assert costs.WhatIf(lane="direct").dollars("own:qwen3:8b", sums) == Decimal("0.00003")
        assert costs.WhatIf(model="own:qwen3:8b").checked().dollars("claude-sonnet-5-5", sums) == Decimal("0.00003")
        with pytest.raises(InvalidInput, match="the provider of the model 'own:qwen3:8b' has no batches"):
            costs.WhatIf.parse(["model=own:qwen3:8b", "lane=batch"])


def test_call_without_a_price_is_left_out_and_said(http: httpx2.Client, counted: LifecycleDriver) -> None:
    counted.sql("UPDATE statistics SET name = 'gateway-model' WHERE name = :name", name=SECOND)
    found = ask(http, by="agent", what_if="lane=batch")
    assert found["total"]["unpriced_calls"] == 1
    assert found["total"]["what_if_dollars"] == pytest.approx(price(FIRST, 2) / 2e6, abs=1e-6)


@pytest.mark.parametrize(
    ("query", "says"),
    [
        ({"what_if": "model=claude-opsu"}, "no price list knows the model 'claude-opsu'"),
        ({"what_if": "lane=slow"}, "must be model=NAME"),
        ({"what_if": "speed=fast"}, "must be model=NAME"),
        ({"what_if": ["lane=batch", "lane=direct"]}, "each once"),
        ({"by": ["tool", "model"]}, "must be alone or with `agent`"),
        ({"by": "tool", "what_if": "lane=batch"}, "a tool has no model"),
        ({"by": "function"}, "by"),
        ({"by": ["hour", "day"]}, "must not have both"),
    ],
)
def test_impossible_questions_are_refused(http: httpx2.Client, query: dict[str, Any], says: str) -> None:
    answer = http.get("/v1/costs", params=query)
    assert answer.status_code == 422
    assert says in answer.json()["detail"]


def test_bound_keys_see_what_they_reach(with_key: WithKey, counted: LifecycleDriver) -> None:
    def calls(**bounds: Any) -> int:
        total: int = ask(with_key("viewer", **bounds))["total"]["calls"]
        return total

    assert calls() == calls(namespace="default") == calls(agents=["A"]) == 3
    assert calls(tenant="acme") == calls(tenant="ac*") == 2
    assert calls(namespace="other") == calls(agents=["B"]) == calls(capabilities=["other"]) == 0


# ------------------------------------------------------------------------------------------------------------- tools


@pytest.fixture
def delegating(driver: LifecycleDriver, define: Define) -> tuple[LifecycleDriver, list[UUID]]:
    """A task of `Boss`, whose tool `ask` calls `A` twice; the second sub-task has one of its own, of `B`."""
    define(
        {"kind": "tool", "name": "ask", "type": "agent", "agent": "A"},
        {"kind": "agent", "name": "Boss", "model": FIRST, "tools": ["ask"], "config": {"capabilities": ["work"]}},
    )
    boss = driver.run("Boss", key="acme")
    children = driver.suspend(boss, children=["A", "A"])
    for child in children:
        driver.again(child)
    [grandchild] = driver.suspend(children[1], children=["B"])
    driver.again(grandchild)
    driver.sql(
        "UPDATE executions SET cost_microdollars = 1000, input_tokens = 7, output_tokens = 3 WHERE task_id <> :boss",
        boss=boss,
    )
    catch_up(driver.engine)
    return driver, [*children, grandchild]


def test_tool_costs_what_its_subtasks_cost(http: httpx2.Client, delegating: tuple[LifecycleDriver, list[UUID]]) -> None:
    found = ask(http, by="tool")
    [tool] = [item for item in found["items"] if item["tool"] == "ask"]
    assert (tool["calls"], tool["dollars"]) == (2, 0.003)
    assert (tool["tokens"]["input"], tool["tokens"]["output"]) == (21, 9)
    assert found["partial"] is False
    assert ask(http, by=["tool", "agent"], agent="Boss")["items"][0]["agent"] == "Boss"
    assert ask(http, by="tool", agent="A")["items"] == []


def test_bound_keys_see_tools_that_they_reach(
    with_key: WithKey, delegating: tuple[LifecycleDriver, list[UUID]]
) -> None:
    def calls(**bounds: Any) -> int:
        total: int = ask(with_key("viewer", **bounds), by="tool")["total"]["calls"]
        return total

    assert calls() == calls(tenant="acme") == calls(agents=["Boss"]) == 2
    assert calls(tenant="globex") == calls(agents=["A"]) == calls(namespace="other") == 0
    assert calls(capabilities=["other"]) == 0


def test_other_tools_are_counted_too(http: httpx2.Client, counted: LifecycleDriver) -> None:
    assert {item["tool"]: item["calls"] for item in ask(http, by="tool")["items"]} == {"search": 2}


def test_costs_of_tools_read_a_bounded_number_of_subtasks(
    http: httpx2.Client, delegating: tuple[LifecycleDriver, list[UUID]], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(costs, "MOST_SUBTASKS", 1)
    found = ask(http, by="tool")
    assert found["partial"] is True


# --------------------------------------------------------------------------------------------------- client, command


def test_client_and_command_show_the_same(client: Client, run_cli: Run, counted: LifecycleDriver) -> None:
    found = client.costs(by=["agent", "model"], what_if=["lane=batch"])
    done = run_cli("costs", "--by", "agent,model", "--what-if", "lane=batch", "--json")
    assert json.loads(done.out)["items"] == found["items"]
    header, *rows = run_cli("costs", "--by", "model", "--what-if", "lane=batch", "--agent", "A").out.splitlines()
    assert header.split()[-3:] == ["dollars", "what", "if"]
    assert [row.split()[0] for row in rows][:2] == [FIRST, SECOND]
    assert rows[-1].split()[0] == "total"
    assert "Nothing has ended" in run_cli("costs", "--agent", "C").err
    assert run_cli("costs", "--by", "tool,model").code != 0


def test_show_says_what_was_paid_for_again(run_cli: Run, driver: LifecycleDriver) -> None:
    task = driver.run("A")
    miss = {"type": "tools_changed", "cache_missed_input_tokens": 41_000}
    replaced = {"model": FIRST, "reason": "unavailable", "message": "Overloaded."}
    step = {**call(1, SECOND), "usage": {"input_tokens": 50_000, "output_tokens": 3, "cache_miss": miss}}
    driver.call(lifecycle.write_steps, task, 1, [{**step, "output": {"content": [], "instead_of": replaced}}])
    shown = run_cli("show", str(task)).out
    assert "Step 1: paid 41,000 tokens again because the tools changed" in shown
    assert f"Step 1: instead of {FIRST}, which was unavailable" in shown
