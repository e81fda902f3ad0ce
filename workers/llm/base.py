"""Interface between model clients and agents: a conversation in, one reply out, in the Messages API's block format."""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, Protocol, runtime_checkable

from shared.contracts.context_edits import ContextManagement
from shared.contracts.server_tools import ApiTool, ToolSearch
from shared.contracts.strict_json import JsonValue, whole
from shared.contracts.turn_settings import ServiceTier, Speed, ToolChoice
from shared.storable import LONE_SURROGATE, storable
from shared.tasks.throttles import ModelRate
from workers.llm.media_tokens import without_media

Block = dict[str, Any]

INVALID_JSON = "INVALID_JSON"
"""The only name in an unreadable tool input; its value is the text that the model wrote."""

# Short words and JSON; an estimate should err on the high side. Bytes of UTF-8: in scripts where a character
# may be a token, such as Chinese, it has three bytes.
BYTES_A_TOKEN = 3.0


@dataclass(frozen=True, slots=True)
class ToolSpec:
    """A tool as the model sees it.

    Attributes:
        strict: the model can write only input that matches the schema.
        api_tool: the settings of a tool that the API defines. It has no description or schema of ours.
        deferred: the model has to find the tool by a search before it can call it.
    """

    name: str
    description: str
    input_schema: dict[str, Any]
    strict: bool = False
    api_tool: ApiTool | None = None
    deferred: bool = False


