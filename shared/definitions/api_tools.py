"""Checks that an agent's model can honour the tools that the API defines, and that it can tell its tools apart."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from shared.contracts.documents import AgentDefinition
from shared.contracts.sampling import OFFLINE
from shared.contracts.server_tools import API_TOOLS, RUN_BY_API, ToolNames, UrlSources, WebFetch

Stored = tuple[str, Mapping[str, Any]]
"""The name of a tool, and its stored definition."""


def unrunnable(target: Mapping[str, Any]) -> str | None:
    """Return the reason why an agent of type `function` cannot run a tool or function, or None."""
    if (kind := target.get("type")) in RUN_BY_API:
        return f"a tool of type {kind} is run by a model's API, so an agent of type: function cannot run it"
    return None


def api_tool_misfits(agent: AgentDefinition, tools: Sequence[Stored]) -> Iterator[str]:
    """Yield the reasons why an agent's model cannot have these tools: the place in its definition, and the fault."""
    names: dict[str, str] = {}
    for position, (name, definition) in enumerate(tools):
        place = f"tools.{position}"
        models = (str(agent.model), *agent.config.fallback_models)
        yield from (f"{place}: {fault}" for model in models if (fault := _fault(model, name, definition)))
        if definition.get("defer_loading") and agent.config.tool_search is None and agent.config.code_mode is None:
            yield (
                f"{place}: the tool {name!r} has defer_loading, so the agent must have `config.tool_search` or "
                "`config.code_mode`"
            )
        called = wire_name(name, definition)
        if called in names:
            yield f"{place}: models call both {names[called]!r} and {name!r} by the name {called!r}. Keep one of them"
        names[called] = name
    search = agent.config.tool_search
    if search is not None and search.name in names:
        yield f"config.tool_search: the tool {names[search.name]!r} has the name of the search itself"
    for position, (_, definition) in enumerate(tools):
        yield from _unknown_sources(f"tools.{position}", definition, names)


def wire_name(name: str, definition: Mapping[str, Any]) -> str:
    """Return the name by which models call a tool: the API names those that it defines."""
    kind: str = definition["type"]
    return API_TOOLS[kind].NAME if kind in API_TOOLS else name


def _fault(model: str, name: str, definition: Mapping[str, Any]) -> str | None:
    kind = definition["type"]
    if kind not in API_TOOLS:
        return None
    if model == OFFLINE:
        return f"the offline planner cannot use the tool {name!r}: its type {kind} must come with a language model"
    fault = API_TOOLS[kind].model_validate(definition[kind]).misfit(model)
    return f"the tool {name!r} of type {kind}: {fault}" if fault else None


def _unknown_sources(place: str, definition: Mapping[str, Any], names: Mapping[str, str]) -> Iterator[str]:
    """Yield names in `url_sources` that are not those of tools of the agent, which the API would refuse."""
    if definition["type"] != WebFetch.NAME:
        return
    sources = WebFetch.model_validate(definition[WebFetch.NAME]).url_sources or UrlSources()
    for field in ("client_tool_results", "server_tool_results"):
        chosen = getattr(sources, field)
        listed = (chosen.only or chosen.all_but or []) if isinstance(chosen, ToolNames) else []
        for name in listed:
            if name not in names:
                yield f"{place}: web_fetch.url_sources.{field} names {name!r}, which is not one of the agent's tools"
