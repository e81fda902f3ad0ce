"""Journals of tasks as resources, and system prompts of agents as prompts: for keys that may read them."""

from __future__ import annotations

import json
import re
from typing import Any

from mcp.shared.exceptions import MCPError
from mcp_types import (
    INVALID_PARAMS,
    GetPromptResult,
    ListPromptsResult,
    ListResourcesResult,
    ListResourceTemplatesResult,
    Prompt,
    PromptMessage,
    ReadResourceResult,
    Resource,
    ResourceTemplate,
    TextContent,
    TextResourceContents,
)

from minions.errors import NotFound
from orchestrator.mcp import tasks
from orchestrator.mcp.agent_tools import AGENT_NAME
from orchestrator.mcp.callers import Caller, Terms
from shared.access.roles import MASK

JSON = "application/json"
JOURNAL = re.compile(r"minions://tasks/([0-9a-fA-F-]{32,36})/journal(?:\?after=([0-9]{1,9}))?")
TEMPLATE = "minions://tasks/{task_id}/journal{?after}"
STEPS = 200
RESOURCE_NOT_FOUND = -32002
"""Until 2025-11-25; later revisions have invalid parameters in its place."""


async def list_resources(caller: Caller, cursor: str | None) -> ListResourcesResult:
    """Return the journals of the latest tasks, the newest first."""
    page = await caller.api.page("/v1/tasks", cursor=cursor, namespace=caller.api.namespace)
    return ListResourcesResult(resources=[_journal(task) for task in page["items"]], next_cursor=page["next"])


def list_templates() -> ListResourceTemplatesResult:
    """Return the template of journals."""
    template = ResourceTemplate(
        name="journal",
        uri_template=TEMPLATE,
        mime_type=JSON,
        description=f"A task with {STEPS} steps of its journal, after the step `after`: for the next page, `next`.",
    )
    return ListResourceTemplatesResult(resource_templates=[template])


async def read(caller: Caller, uri: str) -> ReadResourceResult:
    """Return a task with a page of its journal.

    Raises:
        MCPError: there is no such resource.
    """
    found = JOURNAL.fullmatch(uri)
    if found is None:
        raise _unknown(caller, uri, f"There is no resource {uri[:200]!r}: journals are at {TEMPLATE}.")
    try:
        task = await tasks.find(caller, found[1])
    except NotFound as error:
        raise _unknown(caller, uri, error.message) from None
    page = await caller.api.page(f"/v1/tasks/{task.id}/steps", cursor=found[2], limit=STEPS)
    shown = {"task_id": task.id, "agent": task.agent, "state": task.state, "output": task.output, "error": task.error}
    text = json.dumps({**shown, "steps": page["items"], "next": page["next"]}, ensure_ascii=False)
    return ReadResourceResult(contents=[TextResourceContents(uri=uri, mime_type=JSON, text=text)])


async def list_prompts(caller: Caller, cursor: str | None) -> ListPromptsResult:
    """Return the agents with a model: their system prompts are prompts. A key that may not read them sees none."""
    if not (await Terms.of(caller.api)).may_read_prompts:
        return ListPromptsResult(prompts=[])
    page = await caller.api.page("/v1/agents", cursor=cursor, namespace=caller.api.namespace)
    prompts = [_prompt(agent) for agent in page["items"] if agent["model"] is not None]
    return ListPromptsResult(prompts=prompts, next_cursor=page["next"])


async def get_prompt(caller: Caller, name: str) -> GetPromptResult:
    """Return the system prompt of an agent.

    Raises:
        MinionsError: there is no such agent.
        MCPError: it has no system prompt, or the key may not read it.
    """
    if not AGENT_NAME.fullmatch(name):
        raise MCPError(INVALID_PARAMS, f"There is no prompt {name[:200]!r}.", {"code": "unknown_agent"})
    agent = await caller.api.agent(name, caller.api.namespace)
    text = agent["definition"].get("system_prompt")
    if not text or text == MASK:
        why = f"The agent {name!r} has no system prompt that this key may read."
        raise MCPError(INVALID_PARAMS, why, {"code": "not_found"})
    message = PromptMessage(role="user", content=TextContent(type="text", text=text))
    return GetPromptResult(description=agent["description"] or None, messages=[message])


def _journal(task: dict[str, Any]) -> Resource:
    return Resource(
        name=f"{task['agent'] or 'task'} {task['id']}",
        uri=f"minions://tasks/{task['id']}/journal",
        description=f"{task['state']}, submitted at {task['created_at']}",
        mime_type=JSON,
    )


def _prompt(agent: dict[str, Any]) -> Prompt:
    return Prompt(name=agent["name"], description=agent["description"] or f"The system prompt of {agent['name']}.")


def _unknown(caller: Caller, uri: str, text: str) -> MCPError:
    code = INVALID_PARAMS if caller.is_modern else RESOURCE_NOT_FOUND
    return MCPError(code, text, {"code": "not_found", "uri": uri[:2000]})
