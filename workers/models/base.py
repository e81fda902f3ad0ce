"""What every model client is to an agent: a conversation in, one reply out, in the Messages API's block format."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, Protocol

from shared.json_values import JsonValue

Block = dict[str, Any]


@dataclass(frozen=True, slots=True)
class ToolSpec:
    """A tool as the model sees it."""

    name: str
    description: str
    input_schema: dict[str, Any]


@dataclass(frozen=True, slots=True)
class ModelRequest:
    """One model turn.

    Attributes:
        messages: `{"role": "user" | "assistant", "content": text or blocks}`, oldest first.
        input: the task's input as JSON, which the offline planner reads instead of understanding the text.
        sampling: only settings that differ from neutral.
    """

    model: str
    system: str
    messages: list[dict[str, Any]]
    tools: tuple[ToolSpec, ...]
    max_tokens: int
    input: JsonValue = None
    output_schema: dict[str, Any] | None = None
    sampling: dict[str, float] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class ModelReply:
    """What the model answered: blocks, why it stopped, and what it used. A cost of 0 means that no price is known."""

    content: list[Block]
    stop_reason: str
    model: str
    input_tokens: int = 0
    output_tokens: int = 0
    cost_microdollars: int = 0

    def as_json(self) -> dict[str, Any]:
        """For the journal."""
        return {"content": self.content, "stop_reason": self.stop_reason, "model": self.model}


class ModelClient(Protocol):
    """A provider of models."""

    def complete(self, request: ModelRequest) -> ModelReply:
        """Makes one model turn.

        Raises:
            ModelError: the provider refused, or could not be reached; `retryable` says whether to try again.
        """
