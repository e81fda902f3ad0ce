"""Edits that the API makes to a long conversation before the model reads it: `context_management` of a request.

The fields and their names are those of the Messages API, which documents what each edit does.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Annotated, Any, Literal, Self

from pydantic import Field, model_validator

from shared.contracts.model_features import can_clear, can_compact
from shared.contracts.strict_model import Strict

COMPACT = "compact_20260112"
CLEAR_THINKING = "clear_thinking_20251015"
COMPACTION_TOKENS = 150_000
"""Input tokens at which the API compacts, unless an edit says otherwise."""
BETA_OF_COMPACTION = "compact-2026-01-12"
BETA_OF_CLEARING = "context-management-2025-06-27"

MOST = 100_000_000
ToolName = Annotated[str, Field(min_length=1, max_length=64)]


class InputTokens(Strict):
    """A number of input tokens."""

    type: Literal["input_tokens"]
    value: int = Field(ge=1, le=MOST)


class CompactionTokens(InputTokens):
    """The number of input tokens at which the conversation is compacted."""

    value: int = Field(ge=50_000, le=MOST)


class ToolUses(Strict):
    """A number of tool uses."""

    type: Literal["tool_uses"]
    value: int = Field(ge=0, le=MOST)


class ThinkingTurns(Strict):
    """A number of the model's latest turns."""

    type: Literal["thinking_turns"]
    value: int = Field(ge=1, le=MOST)


class Compact(Strict):
    """Replaces the conversation by a summary when it has become too long."""

    type: Literal["compact_20260112"]
    trigger: CompactionTokens | None = None
    instructions: str | None = Field(None, min_length=1, max_length=100_000, pattern=r"\S")
    pause_after_compaction: bool | None = None

    @property
    def tokens(self) -> int:
        """Return the input tokens at which it compacts."""
        return self.trigger.value if self.trigger else COMPACTION_TOKENS


class ClearToolUses(Strict):
    """Removes the oldest results of tools."""

    type: Literal["clear_tool_uses_20250919"]
    trigger: InputTokens | ToolUses | None = None
    keep: ToolUses | None = None
    clear_at_least: InputTokens | None = None
    exclude_tools: list[ToolName] | None = Field(None, max_length=128)
    clear_tool_inputs: bool | list[ToolName] | None = None


class ClearThinking(Strict):
    """Removes the oldest thoughts."""

    type: Literal["clear_thinking_20251015"]
    keep: ThinkingTurns | Literal["all"] | None = None


Edit = Annotated[Compact | ClearToolUses | ClearThinking, Field(discriminator="type")]


class ContextManagement(Strict):
    """The edits of an agent's conversations, in the order in which they are applied."""

    edits: list[Edit] = Field(min_length=1, max_length=3)

    @model_validator(mode="after")
    def _fit_together(self) -> Self:
        types = [edit.type for edit in self.edits]
        if len({*types}) != len(types):
            raise ValueError("context_management must have each type of edit once")
        if CLEAR_THINKING in types[1:]:
            raise ValueError(f"context_management must have {CLEAR_THINKING} as its first edit")
        return self

    @property
    def compaction(self) -> Compact | None:
        """Return the edit that compacts."""
        return next((edit for edit in self.edits if isinstance(edit, Compact)), None)

    def betas(self) -> Iterator[str]:
        """Yield the beta headers that the edits need."""
        if self.compaction:
            yield BETA_OF_COMPACTION
        if any(edit.type != COMPACT for edit in self.edits):
            yield BETA_OF_CLEARING

    def tool_names(self) -> Iterator[str]:
        """Yield the names of tools in the edits."""
        for edit in self.edits:
            if isinstance(edit, ClearToolUses):
                yield from edit.exclude_tools or ()
                yield from edit.clear_tool_inputs if isinstance(edit.clear_tool_inputs, list) else ()

    def with_names(self, names: Mapping[str, str]) -> ContextManagement:
        """Return the edits with other names of tools."""
        return self.model_copy(update={"edits": [_renamed(edit, names) for edit in self.edits]})

    def as_sent(self) -> dict[str, Any]:
        """Return it in the form of the API."""
        return self.model_dump(exclude_none=True)

    def misfits(self, model: str) -> Iterator[str]:
        """Yield the types of edits that a model does not have."""
        for edit in self.edits:
            if not (can_compact if edit.type == COMPACT else can_clear)(model):
                yield edit.type


def _renamed(edit: Edit, names: Mapping[str, str]) -> Edit:
    if not isinstance(edit, ClearToolUses):
        return edit
    listed = {name: getattr(edit, name) for name in ("exclude_tools", "clear_tool_inputs")}
    return edit.model_copy(
        update={
            name: [names.get(each, each) for each in tools] for name, tools in listed.items() if isinstance(tools, list)
        }
    )
