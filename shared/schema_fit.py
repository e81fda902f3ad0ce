"""Whether what one agent returns can be what the next one takes, and what a model gives what a tool takes, as far as
their schemas tell.

JSON Schema cannot be compared in general. This finds what is certainly wrong, and says nothing where it is not sure:
each keyword only narrows a schema, so what two of them exclude stays excluded whatever the others say.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping
from typing import Any

from shared.json_schema import violations
from shared.schemas import AgentDefinition

Schema = dict[str, Any] | bool

KINDS = frozenset({"null", "boolean", "number", "string", "array", "object"})
# What the Messages API takes for a tool.
NOT_AT_THE_TOP = ("$ref", "oneOf", "anyOf", "allOf")
PROPERTY = re.compile(r"[a-zA-Z0-9_.-]{1,64}")
ANSWER = {
    "type": "object",
    "properties": {"content": {"type": "string"}},
    "required": ["content"],
    "additionalProperties": False,
}
"""What a model returns for which no output schema is set."""


def misfit(given: Schema | None, wanted: Schema | None, path: str = "$") -> str | None:
    """Why no value of one schema can ever be one of the other, with the path; None where there may be one."""
    if given is None or wanted is None or isinstance(given, bool) or isinstance(wanted, bool):
        return f"{path}: nothing is taken" if wanted is False else None
    here, there = _kinds(given), _kinds(wanted)
    if not here & there:
        return f"{path}: {_listed(here)} comes, and {_listed(there)} is taken"
    if values := _values(given):
        if all(violations(wanted, value) for value in values):
            return f"{path}: {', '.join(map(repr, values))[:200]} comes, which is not taken"
        return None
    return _object_misfit(given, wanted, path) if here & there == {"object"} else None


def model_misfit(wanted: Schema | None) -> str | None:
    """Why the Messages API refuses every request with a tool of this input schema; None where it takes it.

    (It asks for a `type` too, which is supplied where there is none.)
    """
    if wanted is None or isinstance(wanted, bool):
        return None
    if (said := wanted.get("type", "object")) != "object":
        return f'its `type` is {json.dumps(said)}, and what a model gives is an "object"'
    for keyword in NOT_AT_THE_TOP:
        if keyword in wanted:
            return f"it has `{keyword}` at its top, and the Messages API takes that inside of `properties` only"
    for name in wanted.get("properties", {}):
        if not PROPERTY.fullmatch(name):
            return f"its property {name[:100]!r} is no name of 1 to 64 letters, digits, dots, _ and -"
    return None


def chain_misfits(chain: AgentDefinition, agents: Mapping[str, AgentDefinition]) -> Iterator[tuple[str, str]]:
    """Where the agents of a chain can never work together: places in its definition, and why.

    Args:
        agents: the active ones, by name.
    """
    comes: Schema | None = chain.input_schema
    giver = "what it is given"
    for position, relation in enumerate(chain.relations):
        agent = agents.get(relation.agent)
        if agent is None:
            continue
        taken = _element(comes, relation.for_each) if relation.for_each else comes
        if fault := misfit(taken, agent.input_schema):
            yield f"relations.{position}", f"{giver} never fits {agent.name!r}: {fault}"
        if chain.config.chain_strategy == "sequential":
            comes, giver = None if relation.for_each else returned(agent), f"what {agent.name!r} returns"
    if (
        chain.relations
        and chain.config.chain_strategy == "sequential"
        and (fault := misfit(comes, chain.output_schema))
    ):
        yield "output_schema", f"{giver} never fits it: {fault}"


def returned(agent: AgentDefinition) -> Schema | None:
    """The schema of what an agent returns, as far as its definition tells."""
    return ANSWER if agent.type == "agent" and agent.output_schema is None else agent.output_schema


def _element(schema: Schema | None, name: str) -> Schema | None:
    """The schema of the elements of a property that is a list."""
    properties = schema.get("properties", {}) if isinstance(schema, dict) else {}
    listed = properties.get(name)
    element: Schema | None = listed.get("items") if isinstance(listed, dict) else None
    return element


def _kinds(schema: dict[str, Any]) -> frozenset[str]:
    said = schema.get("type")
    if said is None:
        return KINDS
    return frozenset("number" if kind == "integer" else kind for kind in ([said] if isinstance(said, str) else said))


def _values(schema: dict[str, Any]) -> list[Any]:
    """All values that a schema allows, where it lists them."""
    return [schema["const"]] if "const" in schema else list(schema.get("enum", []))


def _object_misfit(given: dict[str, Any], wanted: dict[str, Any], path: str) -> str | None:
    comes, taken = given.get("properties", {}), wanted.get("properties", {})
    needed, sure = set(wanted.get("required", [])), set(given.get("required", []))
    for name in sorted(needed - set(comes)):
        if _closed(given):
            return f"{path}: {name!r} is needed, and never comes"
    for name in sorted(sure - set(taken)):
        if _closed(wanted):
            return f"{path}: {name!r} always comes, and is not taken"
    for name in sorted((needed | sure) & set(comes) & set(taken)):
        if fault := misfit(comes[name], taken[name], f"{path}.{name}"):
            return fault
    return None


def _closed(schema: dict[str, Any]) -> bool:
    return schema.get("additionalProperties") is False and not schema.get("patternProperties")


def _listed(kinds: frozenset[str]) -> str:
    return " or ".join(sorted(kinds))
