"""Tools that the Messages API defines, in the form in which they are sent. None of them needs a beta."""

from __future__ import annotations

from collections import OrderedDict
from typing import Any

from shared.contracts.server_tools import (
    ApiTool,
    ToolNames,
    ToolSearch,
    UrlSources,
    WebFetch,
    WebSearch,
    WebTool,
    filters,
    tool_search_misfit,
)
from shared.errors import ModelError
from workers.llm.base import ModelRequest, ToolSpec
from workers.llm.structured import tool_of

SEARCH_VERSION = "20251119"
# Statuses with which the API refuses a container that it does not have.
GONE = (400, 404, 410)
MOST_LOST = 1000
_lost: OrderedDict[str, None] = OrderedDict()
"""Containers that batches have found to be gone, the latest last."""


def tools_of(request: ModelRequest) -> list[dict[str, Any]]:
    """Return the tools of a request.

    Raises:
        ModelError: the model does not take one of them.
    """
    search = [_search(request.tool_search, request.model)] if request.tool_search else []
    return [*search, *(_tool(tool, request.model) for tool in request.tools)]


def has_lost_container(request: ModelRequest, error: ModelError) -> bool:
    """Return whether the API refused a call because its container has expired: such a call can be made without it."""
    return (
        request.container is not None
        and error.detail.get("http_status") in GONE
        and "container" in error.message.lower()
    )


def forget_container(request: ModelRequest, error: ModelError) -> bool:
    """Send a container no more in batches if the API refused a call because of it; return whether it did."""
    if known_container(request) is None or not has_lost_container(request, error):
        return False
    _lost[str(request.container)] = None
    while len(_lost) > MOST_LOST:
        _lost.popitem(last=False)
    return True


def known_container(request: ModelRequest) -> str | None:
    """Return the container of a request in a batch, unless it is known to be gone."""
    return None if request.container in _lost else request.container


def _tool(tool: ToolSpec, model: str) -> dict[str, Any]:
    if tool.api_tool is None:
        return tool_of(tool, model)
    # For `model: auto`, it was not known when the agent was stored.
    if fault := tool.api_tool.misfit(model):
        raise ModelError(f"The tool {tool.api_tool.NAME!r} cannot be sent: {fault}.")
    return {"type": tool.api_tool.version(model), "name": tool.api_tool.NAME, **_settings(tool.api_tool, model)}


def _settings(tool: ApiTool, model: str) -> dict[str, Any]:
    """Return the settings that are the API's."""
    if not isinstance(tool, WebTool):
        return {}
    # On models that filter, a call from code would be the default.
    direct = ["direct"] if tool.dynamic_filtering is False and filters(model) else None
    given: dict[str, Any] = {
        "max_uses": tool.max_uses,
        "allowed_domains": tool.allowed_domains,
        "blocked_domains": tool.blocked_domains,
        "allowed_callers": direct,
        "response_inclusion": tool.response_inclusion,
    }
    if isinstance(tool, WebSearch) and tool.user_location:
        given["user_location"] = {"type": "approximate", **tool.user_location.model_dump()}
    if isinstance(tool, WebFetch):
        given |= {
            "citations": {"enabled": True} if tool.citations else None,
            "max_content_tokens": tool.max_content_tokens,
            "use_cache": tool.use_cache,
            "url_sources": tool.url_sources and _sources(tool.url_sources),
        }
    return {name: value for name, value in given.items() if value is not None}


def _sources(sources: UrlSources) -> dict[str, Any]:
    given = {name: getattr(sources, name) for name in type(sources).model_fields}
    return {name: _source(value) for name, value in given.items() if value is not None}


def _source(source: str | ToolNames) -> dict[str, Any]:
    if isinstance(source, str):
        return {"type": source}
    kind, names = ("only", source.only) if source.only else ("except", source.all_but)
    return {"type": kind, "tools": [{"type": "tool_reference", "name": name} for name in names or ()]}


def _search(search: ToolSearch, model: str) -> dict[str, Any]:
    if fault := tool_search_misfit(model):
        raise ModelError(f"The agent's tool_search cannot be sent: {fault}.")
    return {"type": f"{search.name}_{SEARCH_VERSION}", "name": search.name}
