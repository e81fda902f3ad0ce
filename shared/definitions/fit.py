"""Checks that agents of a chain can work together, that a model can call a tool, and that conditions can hold."""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Iterator, Mapping
from difflib import get_close_matches

from shared.contracts.approval_policy import ApprovalPolicy
from shared.contracts.constrained import unconstrainable
from shared.contracts.documents import AgentDefinition
from shared.contracts.json_schema import Pair, Schema, misfits
from shared.contracts.sampling import AUTO
from shared.definitions.provider_rules import strictness_fault
from shared.providers import Providers

# The rules of the Messages API for the input schema of a tool.
NOT_AT_THE_TOP = ("$ref", "oneOf", "anyOf", "allOf")
REFERRING = frozenset({"$ref", "allOf", "anyOf", "oneOf", "if", "patternProperties", "dependentSchemas"})
"""Keywords by which a schema may name further properties."""
PROPERTY = re.compile(r"[a-zA-Z0-9_.-]{1,64}")
ANSWER = {
    "type": "object",
    "properties": {"content": {"type": "string"}},
    "required": ["content"],
    "additionalProperties": False,
}
"""The output of an agent with a model for which no output schema is set."""


def model_misfit(wanted: Schema | bool | None) -> str | None:
    """Return the reason why the Messages API refuses a tool with this input schema, or None if it accepts it.

    A missing `type` is no reason, because it is supplied.
    """
    if wanted is None or isinstance(wanted, bool):
        return None
    if (said := wanted.get("type", "object")) != "object":
        return f'its `type` is {json.dumps(said)}, but must be "object"'
    for keyword in NOT_AT_THE_TOP:
        if keyword in wanted:
            return f"it has `{keyword}` at its top level, but the Messages API accepts that only inside `properties`"
    for name in wanted.get("properties", {}):
        if not PROPERTY.fullmatch(name):
            return f"its property {name[:100]!r} must have a name of 1 to 64 letters, digits, dots, _ and -"
    return None


def strict_misfit(wanted: Schema | bool | None, model: str, providers: Providers) -> str | None:
    """Return the reason why a model cannot be constrained to a tool's input schema, or None if it can.

    The model that `auto` selects is not known yet. If that cannot be constrained, the tool is sent without `strict`.
    """
    if not isinstance(wanted, dict) or not wanted:
        return "it has no input schema"
    if fault := unconstrainable({"type": "object", **wanted}):
        return f"a model cannot be constrained to its input schema: {fault}"
    return None if model == AUTO else strictness_fault(wanted, model, providers)


def condition_misfits(policy: ApprovalPolicy, inputs: Schema | None) -> Iterator[str]:
    """Yield the conditions of an approval policy that no arguments with this schema can match, with the reasons."""
    conditions = list(policy.conditions())
    faults = misfits([Pair(inputs, condition) for _, condition in conditions]) if inputs else []
    for (place, condition), fault in zip(conditions, faults, strict=False):
        if unknown := _unknown_property(condition, inputs or {}):
            yield f"{place}: {unknown}"
        elif fault:
            yield f"{place}: no arguments that the input schema allows can match this condition: {fault}"


def _unknown_property(condition: Schema, inputs: Schema) -> str | None:
    """Return the fault of a condition that names an argument which the input schema does not name."""
    known = inputs.get("properties", {})
    if not known or inputs.keys() & REFERRING:
        return None
    for name in [*condition.get("properties", {}), *condition.get("required", [])]:
        if name not in known:
            similar = get_close_matches(name[:255], known, n=1, cutoff=0.6)
            meant = f"Did you mean {similar[0]!r}?" if similar else f"It has {', '.join(map(repr, known))[:200]}."
            return f"the input schema has no property {name[:100]!r}. {meant}"
    return None


def chain_misfits(
    chains: Iterable[AgentDefinition], agents: Mapping[str, AgentDefinition]
) -> Iterator[tuple[str, str, str]]:
    """Yield the misfits of chains whose agents can never work together: chain, place in its definition, and reason.

    Args:
        agents: the active agents, by name.
    """
    joints = [(chain.name, *joint) for chain in chains for joint in _joints(chain, agents)]
    faults = misfits([pair for *_, pair in joints])
    for (chain, place, says, _), fault in zip(joints, faults, strict=True):
        if fault:
            yield chain, place, f"{says}: {fault}"


def _joints(chain: AgentDefinition, agents: Mapping[str, AgentDefinition]) -> Iterator[tuple[str, str, Pair]]:
    """Yield the pairs of schemas in a chain that must fit: the place, the text for a misfit, and both schemas."""
    comes: Schema | bool | None = chain.input_schema
    giver = "its input"
    sequential = chain.config.chain_strategy == "sequential"
    for position, relation in enumerate(chain.relations):
        agent = agents.get(relation.agent)
        if agent is None:
            continue
        pair = Pair(comes, agent.input_schema, element_of=relation.for_each)
        yield f"relations.{position}", f"{giver} never fits {agent.name!r}", pair
        if sequential:
            comes, giver = None if relation.for_each else returned(agent), f"the output of {agent.name!r}"
    if chain.relations and sequential:
        yield "output_schema", f"{giver} never fits it", Pair(comes, chain.output_schema)


def returned(agent: AgentDefinition) -> Schema | bool | None:
    """Return the schema of an agent's output, or None if its definition does not say."""
    return ANSWER if agent.type == "agent" and agent.output_schema is None else agent.output_schema
