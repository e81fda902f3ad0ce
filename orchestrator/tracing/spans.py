"""Rows as spans: OpenTelemetry's GenAI conventions where they have a name, `minions.*` for what is ours.

A span is a function of committed rows, so that every export of a row makes the same span. Names that users and models
chose are hostile text: they are bounded, and control characters are escaped.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from opentelemetry.proto.common.v1.common_pb2 import AnyValue, ArrayValue, KeyValue
from opentelemetry.proto.trace.v1.trace_pb2 import Span, Status

from orchestrator.tracing import contents
from orchestrator.tracing.ended import Row
from shared.access.scope import own_name
from shared.contracts.sampling import OFFLINE
from shared.contracts.visible_text import one_line
from shared.providers import split
from shared.settings import get_settings
from shared.trace_context import SAMPLED, Trace, claim_span, step_span, task_span

LONGEST_NAME = 200
LONGEST_VALUE = 1_000
LONGEST_MESSAGE = 2_000
# Of SpanFlags in OTLP: whether it is known that the parent is remote, and whether it is.
KNOWN, REMOTE = 0x100, 0x200

Value = str | int | float | bool | list[str] | None
Attributes = dict[str, Value]

TOKENS = {
    "input_tokens": "gen_ai.usage.input_tokens",
    "output_tokens": "gen_ai.usage.output_tokens",
    "cache_read_input_tokens": "gen_ai.usage.cache_read.input_tokens",
    "cache_creation_input_tokens": "gen_ai.usage.cache_write.input_tokens",
    "thinking_tokens": "gen_ai.usage.reasoning.output_tokens",
}
UNSUCCESSFUL = frozenset({"failed", "retried", "lost", "expired"})
"""Ends of tasks and claims that are errors. A cancelled task is none: a person or a program wanted it."""


def span_of(kind: str, row: Row, *, with_contents: bool) -> Span | None:
    """Return the span of a row; None if its caller does not record the trace.

    Args:
        kind: `claim`, `step` or `task`.
        with_contents: with messages, arguments, results and the texts of errors.
    """
    trace = Trace.of(row["root_id"], row["traceparent"])
    return BUILDERS[kind](trace, row, with_contents) if trace.sampled else None


def _task(trace: Trace, row: Row, with_contents: bool) -> Span:
    is_root = row["parent_id"] is None
    span = _span(
        trace,
        task_span(row["task_id"]),
        trace.caller if is_root else step_span(row["parent_id"], row["parent_step"]),
        f"invoke_agent {row['agent_name'] or ''}".strip(),
        Span.SPAN_KIND_INTERNAL,
        (row["created"], row["ended"]),
        {**_agent(row, "invoke_agent"), **_owner(row), "minions.task.state": row["state"]},
    )
    if is_root and trace.caller:
        span.flags |= REMOTE
    if row["state"] in UNSUCCESSFUL:
        _fail(span, row["error"], row["state"], with_contents)
    if row["replayed_id"] is not None:
        replayed = Trace.of(row["replayed_root_id"], row["replayed_traceparent"])
        span.links.add(
            trace_id=replayed.id,
            span_id=task_span(row["replayed_id"]),
            attributes=_attributes({"minions.link": "replay_of"}),
            flags=replayed.sampled * SAMPLED,
        )
    return span


def _claim(trace: Trace, row: Row, with_contents: bool) -> Span:
    span = _span(
        trace,
        claim_span(row["task_id"], row["claim"]),
        task_span(row["task_id"]),
        f"process {row['capability']}",
        Span.SPAN_KIND_CONSUMER,
        (row["began"], row["ended"]),
        {
            **_message("process", row["capability"], row["task_id"]),
            **_owner(row),
            "minions.claim": row["claim"],
            "minions.claim.outcome": row["outcome"],
            "minions.worker": row["worker"],
            "minions.cpu_seconds": row["cpu_seconds"],
            "minions.peak_memory_bytes": row["peak_memory_bytes"],
            "minions.cost_microdollars": row["cost_microdollars"] or None,
        },
    )
    if row["outcome"] in UNSUCCESSFUL:
        _fail(span, row["error"], row["outcome"], with_contents)
    return span


def _step(trace: Trace, row: Row, with_contents: bool) -> Span:
    """A step's span covers its retries, as the conventions have it. One that was cut off ends with its task."""
    span = _span(
        trace,
        step_span(row["task_id"], row["number"]),
        _caller(row),
        *STEPS[row["kind"]](row),
        times=(row["began"], row["ended"] or row.get("task_ended")),
        attributes={
            **ATTRIBUTES[row["kind"]](row),
            **_owner(row),
            "minions.step": row["number"],
            "minions.step.kind": row["kind"],
            "minions.step.status": row["status"],
            "minions.step.effect": row["effect"],
            "minions.step.cached": row["cached"] or None,
            "minions.program.line": row["line"],
            "minions.claim": row["claim"],
            "minions.cost_microdollars": row["cost_microdollars"] or None,
        },
    )
    if row["status"] == "failed":
        _fail(span, row["error"], "failed", with_contents)
    elif row["status"] == "started" and row["kind"] != "wait":
        _fail(span, row["error"], "interrupted", with_contents)
    if with_contents:
        span.attributes.extend(_attributes(contents.of_step(row), longest=contents.LONGEST))
    return span


def _caller(row: Row) -> bytes:
    """Return the parent of a step's span: the program that made the call, else the claim."""
    if row["program"] is not None and row["program"] != row["number"]:
        return step_span(row["task_id"], row["program"])
    return claim_span(row["task_id"], row["claim"])


