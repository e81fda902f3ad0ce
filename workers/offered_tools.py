"""The tools that a task offers its model, turn by turn: with what is left of the limits of those that the API runs.

A reply's step records what it used of them, and in which container the API ran code. A task that runs again reads this
back, so its limits and its container are the same.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from typing import Any

from shared.contracts.documents import AgentConfig
from shared.contracts.server_tools import ApiTool, WebTool
from shared.contracts.turn_settings import ToolChoice
from workers.llm.base import ModelReply, ToolSpec
from workers.tools.approval import ApprovedTool
from workers.tools.base import Tool
from workers.tools.memory import MemoryTool
from workers.tools.server import ServerTool

CONTAINER_LIFE = timedelta(days=29)
"""Containers expire 30 days after their creation. The API's `expires_at` is earlier, and does not end their use."""


class OfferedTools:
    """The tools of one task.

    Attributes:
        callable: the tools that this worker runs, by the names by which the model calls them.
    """

    def __init__(self, config: AgentConfig, tools: Sequence[Tool]) -> None:
        self.config = config
        self.specs = tuple(self._spec(position, tool) for position, tool in enumerate(tools))
        self.callable = {
            spec.name: tool for spec, tool in zip(self.specs, tools, strict=True) if not isinstance(tool, ServerTool)
        }
        # An agent names its tools; the API names those that it defines.
        self._names = {tool.name: spec.name for spec, tool in zip(self.specs, tools, strict=True)}
        self._used: Counter[str] = Counter()
        self._pending: frozenset[str] = frozenset()
        self._container: dict[str, Any] = {}

    def tools(self) -> tuple[ToolSpec, ...]:
        """Return the tools of the next turn, without those whose uses are used up."""
        left = (self._left(spec) for spec in self.specs)
        return tuple(spec for spec in left if spec is not None)

    def choice(self, tools: tuple[ToolSpec, ...], *, is_first: bool) -> ToolChoice | None:
        """Return the agent's choice of tools for a turn, with the API's names."""
        choice = self.config.tool_choice
        if choice is None or not tools or (choice.first_turn_only and not is_first):
            return None
        return choice.model_copy(update={"name": self._names.get(choice.name or "", choice.name)})

    def container(self) -> str | None:
        """Return the container in which the API has run code for this task, unless it has expired."""
        if "since" not in self._container:
            return None
        since = datetime.fromisoformat(self._container["since"])
        name: str | None = self._container["id"]
        return name if datetime.now(UTC) - since < CONTAINER_LIFE else None

    def used_by(self, reply: ModelReply) -> dict[str, Any]:
        """Return what a reply's step records besides the reply: uses of tools that have a limit, and the container."""
        limited = [spec.name for spec in self.specs if isinstance(spec.api_tool, WebTool)]
        uses = {name: count for name in limited if (count := _uses(reply, name))}
        recorded: dict[str, Any] = {"server_tool_uses": uses} if uses else {}
        if (container := reply.container) is not None:
            known = self._container if container["id"] == self._container.get("id") else {}
            since = known.get("since") or datetime.now(UTC).isoformat()
            recorded["container"] = {**container, "since": since} if container["id"] else container
        return recorded

    def note(self, reply: dict[str, Any]) -> None:
        """Take in a recorded reply."""
        self._used.update(reply.get("server_tool_uses", {}))
        self._container = reply.get("container", self._container)
        answered = {block.get("tool_use_id") for block in reply["content"]}
        begun = (block for block in reply["content"] if block["type"] == "server_tool_use")
        self._pending = frozenset(block["name"] for block in begun if block.get("id") not in answered)

    def _spec(self, position: int, tool: Tool) -> ToolSpec:
        search = self.config.tool_search
        behind = search is not None and search.loaded is not None and position >= search.loaded
        api_tool = api_tool_of(tool)
        if api_tool is not None:
            return ToolSpec(api_tool.NAME, "", {}, api_tool=api_tool)
        # The API requires the type `object`, which a model's input has anyway.
        schema = {"type": "object", **(tool.input_schema or {})}
        return ToolSpec(tool.name, tool.description, schema, tool.strict, deferred=behind or tool.deferred)

    def _left(self, spec: ToolSpec) -> ToolSpec | None:
        tool = spec.api_tool
        if not isinstance(tool, WebTool) or tool.max_uses_per_task is None:
            return spec
        # A call that has begun is made in the next turn, for which the API needs the tool.
        least = 1 if spec.name in self._pending else 0
        left = max(least, tool.max_uses_per_task - self._used[spec.name])
        return replace(spec, api_tool=tool.model_copy(update={"max_uses": min(tool.max_uses, left)})) if left else None


def api_tool_of(tool: Tool) -> ApiTool | None:
    """Return the settings of a tool that the API defines, or None."""
    inner = tool.tool if isinstance(tool, ApprovedTool) else tool
    return inner.settings if isinstance(inner, ServerTool | MemoryTool) else None


def _uses(reply: ModelReply, name: str) -> int:
    """Return how often a reply used a tool, as the API counts it; a gateway may leave the count out."""
    counted: int = reply.used_besides.get(f"{name}_requests", 0)
    asked = (block for block in reply.content if block["type"] == "server_tool_use" and block.get("name") == name)
    refused = sum(_is_refused(block, name) for block in reply.content)
    return max(counted, sum(1 for _ in asked) - refused)


def _is_refused(block: dict[str, Any], name: str) -> bool:
    content = block.get("content")
    return (
        block["type"] == f"{name}_tool_result"
        and isinstance(content, dict)
        and content.get("error_code") == "max_uses_exceeded"
    )
