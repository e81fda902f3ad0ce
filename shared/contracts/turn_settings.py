"""Settings of an agent for each request to its model, beside sampling."""

from __future__ import annotations

from typing import Annotated, Literal, Self, get_args

from pydantic import Field, StringConstraints, model_validator

from shared.contracts.strict_model import Strict

NAMES = (
    *("tool_choice", "stop_sequences", "service_tier", "user_id", "betas", "citations"),
    *("fallback_models", "speed", "context_management", "task_budget"),
)
"""Of the settings, in an agent's config."""

StopSequence = Annotated[str, StringConstraints(min_length=1, max_length=1000, pattern=r"\S")]
Beta = Annotated[str, StringConstraints(pattern=r"^[a-z0-9][a-z0-9.-]{0,99}$")]
ServiceTier = Literal["auto", "standard_only"]
UserId = Literal["tenant_hash", "tenant"]
"""The tenant key as `metadata.user_id`: its hash, or the key itself if that identifies no person."""
Speed = Literal["fast", "standard"]
FallbackReason = Literal["refusal", "unavailable"]
"""The reasons to ask another model: the model refused to answer, or its API did not answer for too long."""
FALLBACK_REASONS: tuple[FallbackReason, ...] = get_args(FallbackReason)


class ToolChoice(Strict):
    """Which tools the model may or must call.

    Attributes:
        type: `auto`: any or none; `any`: at least one; `tool`: the one with this name; `none`: none.
        turns: `first`: only in the first turn of a task. Forced calls are for that turn, because in all turns they
            would leave no turn for an answer.
        parallel: whether the model may call several tools in one turn.
    """

    type: Literal["auto", "any", "tool", "none"]
    name: str | None = Field(None, max_length=64)
    turns: Literal["first", "all"] | None = None
    parallel: bool = True

    @property
    def forces(self) -> bool:
        """Return whether the model must call a tool."""
        return self.type in ("any", "tool")

    @property
    def first_turn_only(self) -> bool:
        """Return whether it is for the first turn of a task."""
        return self.forces or self.turns == "first"

    @model_validator(mode="after")
    def _fits(self) -> Self:
        if (self.type == "tool") != (self.name is not None):
            raise ValueError("tool_choice must have `name` with `type: tool`, and only then")
        if self.forces and self.turns == "all":
            raise ValueError(
                f"tool_choice with `type: {self.type}` forces a call, so it must be for the first turn: in all turns "
                "it would leave none for an answer"
            )
        if self.type == "none" and not self.parallel:
            raise ValueError("tool_choice with `type: none` must not have `parallel`: there are no calls")
        return self
