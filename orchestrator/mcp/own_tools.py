"""Our own tools beside the agents: for the tasks of a caller, and for operators."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import Any

from mcp_types import CallToolResult, Tool, ToolAnnotations
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from minions.errors import InvalidInput
from orchestrator.mcp import tasks
from orchestrator.mcp.callers import Caller, Terms
from orchestrator.mcp.results import result_of, structured, text_of
from shared.contracts.strict_model import faults_of

OPERATOR = "GET /v1/pauses"
"""An endpoint that only roles which look after the installation may use."""
LONGEST_WAIT = 50.0
LONGEST_DIFF = 200_000
"""Characters of a comparison: models read it."""

TaskId = Field(description="A task's id.")


class Arguments(BaseModel):
    """Arguments of a tool."""

    model_config = ConfigDict(extra="forbid")


class OneTask(Arguments):
    """Names a task."""

    task_id: str = TaskId


class GetTask(OneTask):
    """See `get_task`."""

    wait_seconds: float = Field(0, ge=0, le=LONGEST_WAIT, description="Wait up to this long for its end.")


class CancelTask(OneTask):
    """See `cancel_task`."""

    reason: str | None = Field(None, min_length=1, max_length=500)


class Replay(OneTask):
    """See `replay`."""

    from_step: int | None = Field(None, ge=1, description="Keep the recorded steps before this one.")
    new_keys: bool = Field(False, description="Give its calls new idempotency keys, so that effects happen again.")


class Diff(Arguments):
    """See `diff`."""

    a: str = TaskId
    b: str = TaskId


class DeadLetters(Arguments):
    """See `dead_letters`."""

    agent: str | None = Field(None, max_length=255)
    cursor: str | None = Field(None, max_length=255, description="The `next` of the previous page.")


Run = Callable[[Caller, Any], Awaitable[CallToolResult]]


@dataclass(frozen=True, slots=True)
class OwnTool:
    """A tool of ours.

    Attributes:
        endpoints: those that its caller must be allowed to use.
        changes: it changes something.
        idempotent: calling it again changes nothing more.
    """

    name: str
    description: str
    arguments: type[Arguments]
    endpoints: tuple[str, ...]
    run: Run
    changes: bool = False
    idempotent: bool = True

    def as_tool(self) -> Tool:
        """Return the tool as the protocol has it."""
        return Tool(
            name=self.name,
            description=self.description,
            input_schema=_plain(self.arguments.model_json_schema()),
            annotations=ToolAnnotations(
                read_only_hint=not self.changes, destructive_hint=self.changes, idempotent_hint=self.idempotent
            ),
        )

    async def call(self, caller: Caller, arguments: dict[str, Any]) -> CallToolResult:
        """Run the tool. Arguments that it does not take are an error that a model can read and correct."""
        try:
            parsed = self.arguments.model_validate(arguments)
        except ValidationError as error:
            return CallToolResult(content=[text_of("; ".join(faults_of(error)))], is_error=True)
        try:
            return await self.run(caller, parsed)
        except InvalidInput as error:
            return CallToolResult(content=[text_of(error.message)], is_error=True)


def _plain(schema: dict[str, Any]) -> dict[str, Any]:
    """Return a schema without what is no concern of models, and which some clients refuse: choices with null."""
    properties = {
        name: {
            keyword: value
            for keyword, value in {**part, **(part.get("anyOf") or [{}])[0]}.items()
            if keyword not in ("anyOf", "title") and value is not None
        }
        for name, part in schema["properties"].items()
    }
    return {keyword: value for keyword, value in schema.items() if keyword not in ("title", "description")} | {
        "properties": properties
    }


def offered(terms: Terms) -> list[OwnTool]:
    """Return the tools that a key may use."""
    return [tool for tool in TOOLS if terms.allow(*tool.endpoints)]


async def _get_task(caller: Caller, asked: GetTask) -> CallToolResult:
    task = await tasks.find(caller, asked.task_id, wait=asked.wait_seconds)
    if task.final:
        return result_of(task, any_json=caller.is_modern)
    return structured({"task_id": task.id, "state": task.state, "why": await caller.api.sentence(task.id)})


async def _cancel_task(caller: Caller, asked: CancelTask) -> CallToolResult:
    task = await tasks.find(caller, asked.task_id)
    cancelled = await caller.api.cancel(task.id, asked.reason)
    return structured({"task_id": task.id, "state": cancelled.state, "cancel_requested": cancelled.cancel_requested})


async def _why(caller: Caller, asked: OneTask) -> CallToolResult:
    task = await tasks.find(caller, asked.task_id)
    return structured(await caller.api.why(task.id))


async def _replay(caller: Caller, asked: Replay) -> CallToolResult:
    task = await tasks.find(caller, asked.task_id)
    new = await caller.api.replay(task.id, from_step=asked.from_step, new_keys=asked.new_keys)
    return structured({"task_id": new.id, "state": new.state, "replay_of": task.id})


async def _diff(caller: Caller, asked: Diff) -> CallToolResult:
    a, b = [await tasks.find(caller, each) for each in (asked.a, asked.b)]
    found = structured((await caller.api.diff(a, b)).as_dict())
    text = found.content[0].text  # type: ignore[union-attr]
    if len(text) > LONGEST_DIFF:
        raise InvalidInput(
            f"The comparison has {len(text):,} characters, more than the {LONGEST_DIFF:,} that a model should read. "
            f"`minion diff {a.id} {b.id}` shows it."
        )
    return found


async def _dead_letters(caller: Caller, asked: DeadLetters) -> CallToolResult:
    return structured(
        await caller.api.page(
            "/v1/dead-letters", cursor=asked.cursor, agent=asked.agent, namespace=caller.api.namespace
        )
    )


TASK = "GET /v1/tasks/{task_id}"
TOOLS = (
    OwnTool(
        "get_task",
        "Returns the result of a task that a call has answered with, or its state and what it waits for.",
        GetTask,
        (TASK,),
        _get_task,
    ),
    OwnTool(
        "cancel_task",
        "Cancels a task and everything below it. A running one is asked to stop.",
        CancelTask,
        ("POST /v1/tasks/{task_id}/cancel", TASK),
        _cancel_task,
        changes=True,
    ),
    OwnTool(
        "why",
        "Explains why a task is in its state: a sentence, facts, and what would let it continue.",
        OneTask,
        ("GET /v1/tasks/{task_id}/why", TASK, OPERATOR),
        _why,
    ),
    OwnTool(
        "replay",
        "Submits an ended task again, as a new task.",
        Replay,
        ("POST /v1/tasks/{task_id}/replay", TASK, OPERATOR),
        _replay,
        changes=True,
        idempotent=False,
    ),
    OwnTool(
        "diff",
        "Compares the steps, outputs and costs of two tasks.",
        Diff,
        ("GET /v1/tasks/{task_id}/steps", TASK, OPERATOR),
        _diff,
    ),
    OwnTool(
        "dead_letters",
        "Lists failed tasks without a replay, grouped by kind of error.",
        DeadLetters,
        ("GET /v1/dead-letters", OPERATOR),
        _dead_letters,
    ),
)
BY_NAME = {tool.name: tool for tool in TOOLS}
NAMES = frozenset(BY_NAME)
