"""A model call as a step of the journal: it costs money, so it is committed before its answer is used."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from typing import Any

from shared.contracts.key_order import as_in_jsonb
from shared.contracts.server_tools import Memory
from shared.contracts.strict_json import JsonValue, stable
from shared.errors import ModelError
from workers.journal import Journal
from workers.llm import client_for
from workers.llm.base import BatchClient, ModelReply, ModelRequest
from workers.llm.files import with_files
from workers.llm.patience import Successor, complete
from workers.pricing import Reservation, worst_case
from workers.steps import BatchedCall, StepResult
from workers.task import ClaimedTask
from workers.text_stream import TextStream


def call_model(
    journal: Journal,
    task: ClaimedTask,
    request: ModelRequest,
    asked: JsonValue,
    output: Callable[[ModelReply], JsonValue] = ModelReply.as_json,
    stream: type[TextStream] = TextStream,
    successor: Successor | None = None,
) -> dict[str, Any]:
    """Return a model's reply, either from a new call or read back.

    Args:
        asked: the part of the request that the journal keeps: what earlier calls did not have.
        output: the part of the reply that the journal keeps.
        stream: receives the text as it arrives.
        successor: the model that is asked instead if this one is unavailable.

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
        return _result(complete(client, with_files(request), journal.known.get(step), streamed, successor), output)

    def reserve(*, in_batch: bool = False) -> Reservation:
        compaction = request.context_management and request.context_management.compaction
        return worst_case(
            request.model,
            client.count_tokens(with_files(request)),
            request.max_tokens,
            in_batch=in_batch,
            for_an_hour=in_batch or request.lateness > 0,
            speed=None if in_batch else request.speed,
            compacts_at=compaction.tokens if compaction else None,
            api_tools=[tool.api_tool for tool in request.tools if tool.api_tool],
        )

    batched = None
    # Features that are not on by default are a header's, which all calls of a batch share.
    if journal.lane != "direct" and not request.needs_headers:
        fault = client.batch_fault(request.namespace)
        if isinstance(client, BatchClient):
            batched = BatchedCall(
                body=lambda: _batch_body(client, with_files(request), fault),
                reserve=lambda: reserve(in_batch=True),
                read=lambda answer: _result(client.read_batched(answer, request.model), output),
                repeat=lambda answer: client.refuses_form(answer, request),
                fault=fault,
            )
        elif journal.lane == "batch" and fault:
            raise _no_batch(request.model, fault)

    kept: dict[str, Any] = journal.call(
        "model_call",
        request.model,
        asked,
        perform,
        effect="idempotent",
        reserve=reserve,
        hashed=_without_order(asked, request.input),
        batched=batched,
        outside="idempotent" if _has_server_tools(request) else "nothing",
    )
    return kept


def _has_server_tools(request: ModelRequest) -> bool:
    """Return whether the API may search, fetch or run code within the call."""
    return any(tool.api_tool is not None and not isinstance(tool.api_tool, Memory) for tool in request.tools)


def _batch_body(client: BatchClient, request: ModelRequest, fault: str | None) -> str:
    if fault is not None:
        raise _no_batch(request.model, fault)
    return client.batch_body(request)


def _no_batch(model: str, fault: str) -> ModelError:
    return ModelError(
        f"The call of {model!r} cannot be made in a batch, which the lane of the task requires: {fault}. Submit it "
        "with the lane `direct` or `auto`."
    )


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
        # A result that is blocks, not our JSON text, is covered as it is.
        if block["type"] == "tool_result" and not block.get("is_error") and isinstance(block.get("content"), str)
        else block
        for block in content
    ]


def _text(value: JsonValue) -> str:
    return json.dumps(value, ensure_ascii=False)
