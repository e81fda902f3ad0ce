"""The agent registry: agents from Python, their lifecycle, and asking them. Answers: test_registry_answers.py."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Iterator
from typing import Any

import pytest
from sqlalchemy import Engine, text
from sqlalchemy.orm import Session

from orchestrator.preparer import prepare_pending
from shared.contracts.documents import AgentDefinition
from shared.contracts.requests import HumanMessage
from shared.database.connections import make_engine
from shared.database.tables import Agent
from shared.errors import (
    AmbiguousRoute,
    Conflict,
    InvalidDefinition,
    InvalidInput,
    TaskFailed,
    UnknownAgent,
    WaitTimeout,
)
from shared.registry import AgentRegistry
from shared.settings import Settings
from shared.tasks import submission
from shared.tasks.lifecycle import cancel
from shared.tasks.messages import checked_input
from shared.tasks.routing import choose
from tests.conftest import Define
from tests.support.definitions import NOOP, agent_definition
from tests.support.lifecycle_driver import LifecycleDriver
from tests.support.processes import wait_until

QUERY = {"type": "object", "required": ["query"], "properties": {"query": {"type": "string"}}}


@pytest.fixture
def session(database: Engine) -> Iterator[Session]:
    with Session(database) as session:
        yield session


@pytest.fixture
def registry(session: Session) -> AgentRegistry:
    return AgentRegistry(session)


def search_agent(**fields: Any) -> Agent:
    return Agent(
        **{"name": "SearchAgent", "description": "Searches", "config_data": {"capabilities": ["search"]}, **fields}
    )


# ------------------------------------------------------------------------------------------------- registering


def test_registering_commits_and_numbers_versions(registry: AgentRegistry, database: Engine) -> None:
    first = registry.register_agent(search_agent())
    same = registry.register_agent(search_agent())
    other = registry.register_agent(search_agent(description="Searches more"))
    assert (first.version, same.version, other.version) == (1, 1, 2)
    assert first.version_id == same.version_id != other.version_id
    with Session(database) as somebody_else:
        assert AgentRegistry(somebody_else).get_agent("SearchAgent").version == 2


def test_registering_does_not_touch_the_callers_session(session: Session) -> None:
    session.execute(text("INSERT INTO conversations (id) VALUES ('mine')"))
    AgentRegistry(session).register_agent(search_agent())
    with pytest.raises(InvalidDefinition):
        AgentRegistry(session).register_agent(search_agent(tools=["nothing"]))
    assert session.scalar(text("SELECT count(*) FROM conversations")) == 1
    session.rollback()
    assert session.scalar(text("SELECT count(*) FROM conversations")) == 0
    assert session.scalar(text("SELECT count(*) FROM agents")) == 1


def test_registry_holds_no_transaction_open(session: Session, registry: AgentRegistry, database: Engine) -> None:
    """An idle transaction is ended by the server after a lease, and the next call would find a dead connection."""
    registry.register_agent(search_agent())
    registry.get_agent("SearchAgent")
    registry.list_agents()
    registry.set_status("SearchAgent", "deprecated")
    assert not session.in_transaction()
    with database.connect() as connection:
        idle = "SELECT count(*) FROM pg_stat_activity WHERE state LIKE 'idle in transaction%'"
        assert connection.scalar(text(idle)) == 0


def test_a_definition_may_be_registered_too(registry: AgentRegistry) -> None:
    assert registry.register_agent(AgentDefinition(name="A")).name == "A"


@pytest.mark.parametrize("thing", [None, "A", {"name": "A"}, 5])
def test_other_objects_cannot_be_registered(registry: AgentRegistry, thing: Any) -> None:
    with pytest.raises(InvalidDefinition, match="register_agent takes an Agent"):
        registry.register_agent(thing)


def test_the_fields_of_an_agent_are_at_hand(registry: AgentRegistry) -> None:
    agent = registry.register_agent(search_agent(max_tokens=77))
    assert (agent.description, agent.max_tokens, agent.capabilities) == ("Searches", 77, ["search"])
    assert agent.config_data["capabilities"] == ["search"]
    with pytest.raises(AttributeError):
        _ = agent.nonsense


def test_a_stored_agent_knows_its_definition(registry: AgentRegistry, session: Session) -> None:
    registry.register_agent(search_agent())
    row = session.query(Agent).one()
    assert row.definition.description == "Searches"


@pytest.mark.parametrize("name", ["Nobody", "", "searchagent", "x" * 100_000])
def test_an_unknown_agent_is_named(registry: AgentRegistry, name: str) -> None:
    for call in (registry.get_agent, lambda n: registry.set_status(n, "disabled"), lambda n: registry.roll_back(n, 1)):
        with pytest.raises(UnknownAgent, match="There is no agent named") as caught:
            call(name)
        assert len(caught.value.message) < 300


@pytest.mark.parametrize("name", ["a\0", "\ud800"])
def test_a_name_that_cannot_be_stored_is_refused(registry: AgentRegistry, name: str) -> None:
    with pytest.raises(InvalidInput, match="cannot be stored"):
        registry.get_agent(name)


def test_agents_are_listed_by_name_and_namespace(registry: AgentRegistry, session: Session) -> None:
    for name in ("b", "A", "c"):
        registry.register_agent(Agent(name=name))
    assert sorted(agent.name for agent in registry.list_agents()) == ["A", "b", "c"]
    assert AgentRegistry(session, "other").list_agents() == []


# --------------------------------------------------------------------------------------------------- lifecycle


def accepts(registry: AgentRegistry) -> bool:
    """Return whether SearchAgent accepts a message, without waiting for its task."""
    try:
        asyncio.run(registry.process(["hello"], agent="SearchAgent", timeout=0))
    except WaitTimeout:
        return True
    except Conflict:
        return False
    raise AssertionError("nobody runs it")


def test_disabled_agent_accepts_no_task_until_active(registry: AgentRegistry, database: Engine) -> None:
    registry.register_agent(search_agent())
    assert accepts(registry)
    disabled = registry.set_status("SearchAgent", "disabled", "too expensive")
    assert disabled.status == "disabled"
    assert not accepts(registry)
    with database.connect() as connection:
        assert connection.scalar(text("SELECT status_reason FROM agents")) == "too expensive"
    assert registry.set_status("SearchAgent", "active").status == "active"
    assert accepts(registry)


def test_a_deprecated_agent_still_accepts(registry: AgentRegistry) -> None:
    registry.register_agent(search_agent())
    assert registry.set_status("SearchAgent", "deprecated").status == "deprecated"
    assert accepts(registry)


def test_a_new_version_does_not_enable_a_disabled_agent(registry: AgentRegistry) -> None:
    registry.register_agent(search_agent())
    registry.set_status("SearchAgent", "disabled")
    assert registry.register_agent(search_agent(description="new")).status == "disabled"


def test_a_rolled_back_agent_runs_its_earlier_version(registry: AgentRegistry, database: Engine) -> None:
    registry.register_agent(search_agent(description="old"))
    registry.register_agent(search_agent(description="new"))
    back = registry.roll_back("SearchAgent", 1, "it was better")
    assert (back.version, back.status, back.description) == (1, "rolled_back", "old")
    driver = LifecycleDriver(database)
    assert driver.row(driver.submit("SearchAgent", messages=["hello"]))["agent_version"] == 1


@pytest.mark.parametrize("status", ["bogus", "rolled_back", "", None, 5])
def test_there_are_three_statuses_to_set(registry: AgentRegistry, status: Any) -> None:
    registry.register_agent(search_agent())
    with pytest.raises(InvalidInput, match="can be set to active, deprecated, disabled"):
        registry.set_status("SearchAgent", status)


def test_a_reason_that_cannot_be_stored_is_refused(registry: AgentRegistry) -> None:
    registry.register_agent(search_agent())
    with pytest.raises(InvalidInput, match=r"U\+0000"):
        registry.set_status("SearchAgent", "disabled", "a\0b")


# ----------------------------------------------------------------------------------------------------- asking


class LangChainMessage:
    type = "human"
    content = "red boats"


@pytest.mark.parametrize(
    "message",
    ["red boats", HumanMessage(content="red boats"), {"role": "user", "content": "red boats"}, LangChainMessage()],
)
def test_a_message_of_any_shape_is_submitted(registry: AgentRegistry, database: Engine, message: Any) -> None:
    registry.register_agent(search_agent(input_schema=QUERY))
    with pytest.raises(WaitTimeout, match="is still pending after 0 s"):
        asyncio.run(registry.process([message], agent="SearchAgent", timeout=0))
    with database.connect() as connection:
        row = connection.execute(text("SELECT messages, submitted_by FROM tasks")).one()
    assert tuple(row) == ([{"role": "user", "content": "red boats"}], "registry")


def test_checking_a_message_holds_no_transaction_open(
    database: Engine, settings: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    def check_slowly(*arguments: Any, **named: Any) -> None:
        time.sleep(1.5)
        checked_input(*arguments, **named)

    monkeypatch.setattr(submission, "checked_input", check_slowly)
    engine = make_engine(settings.model_copy(update={"lease_seconds": 1.0}))
    with Session(engine) as session:
        registry = AgentRegistry(session)
        registry.register_agent(search_agent())
        with pytest.raises(WaitTimeout):
            asyncio.run(registry.process(["red boats"], agent="SearchAgent", timeout=0))
    engine.dispose()


@pytest.mark.parametrize(
    ("messages", "options", "words"),
    [
        ([], {}, "empty list"),
        ([5], {}, "A message must have a role"),
        (["x"], {"conversation_id": ""}, "conversation_id"),
        (["x"], {"conversation_id": 5}, "conversation_id"),
        (["x"], {"agent": 5}, "agent: Input must be a valid string"),
        (["a\0"], {}, "U+0000"),
        (["x" * 10] * 1001, {}, "messages"),
    ],
)
def test_invalid_questions_are_refused(
    registry: AgentRegistry, messages: Any, options: dict[str, Any], words: str
) -> None:
    registry.register_agent(search_agent())
    with pytest.raises(InvalidInput) as caught:
        asyncio.run(registry.process(messages, **{"agent": "SearchAgent", "timeout": 0, **options}))
    assert words in caught.value.message


def test_a_task_that_fails_raises_its_recorded_error(registry: AgentRegistry, database: Engine, define: Define) -> None:
    define(NOOP, agent_definition("A"))
    driver = LifecycleDriver(database)

    async def ask() -> None:
        asking = asyncio.create_task(registry.process(["x"], agent="A"))
        task = await asyncio.to_thread(wait_until, lambda: driver.sql("SELECT id FROM tasks"), "a task")
        await asyncio.to_thread(driver.call, cancel, task, reason="enough")
        await asking

    with pytest.raises(TaskFailed, match="enough") as caught:
        asyncio.run(asyncio.wait_for(ask(), 30))
    assert caught.value.detail["error"] == {"type": "cancelled", "message": "enough"}


# ---------------------------------------------------------------------------------------------------- routing


@pytest.fixture
def crowd(define: Define, database: Engine) -> LifecycleDriver:
    define(
        NOOP,
        agent_definition("SearchAgent", "search", description="Finds documents about boats"),
        agent_definition("WeatherAgent", "weather.forecast", description="Says whether it will rain on boats"),
        agent_definition("Twin1", "twins", description="identical"),
        agent_definition("Twin2", "twins", description="identical"),
        agent_definition("Retired", "archive", description="the old archive"),
    )
    driver = LifecycleDriver(database, "search", "weather.forecast")
    driver.sql("UPDATE agents SET status = 'disabled' WHERE name = 'Retired'")
    return driver


@pytest.mark.parametrize(
    ("message", "name"),
    [
        ("Please search for red things", "SearchAgent"),
        ("find documents", "SearchAgent"),
        ("What is the weather in Rome?", "WeatherAgent"),
        ("a forecast, please", "WeatherAgent"),
        ("will it rain", "WeatherAgent"),
        ("search agent", "SearchAgent"),
        ("SEARCHING", "SearchAgent"),
        ("it's raining: isn't it? \\ 'x' & | ! ( )", "WeatherAgent"),
    ],
)
def test_a_message_goes_to_the_agent_that_fits(crowd: LifecycleDriver, message: str, name: str) -> None:
    task = crowd.submit(None, messages=[message])
    prepare_pending(crowd.engine)
    row = crowd.row(task)
    assert (row["agent"], row["state"], row["error"]) == (name, "pending", None)


def test_tie_lists_equal_candidates(crowd: LifecycleDriver) -> None:
    with pytest.raises(AmbiguousRoute, match="Several agents fit the message equally well: Twin1, Twin2"):
        crowd.call(choose, "identical twins")


@pytest.mark.parametrize("message", ["", " ", "the", "xyzzy", "'", "\\", "a:*", "<->", "🙂", "archive"])
def test_no_match_lists_the_candidates(crowd: LifecycleDriver, message: str) -> None:
    with pytest.raises(AmbiguousRoute, match="Name one of: SearchAgent, Twin1, Twin2, WeatherAgent") as caught:
        crowd.call(choose, message)
    assert caught.value.detail["candidates"] == ["SearchAgent", "Twin1", "Twin2", "WeatherAgent"]


def test_a_choice_may_be_limited(crowd: LifecycleDriver) -> None:
    assert crowd.call(choose, "boats", among=["WeatherAgent"]).agent == "WeatherAgent"
    with pytest.raises(AmbiguousRoute, match="There is no agent"):
        crowd.call(choose, "boats", among=["Nobody"])


def test_a_routed_task_keeps_its_agent_when_definitions_change(crowd: LifecycleDriver, define: Define) -> None:
    task = crowd.submit(None, messages=["search"])
    prepare_pending(crowd.engine)
    define(agent_definition("SearchAgent", "search", description="changed"))
    prepare_pending(crowd.engine)
    assert crowd.row(task)["agent_version"] == 1
