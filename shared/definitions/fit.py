"""Whether what one agent returns can be what the next one takes, and what a model gives what a tool takes."""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

from shared.contracts.documents import AgentDefinition
from shared.contracts.json_schema import Pair, misfits

Schema = dict[str, Any] | bool

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


def chain_misfits(
    chains: Iterable[AgentDefinition], agents: Mapping[str, AgentDefinition]
) -> Iterator[tuple[str, str, str]]:
    """Where the agents of chains can never work together: the chain, the place in its definition, and why.

    Args:
        agents: the active ones, by name.
    """
    joints = [(chain.name, *joint) for chain in chains for joint in _joints(chain, agents)]
    faults = misfits([pair for *_, pair in joints])
    for (chain, place, says, _), fault in zip(joints, faults, strict=True):
        if fault:
            yield chain, place, f"{says}: {fault}"


def _joints(chain: AgentDefinition, agents: Mapping[str, AgentDefinition]) -> Iterator[tuple[str, str, Pair]]:
    """Where one schema of a chain meets another: the place, the text for a misfit, and both schemas."""
    comes: Schema | None = chain.input_schema
    giver = "what it is given"
    sequential = chain.config.chain_strategy == "sequential"
    for position, relation in enumerate(chain.relations):
        agent = agents.get(relation.agent)
        if agent is None:
            continue
        pair = Pair(comes, agent.input_schema, element_of=relation.for_each)
        yield f"relations.{position}", f"{giver} never fits {agent.name!r}", pair
        if sequential:
            comes, giver = None if relation.for_each else returned(agent), f"what {agent.name!r} returns"
    if chain.relations and sequential:
        yield "output_schema", f"{giver} never fits it", Pair(comes, chain.output_schema)


def returned(agent: AgentDefinition) -> Schema | None:
    """The schema of what an agent returns, as far as its definition tells."""
    return ANSWER if agent.type == "agent" and agent.output_schema is None else agent.output_schema
