"""Canaries and evaluations over HTTP, from the command line and on the agent's page."""

from __future__ import annotations

import json
from datetime import UTC, datetime
from pathlib import Path

import pytest
import yaml

from minions import Client, errors
from orchestrator.maintenance.evaluator import submit_next
from shared.access.roles import MASK
from tests.conftest import Define
from tests.integration.api.conftest import Run, WithKey
from tests.support.definitions import NOOP, agent_definition
from tests.support.lifecycle_driver import LifecycleDriver

ALMOST_ALL = "99.99%"


@pytest.fixture
def sorter(define: Define, client: Client) -> str:
    """An agent with the versions 1, which is active, and 2."""
    define(NOOP, agent_definition("Sorter", description="old"))
    define(agent_definition("Sorter", description="new"))
    client.roll_back_agent("Sorter", 1)
    return "Sorter"


def test_canary_is_started_shown_changed_and_completed(client: Client, sorter: str) -> None:
    client.set_canary(sorter, 2, "10%", "slowly", max_failures=0.02, min_tasks=50)
    client.set_canary(sorter, 2, "20%")
    canary = client.agent(sorter)["canary"]
    assert (canary["version"], canary["baseline"], canary["share"]) == (2, 1, "20%")
    assert (canary["max_failures"], canary["max_cost"], canary["min_tasks"]) == (0.02, 0.5, 50)
    empty = {"tasks": 0, "failed": 0, "dollars": 0.0, "dollars_per_task": None, "scores": {}}
    assert canary["figures"] == {"canary": empty, "baseline": empty}
    assert [agent["canary"]["share"] for agent in client.agents()] == ["20%"]
    done = client.set_canary(sorter, 2, "100%")
    assert (done["version"], done["canary"]["outcome"]) == (2, "completed")
    assert [agent["canary"] for agent in client.agents()] == [None]


def test_agent_that_was_resolved_before_gets_its_canary(client: Client, sorter: str) -> None:
    assert client.submit(sorter, {}).agent_version == 1
    client.set_canary(sorter, 2, ALMOST_ALL)
    assert [client.submit(sorter, {}).agent_version for _ in range(2)] == [2, 2]
    assert client.submit(sorter, {}, conversation_id="c").agent_version == 2
    client.roll_back_agent(sorter, 1)
    assert client.submit(sorter, {}).agent_version == 1


def test_wrong_canaries_are_refused(client: Client, sorter: str) -> None:
    with pytest.raises(errors.InvalidInput, match="is the active one"):
        client.set_canary(sorter, 1, "10%")
    with pytest.raises(errors.InvalidInput, match="percentage"):
        client.set_canary(sorter, 2, "ten")
    with pytest.raises(errors.NotFound, match="no version 3"):
        client.set_canary(sorter, 3, "10%")
    client.set_agent_status(sorter, "disabled")
    with pytest.raises(errors.Conflict, match="disabled"):
        client.set_canary(sorter, 2, "10%")


def test_key_of_a_tenant_sees_no_figures(
    client: Client, sorter: str, driver: LifecycleDriver, with_key: WithKey
) -> None:
    client.set_canary(sorter, 2, "10%", "acme's bug")
    driver.sql(
        "INSERT INTO evaluation_scores (agent_version_id, evaluator, count, sum) "
        "SELECT id, 'Judge', 1, 0.5 FROM agent_versions WHERE name = :agent",
        agent=sorter,
    )
    assert client.agent(sorter)["versions"][0]["scores"]["Judge"]["mean"] == 0.5
    seen = with_key("viewer", tenant="acme").get(f"/v1/agents/{sorter}").json()
    canary = seen["canary"]
    assert (canary["share"], canary["figures"], canary["reason"]) == ("10%", None, None)
    assert [version["scores"] for version in seen["versions"]] == [{}, {}]


def test_commands_start_and_end_a_canary(client: Client, sorter: str, run_cli: Run, tmp_path: Path) -> None:
    started = run_cli("agents", "activate", sorter, "--to", "2", "--share", "10%", "--max-cost", "25%")
    assert started.code == 0
    assert "Version 2 gets 10% of new tasks" in started.line
    assert "1, 10% of tasks: 2" in run_cli("agents").out
    canary = json.loads(run_cli("agents", "show", sorter).out)["canary"]
    assert (canary["max_cost"], canary["max_failures"]) == (0.25, 0.05)
    assert run_cli("agents", "activate", sorter, "--to", "1").code == 0
    assert client.agent(sorter)["canary"]["outcome"] == "ended"
    assert run_cli("agents", "activate", sorter, "--share", "10%").code == 2
    path = tmp_path / "sorter.yaml"
    path.write_text(yaml.safe_dump(agent_definition(sorter, description="newest")))
    assert "canary" in run_cli("apply", str(path), "--share", "5%").line
    assert client.agent(sorter)["canary"]["version"] == 3
    path.write_text(yaml.safe_dump(agent_definition(sorter, description="to be tested")))
    assert "inactive" in run_cli("apply", str(path), "--inactive").line
    found = client.agent(sorter)
    assert (found["version"], found["versions"][0]["number"], found["canary"]["version"]) == (1, 4, 3)
    assert run_cli("apply", str(path), "--inactive", "--share", "5%").code == 2


def test_old_tasks_are_evaluated_by_command(
    client: Client, driver: LifecycleDriver, sorter: str, define: Define, run_cli: Run, with_key: WithKey
) -> None:
    define(agent_definition("Judge"))
    driver.finish(driver.run(sorter))
    with pytest.raises(errors.InvalidInput, match="are too few for 1 tasks"):
        client.evaluate(sorter, "Judge", since=datetime(2026, 1, 1, tzinfo=UTC), dollars=1e-7)
    options = ("--agent", sorter, "--evaluator", "Judge", "--since", "1d", "--dollars", "2")
    assert "Judge judges 1 tasks, for at most 2.000000 dollars each" in run_cli("eval", "tasks", *options).line
    assert "has no succeeded tasks" in run_cli("eval", "tasks", *options).line
    assert next(client.audit(act="evaluation.start"))["after"]["tasks"] == 0
    since = datetime(2026, 1, 1, tzinfo=UTC)
    with pytest.raises(errors.UnknownAgent):
        client.evaluate(sorter, "Nobody", since=since, dollars=1)
    client.set_agent_status("Judge", "disabled")
    with pytest.raises(errors.Conflict, match="disabled"):
        client.evaluate(sorter, "Judge", since=since, dollars=1)
    with driver.engine.begin() as connection:
        submit_next(connection)
    shown = json.loads(run_cli("agents", "show", sorter).out)["versions"]
    assert [version["unscored"].get("Judge", {}).get("failed") for version in shown] == [None, 1]
    assert "Judge" in shown[1]["unscored"]["Judge"]["problem"]
    masked = with_key("viewer").get(f"/v1/agents/{sorter}").json()["versions"][1]["unscored"]["Judge"]
    assert (masked["failed"], masked["problem"]) == (1, MASK)
    define(agent_definition("Mute", output_schema={"type": "object", "properties": {"text": {"type": "string"}}}))
    with pytest.raises(errors.InvalidInput, match="must have the property `score`"):
        client.evaluate(sorter, "Mute", since=since, dollars=1)
