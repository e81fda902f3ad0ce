"""What every model client is to an agent: a conversation in, one reply out, in the Messages API's block format."""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, Protocol

from shared.contracts.strict_json import JsonValue, whole
from shared.storable import LONE_SURROGATE, storable

Block = dict[str, Any]

INVALID_JSON = "INVALID_JSON"
"""The only name in a tool's input that could not be read; its value is what the model wrote."""

# Short words and JSON; an estimate is to be too high rather than too low. Bytes of UTF-8: where a character may be a
# token of its own, as in Chinese, it has three.
BYTES_A_TOKEN = 3.0


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
        messages: `{"role": "user" | "assistant" | "system", "content": text or blocks}`, oldest first. A tool's result
            is JSON text, or the text of an error.
        input: the task's input as JSON, which the offline planner reads instead of understanding the text.
        sampling: only settings that differ from neutral.
        thinking: `adaptive`, `disabled`, or the most tokens to think with; None: as the model does by itself.
        effort: how much the model puts into its answer; None: as it does by itself.
        namespace: of the task, whose limits hold.
        results_as_json: a tool's text is sent as JSON, as 0.2 did.
    """

    model: str
    system: str
    messages: list[dict[str, Any]]
    tools: tuple[ToolSpec, ...]
    max_tokens: int
    input: JsonValue = None
    output_schema: dict[str, Any] | None = None
    sampling: dict[str, float] = field(default_factory=dict)
    thinking: str | int | None = None
    effort: str | None = None
    namespace: str = "default"
    results_as_json: bool = False

    def estimated_tokens(self) -> int:
        """How many tokens the input may have, without asking anybody."""
        tools = [[tool.name, tool.description, tool.input_schema] for tool in self.tools]
        text = json.dumps([self.system, tools, self.messages], ensure_ascii=False)
        return math.ceil(len(text.encode("utf-8", "surrogatepass")) / BYTES_A_TOKEN)


@dataclass(frozen=True, slots=True)
class ModelReply:
    """What the model answered: blocks, why it stopped, and what it used.

    Attributes:
        input_tokens: all, those that were read from the prompt cache or written to it included.
        used_besides: what else explains the cost, such as searches on the web; no zeros.
        cost_microdollars: None where nobody knows: the model has no price here, or the API did not say what was used.
        stop_details: what the API says about a refusal.
        exact: the content's JSON text as it came, where characters of it were replaced because they cannot be stored.
    """

    content: list[Block]
    stop_reason: str
    model: str
    input_tokens: int = 0
    output_tokens: int = 0
    cache_read_tokens: int = 0
    cache_write_tokens: int = 0
    used_besides: dict[str, int] = field(default_factory=dict)
    cost_microdollars: int | None = 0
    stop_details: dict[str, Any] | None = None
    exact: str | None = None

    def as_json(self) -> dict[str, Any]:
        """For the journal."""
        rare = {"stop_details": self.stop_details, "exact": self.exact}
        said = {name: value for name, value in rare.items() if value}
        return {"content": self.content, "stop_reason": self.stop_reason, "model": self.model, **said}


def joined(text: str) -> str:
    """A text whose surrogate pairs were cut apart, as some gateways cut it, is whole again."""
    return text if text.isascii() else text.encode("utf-16", "surrogatepass").decode("utf-16", "surrogatepass")


def exact_content(reply: dict[str, Any]) -> list[Block]:
    """The blocks of a reply that the journal keeps, for the API: exactly as they came, since thoughts are signed."""
    blocks: list[Block] = reply["content"]
    return whole(storable(json.loads(reply["exact"]), LONE_SURROGATE)) if "exact" in reply else blocks


def text_in(reply: dict[str, Any]) -> str:
    """What a reply says, as the journal keeps it."""
    return "".join(block["text"] for block in reply["content"] if block["type"] == "text").strip()


def json_in(answer: str) -> str:
    """The JSON in an answer that wraps it in a code fence."""
    if answer.startswith("```") and answer.endswith("```"):
        return answer.removeprefix("```json").removeprefix("```").removesuffix("```").strip()
    return answer


class ModelClient(Protocol):
    """A provider of models."""

    def complete(self, request: ModelRequest, on_text: Callable[[str], None]) -> ModelReply:
        """Makes one model turn.

        Args:
            on_text: is told the text as it comes.

        Raises:
            Postponed: the model's limits permit no call now.
            ModelUnavailable: the provider did not answer; the request may be made again.
            ModelError: the provider refused it.
        """

    def count_tokens(self, request: ModelRequest) -> int:
        """The tokens of a request's input; an estimate that is rather too high where the provider does not say."""