@dataclass(frozen=True, slots=True)
class ModelRequest:
    """One model turn.

    Attributes:
        messages: `{"role": "user" | "assistant" | "system", "content": text or blocks}`, oldest first. A tool's result
            is JSON text, the text of an error, or blocks. Files are in base64, or where the provider reads them.
        input: the task's input as JSON, which the offline planner reads instead of understanding the text.
        sampling: only settings that differ from neutral.
        thinking: `adaptive`, `disabled`, or the maximum number of tokens to think with; None: the model's default.
        effort: how much effort the model puts into its answer; None: the model's default.
        tool_choice: which tools this turn may or must call; None: the model decides.
        stop_sequences: texts at which the model ends its answer.
        service_tier: `auto` or `standard_only`; None: the provider's default.
        user_id: identifies the provider's end user; None: none is sent.
        betas: features of the provider that are not on by default.
        other_models: models that may make other turns of the task.
        speed: None: the provider's default.
        context_management: edits of the conversation that the provider makes; None: none.
        task_budget: tokens that the model learns it may use for the whole task; None: it learns none.
        diagnosed: ask why the prompt cache could not be used.
        previous_reply: id of the reply whose prompt the cache should contain, if there is one.
        lateness: probability that the next turn begins after more than five minutes.
        in_batch: the call is made in a batch.
        tool_search: the search by which the model finds deferred tools.
        container: the provider's container in which earlier turns ran code.
        constrained: the model can write only answers that match `output_schema`, if it and the schema permit that.
        namespace: of the task, whose limits apply.
        results_as_json: send a tool's text as JSON, as 0.2 did.
        before_sending: called before each request; raises Postponed if no request may be sent now.
        rates: returns the configured limits of the model if they were read just now, else None.
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
    tool_choice: ToolChoice | None = None
    stop_sequences: tuple[str, ...] = ()
    service_tier: ServiceTier | None = None
    user_id: str | None = None
    betas: tuple[str, ...] = ()
    other_models: tuple[str, ...] = ()
    speed: Speed | None = None
    context_management: ContextManagement | None = None
    task_budget: int | None = None
    diagnosed: bool = False
    previous_reply: str | None = None
    lateness: float = 0.0
    in_batch: bool = False
    tool_search: ToolSearch | None = None
    container: str | None = None
    constrained: bool = False
    namespace: str = "default"
    results_as_json: bool = False
    before_sending: Callable[[], None] = field(default=lambda: None, compare=False)
    rates: Callable[[], list[ModelRate] | None] = field(default=lambda: None, compare=False)

    @property
    def needs_headers(self) -> bool:
        """Return whether it needs its own headers, which a call in a batch cannot have."""
        return bool(self.betas or self.context_management or self.task_budget)

    def estimated_tokens(self) -> int:
        """Estimate the tokens of the input, without a request."""
        tools = [[tool.name, tool.description, tool.input_schema] for tool in self.tools]
        messages, of_media = without_media(self.messages)
        text = json.dumps([self.system, tools, messages], ensure_ascii=False)
        return math.ceil(len(text.encode("utf-8", "surrogatepass")) / BYTES_A_TOKEN) + of_media


@dataclass(frozen=True, slots=True)
class ModelReply:
    """A model's answer: blocks, stop reason and usage.

    Attributes:
        input_tokens: all of them, including those read from or written to the prompt cache.
        used_besides: other usage that explains the cost, such as web searches, the service tier, or the reason why the
            prompt cache could not be used; no zeros.
        cost_microdollars: None if unknown: the model has no price here, or the API did not report the usage.
        stop_details: the API's details of a refusal.
        exact: the content's original JSON text, if characters were replaced because they cannot be stored.
        id: the provider's name of the reply.
        edits: those that the provider has made to the conversation.
        container: the container in which the provider ran code, as it describes it. Its `id` is None if the one of the
            request no longer exists.
    """

    content: list[Block]
    stop_reason: str
    model: str
    input_tokens: int = 0
    output_tokens: int = 0
    cache_read_tokens: int = 0
    cache_write_tokens: int = 0
    used_besides: dict[str, Any] = field(default_factory=dict)
    cost_microdollars: int | None = 0
    stop_details: dict[str, Any] | None = None
    exact: str | None = None
    id: str | None = None
    edits: list[Any] | None = None
    container: dict[str, Any] | None = None

    def as_json(self) -> dict[str, Any]:
        """Return the form that the journal stores."""
        rare = {
            "stop_details": self.stop_details,
            "exact": self.exact,
            "id": self.id,
            "edits": self.edits,
            "container": self.container,
        }
        said = {name: value for name, value in rare.items() if value}
        return {"content": self.content, "stop_reason": self.stop_reason, "model": self.model, **said}


def join_surrogates(text: str) -> str:
    """Join the surrogate pairs of a text: some gateways split them."""
    return text if text.isascii() else text.encode("utf-16", "surrogatepass").decode("utf-16", "surrogatepass")


def exact_content(reply: dict[str, Any]) -> list[Block]:
    """The blocks of a recorded reply for the API, exactly as received, because thoughts are signed."""
    blocks: list[Block] = reply["content"]
    return whole(storable(json.loads(reply["exact"]), LONE_SURROGATE)) if "exact" in reply else blocks


def text_in(reply: dict[str, Any]) -> str:
    """The text of a recorded reply."""
    return "".join(block["text"] for block in reply["content"] if block["type"] == "text").strip()


def json_in(answer: str) -> str:
    """Extract the JSON from an answer that wraps it in a code fence."""
    if answer.startswith("```") and answer.endswith("```"):
        return answer.removeprefix("```json").removeprefix("```").removesuffix("```").strip()
    return answer


class ModelClient(Protocol):
    """Client of a model provider."""

    def complete(self, request: ModelRequest, on_text: Callable[[str], None]) -> ModelReply:
        """Make one model turn.

        Args:
            on_text: receives the text as it arrives.

        Raises:
            Postponed: the model's limits allow no call now.
            ModelUnavailable: the provider did not answer; the request may be retried.
            ModelError: the provider refused it.
        """

    def count_tokens(self, request: ModelRequest) -> int:
        """Return the tokens of a request's input, or an estimate on the high side if the provider has no count."""

    def batch_fault(self, namespace: str) -> str | None:
        """Return the reason why no call of a namespace can be made in a batch, in the middle of a sentence; None if
        calls can, or if a batch would make no difference.
        """


@runtime_checkable
class BatchClient(Protocol):
    """Client of a provider that answers calls in batches, too."""

    def batch_body(self, request: ModelRequest) -> str:
        """Return the body of a request for a batch, as JSON text in ASCII."""

    def read_batched(self, answer: str, model: str) -> ModelReply:
        """Return the reply in an answer, as an orchestrator has recorded it.

        Raises:
            ModelError: the call failed.
        """

    def refuses_form(self, answer: str, request: ModelRequest) -> bool:
        """Return whether an answer refuses only an optional part of the request, which `batch_body` leaves out now."""
