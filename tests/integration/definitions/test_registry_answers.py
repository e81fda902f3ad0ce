"""Asking agents from Python and getting their answers, with the orchestrator's loops and a worker."""

from __future__ import annotations

import asyncio

import pytest
from sqlalchemy import Engine
from sqlalchemy.orm import Session

from shared.contracts.requests import AIMessage, HumanMessage
from shared.database.tables import Agent
from shared.registry import AgentRegistry
from shared.tasks.response import AgentResponse
from shared.tasks.states import State
from tests.conftest import Define
from tests.support.definitions import NOOP, agent_definition

pytestmark = pytest.mark.usefixtures("loops", "worker")

QUERY = {"type": "object", "required": ["query"], "properties": {"query": {"type": "string"}}}
ANSWER = {"type": "object", "required": ["content"], "properties": {"content": {"type": "string"}}}


def test_the_documented_example_works(database: Engine) -> None:
    """As in the description, with the offline planner (there is no key) on a worker that serves `work`."""

    async def example(session: Session) -> tuple[AgentResponse, AgentResponse]:
        registry = AgentRegistry(session)
        agent = registry.register_agent(
            Agent(
                name="SearchAgent",
                description="Searches for whatever you like",
                system_prompt="...",
                input_schema=QUERY,
                output_schema=ANSWER,
                config_data={"capabilities": ["work", "filter"]},
                max_chain_depth=3,
            )
        )
        assert (agent.name, agent.version, agent.max_chain_depth) == ("SearchAgent", 1, 3)
        response = await registry.process(messages=[HumanMessage(content="Search for...")], conversation_id="123")
        agent = registry.get_agent("SearchAgent")
        result = await agent.process_message("Search for...")
        return response, result

    with Session(database) as session:
        response, result = asyncio.run(asyncio.wait_for(example(session), 60))
    assert (response.agent, response.state, response.conversation_id) == ("SearchAgent", State.SUCCEEDED, "123")
    assert "not a language model" in response.output["content"]
    assert response.messages == [AIMessage(content=response.output["content"])]
    assert (result.agent, result.conversation_id) == ("SearchAgent", None)


def test_many_questions_at_once_on_one_session(database: Engine, define: Define) -> None:
    define({**NOOP, "builtin": "echo"}, agent_definition("Search", input_schema=QUERY), agent_definition("Weather"))
    with Session(database) as session:
        registry = AgentRegistry(session)

    async def ask() -> list[AgentResponse]:
        known = registry.get_agent("Search")
        questions = [known.process_message(f"search {n}", conversation_id=f"c{n}") for n in range(5)]
        questions.append(registry.process([{"role": "user", "content": "the weather"}]))
        return await asyncio.gather(*questions)

    responses = asyncio.run(asyncio.wait_for(ask(), 60))
    assert [response.agent for response in responses] == ["Search"] * 5 + ["Weather"]
    assert [response.conversation_id for response in responses] == ["c0", "c1", "c2", "c3", "c4", None]
