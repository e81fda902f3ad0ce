"""Settings of an agent that one of its models cannot honour: they are refused when the agent is stored."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

from shared.contracts import sampling
from shared.contracts.context_edits import CLEAR_THINKING
from shared.contracts.model_features import can_be_fast, refuses_effort, refuses_thinking, takes_task_budget
from shared.contracts.sampling import AUTO, OFFLINE
from shared.providers import ANTHROPIC, split

if TYPE_CHECKING:
    from shared.contracts.documents import AgentConfig


def check(model: str, config: AgentConfig) -> None:
    """Refuse settings that no model, or one of the agent's models, can honour.

    Raises:
        ValueError: names the setting and the model, and what to do.
        InvalidDefinition: names a sampling setting.
    """
    if fault := next(_faults(model, config), None):
        raise ValueError(fault)
    for other in config.fallback_models:
        if split(other)[0] == ANTHROPIC:  # `definitions.provider_rules` knows the others.
            sampling.check(split(other)[1], config.sampling(), where="fallback_models")


def faults_of_thinking(model: str, config: AgentConfig) -> Iterator[str]:
    """Yield settings of `thinking` and `effort` that a Claude model is known to refuse, with what to do."""
    if config.thinking is not None and refuses_thinking(model, config.thinking):
        yield f"the model {model!r} refuses `thinking: {config.thinking}`: remove it, or use another model"
    if config.effort is not None and refuses_effort(model, config.effort):
        yield f"the model {model!r} refuses `effort: {config.effort}`: remove it, or use another model"


def _faults(model: str, config: AgentConfig) -> Iterator[str]:
    yield from _faults_of_fallback(model, config)
    if config.lane != "direct":
        if config.betas:
            yield "betas are headers, which all calls of a batch would have: remove `betas` or `lane`"
        if config.speed == "fast":
            yield "`speed: fast` is not possible in batches: remove `speed` or `lane`"
    if config.speed is not None and not can_be_fast(model):
        yield _misfit(model, "speed")
    edits = config.context_management
    if edits is not None and config.thinking == "disabled" and edits.edits[0].type == CLEAR_THINKING:
        yield f"context_management with {CLEAR_THINKING} must not come with `thinking: disabled`"
    for each in (model, *config.fallback_models):
        if config.task_budget and not takes_task_budget(each):
            yield _misfit(each, "task_budget")
        if edits is not None:
            for edit in edits.misfits(each):
                yield _misfit(each, f"context_management with {edit}")


def _faults_of_fallback(model: str, config: AgentConfig) -> Iterator[str]:
    others = config.fallback_models
    for each in others:
        if each in (AUTO, OFFLINE):
            yield f"fallback_models must name language models; {each!r} is none"
    if twice := next((each for each in others if [model, *others].count(each) > 1), None):
        yield f"fallback_models names {twice!r} twice, or it is the agent's model"


def _misfit(model: str, setting: str) -> str:
    if model == AUTO:
        return f"{setting} must come with a named model that supports it: `model: auto` may select another one"
    return f"the model {model!r} is not known to support {setting}: remove it, or use another model"