def _message(operation: str, capability: str | None, task: Any) -> Attributes:
    return {
        "messaging.system": "celery",
        "messaging.operation.name": operation,
        "messaging.operation.type": operation,
        "messaging.destination.name": capability,
        "messaging.message.id": None if task is None else str(task),
    }


def _agent(row: Row, operation: str) -> Attributes:
    return {
        "gen_ai.operation.name": operation,
        "gen_ai.agent.name": row["agent_name"],
        "gen_ai.agent.version": None if row["agent_version"] is None else str(row["agent_version"]),
    }


def _owner(row: Row) -> Attributes:
    conversation = row["conversation_id"]
    return {
        "gen_ai.conversation.id": conversation and own_name(conversation),
        "minions.task.id": str(row["task_id"]),
        "minions.namespace": row["namespace"],
        "minions.capability": row["capability"],
        "minions.key": row["key"],
    }


def _model_call(row: Row) -> Attributes:
    usage = row["usage"] or {}
    reason = contents.finish_reason(row["stop_reason"])
    counted = {name: usage.get(field) for field, name in TOKENS.items()}
    return {
        **_agent(row, "chat"),
        "gen_ai.provider.name": _provider(row["name"]),
        "gen_ai.request.model": split(row["name"])[1],
        "gen_ai.response.model": _text_or_none(row["answered_by"]),
        "gen_ai.response.finish_reasons": None if reason is None else [reason],
        **{name: count for name, count in counted.items() if isinstance(count, int) and not isinstance(count, bool)},
    }


def _provider(model: str) -> str:
    """Return the conventions' name of a model's provider; the operator's name for it, if they have none."""
    if model == OFFLINE:
        return "minions"
    name, _ = split(model)
    provider = get_settings().known_providers().get(name)
    return provider.telemetry_name if provider else name


def _tool_call(row: Row) -> Attributes:
    return {
        **_agent(row, "execute_tool"),
        "gen_ai.tool.name": row["name"],
        "gen_ai.tool.type": "function",
        "minions.function": row["function"],
        "minions.function.version": row["function_version"],
    }


def _subtask(row: Row) -> Attributes:
    return {
        **_message("send", row["child_capability"], row["child_id"]),
        "gen_ai.agent.name": row["child_agent"] or row["name"],
    }


def _wait(row: Row) -> Attributes:
    return {"minions.wait": row["waits_for"], "minions.wait.name": row["name"]}


STEPS = {
    "model_call": lambda row: (f"chat {split(row['name'])[1]}", Span.SPAN_KIND_CLIENT),
    "tool_call": lambda row: (f"execute_tool {row['name']}", Span.SPAN_KIND_INTERNAL),
    "function_call": lambda row: (f"execute_tool {row['name']}", Span.SPAN_KIND_INTERNAL),
    "subtask": lambda row: (f"send {row['child_capability'] or row['name']}", Span.SPAN_KIND_PRODUCER),
    "wait": lambda row: (f"wait {row['waits_for'] or ''}".strip(), Span.SPAN_KIND_INTERNAL),
}
ATTRIBUTES = {
    "model_call": _model_call,
    "tool_call": _tool_call,
    "function_call": _tool_call,
    "subtask": _subtask,
    "wait": _wait,
}
BUILDERS = {"claim": _claim, "step": _step, "task": _task}


def _span(
    trace: Trace,
    span_id: bytes,
    parent: bytes,
    name: str,
    kind: Any,
    times: tuple[int | None, int | None],
    attributes: Mapping[str, Value],
) -> Span:
    begin = (times[0] or times[1] or 0) * 1000
    return Span(
        trace_id=trace.id,
        span_id=span_id,
        parent_span_id=parent,
        flags=SAMPLED | KNOWN,
        name=bounded(name, LONGEST_NAME),
        kind=kind,
        start_time_unix_nano=begin,
        # The clock of a worker may be wrong.
        end_time_unix_nano=max(begin, (times[1] or 0) * 1000),
        attributes=_attributes(attributes),
    )


def _fail(span: Span, error: Any, otherwise: str, with_contents: bool) -> None:
    """Mark a span as failed. The text of an error may quote payloads, so it is one."""
    details = error if isinstance(error, dict) else {}
    span.attributes.extend(_attributes({"error.type": _text_or_none(details.get("type")) or otherwise}))
    span.status.code = Status.STATUS_CODE_ERROR
    message = details.get("message")
    if with_contents and isinstance(message, str):
        span.status.message = bounded(message, LONGEST_MESSAGE)


def _attributes(values: Mapping[str, Value], longest: int = LONGEST_VALUE) -> list[KeyValue]:
    return [
        KeyValue(key=name, value=_value(value, longest)) for name, value in values.items() if value not in (None, "")
    ]


def _value(value: Value, longest: int) -> AnyValue:
    match value:
        case str():
            return AnyValue(string_value=bounded(value, longest))
        case bool():
            return AnyValue(bool_value=value)
        case int():
            return AnyValue(int_value=max(-(2**63), min(value, 2**63 - 1)))
        case float():
            return AnyValue(double_value=value)
        case list():
            return AnyValue(array_value=ArrayValue(values=[_value(each, longest) for each in value]))
    return AnyValue()


def bounded(text: str, longest: int) -> str:
    """Return a text on one line, without control characters, and not longer than that."""
    if len(text) <= longest and text.isascii() and text.isprintable():
        return text
    shown = one_line(text[: longest + 1])
    return shown if len(shown) <= longest else shown[: longest - 1] + "…"


def _text_or_none(value: Any) -> str | None:
    return value if isinstance(value, str) else None
