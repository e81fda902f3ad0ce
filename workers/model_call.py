"""A model call as a step of the journal: it costs money, so it is committed before its answer is used."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from typing import Any

from shared.contracts.key_order import as_in_jsonb
from shared.contracts.strict_json import JsonValue, stable
from workers.journal import BatchedCall, Journal, StepResult
from workers.llm import client_for
from workers.llm.base import BatchClient, ModelReply, ModelRequest
from workers.llm.patience import complete
from workers.pricing import Reservation, worst_case
from workers.task import ClaimedTask
from workers.text_stream import TextStream


def call_model(
    journal: Journal,
    task: ClaimedTask,
    request: ModelRequest,
    asked: JsonValue,
    output: Callable[[ModelReply], JsonValue] = ModelReply.as_json,
    stream: type[TextStream] = TextStream,
) -> dict[str, Any]:
    """Return a model's reply, either from a new call or read back.

    Args:
        asked: the part of the request that the journal keeps: what earlier calls did not have.
        output: the part of the reply that the journal keeps.
        stream: receives the text as it arrives.

    Raises:
        Batched: the call waits for a Message Batch.
        Postponed: the task must wait.
        ModelError: the provider refused the request, or has been unavailable for too long.
        MinionError: as for every step.
    """
    client = client_for(request.model)
    request = replace(request, before_sending=journal.refuse_if_stopped, rates=journal.fresh_rates)

    def perform(step: int) -> StepResult:
        streamed = stream(task, step, unheard=journal.followers.absent)
        return _result(complete(client, request, journal.known.get(step), streamed), output)

    def reserve(*, in_batch: bool = False) -> Reservation:
        tokens = client.count_tokens(request)
        api_tools = [tool.api_tool for tool in request.tools if tool.api_tool]
        return worst_case(request.model, tokens, request.max_tokens, in_batch=in_batch, api_tools=api_tools)

    batched = None
    # Features that are not on by default are a header's, which all calls of a batch share.
    if journal.lane != "direct" and not request.betas and isinstance(client, BatchClient):
        batched = BatchedCall(
            body=lambda: client.batch_body(request),
            reserve=lambda: reserve(in_batch=True),
            read=lambda answer: _result(client.read_batched(answer, request.model), output),
        )

    kept: dict[str, Any] = journal.call(
        "model_call",
        request.model,
        asked,
        perform,
        effect="idempotent",
        reserve=reserve,
        hashed=_without_order(asked, request.input),
        batched=batched,
    )
    return kept


def _result(reply: ModelReply, output: Callable[[ModelReply], JsonValue]) -> StepResult:
    return StepResult(
        output(reply),
        input_tokens=reply.input_tokens,
        output_tokens=reply.output_tokens,
        cache_read_tokens=reply.cache_read_tokens,
        cache_write_tokens=reply.cache_write_tokens,
        used_besides=reply.used_besides,
        cost_microdollars=reply.cost_microdollars,
    )


def _without_order(asked: JsonValue, value: JsonValue) -> JsonValue:
    """The value that a step's hash covers, which does not depend on the order of keys.

    In the texts of the task's input and of tools' results, keys are in the order in which release 0.2 wrote them.
    """
    if not isinstance(asked, dict) or "messages" not in asked:
        return asked
    return {
        **asked,
        "messages": [{**message, "content": _plain(message["content"], value)} for message in asked["messages"]],
    }


def _plain(content: str | list[dict[str, Any]], value: JsonValue) -> Any:
    if isinstance(content, str):
        return _text(as_in_jsonb(value)) if content == _text(value) else content
    return [
        {**block, "content": _text(stable(json.loads(block["content"])))}
        if block["type"] == "tool_result" and not block.get("is_error")
        else block
        for block in content
    ]


def _text(value: JsonValue) -> str:
    return json.dumps(value, ensure_ascii=False)
