"""Whole tasks against HTTP responses as the API, and gateways before it, send them: bytes, status and headers."""

from __future__ import annotations

import gzip
import json
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

import pytest
from sqlalchemy import Engine

from orchestrator.explain import explain
from shared.contracts.requests import Budget
from shared.database.connections import transaction
from tests.conftest import Define
from tests.integration.conftest import ACT, InlineWorker, Tasks
from tests.support.model_client import use_model_url
from tests.support.recorded_http import (
    JSON,
    STREAM,
    Recorded,
    RecordedServer,
    begun,
    block,
    call,
    ended,
    plain,
    serve_recorded,
    stream,
    text,
)

HI = stream(begun(), *text(0, "Hi."), *ended())
DONE = stream(begun(), *text(0, "Done."), *ended())
SIGNATURE = "EqQBCgIYAhIM+/9x" * 20 + "=="
THOUGHT = {"type": "thinking", "thinking": "", "signature": SIGNATURE}


def message(*content: dict[str, Any], stop_reason: str | None = "end_turn", usage: Any = None, **fields: Any) -> Any:
    """A message that was not streamed."""
    usage = {"input_tokens": 10, "output_tokens": 20} if usage is None else usage
    begin = {"id": "msg_1", "type": "message", "role": "assistant", "model": "claude-sonnet-5-5"}
    return {**begin, "content": list(content), "stop_reason": stop_reason, "usage": usage, **fields}


def api_error(kind: str, said: str, **more: Any) -> dict[str, Any]:
    """An error's body."""
    return {"type": "error", "error": {"type": kind, "message": said}, **more}


@pytest.fixture
def recorded_server(monkeypatch: pytest.MonkeyPatch) -> Iterator[RecordedServer]:
    """The server that this process's minion talks to."""
    with serve_recorded() as replay, use_model_url(replay.url, monkeypatch):
        yield replay


@pytest.fixture
def run(
    define: Define,
    tasks: Tasks,
    inline_worker: InlineWorker,
    recorded_server: RecordedServer,
    monkeypatch: pytest.MonkeyPatch,
) -> Any:
    """Runs a task of an agent with the tools `act` and `echo` against these responses, once."""
    monkeypatch.setattr("workers.llm.patience.FIRST_SECONDS", 0.01)

    def once(*responses: Recorded, budget: Any = None, **fields: Any) -> dict[str, Any]:
        config = {"capabilities": ["work"], **fields.pop("config", {})}
        define(
            {**ACT, "input_schema": {"type": "object"}},
            {"kind": "tool", "name": "echo", "type": "builtin", "builtin": "echo", "effect": "pure"},
            {
                "kind": "agent",
                "name": "Agent",
                "model": "claude-sonnet-5-5",
                "tools": ["act", "echo"],
                "config": config,
                **fields,
            },
        )
        recorded_server.responses = list(responses)
        task = tasks.submit("Agent", "Hello", budget=budget)
        inline_worker._round()
        return tasks.get(task)

    return once


@dataclass(frozen=True)
class Case:
    """The outcome of a task whose model calls get these responses.

    Attributes:
        calls: the inputs of the calls of `act`.
        carried: the content that the second request carries back.
        spent: in micro-dollars.
        error: its end, where the task fails.
    """

    responses: list[Recorded]
    output: Any = None
    calls: list[Any] = field(default_factory=list)
    carried: list[dict[str, Any]] | None = None
    spent: int | None = None
    error: str | None = None
    schema: Any = None


def sse(*lines: str, eol: str = "\n", **how: Any) -> Recorded:
    """A stream with these lines."""
    return Recorded("".join(f"{line}{eol}" for line in lines).encode(), **how)


def lines_of(*events: dict[str, Any], data_first: bool = False, names: bool = True) -> list[str]:
    """The lines of a stream, otherwise than the API writes them."""
    lines = []
    for event in events:
        name, data = f"event: {event['type']}", f"data: {json.dumps(event, ensure_ascii=False)}"
        lines += [*([data, name] if data_first else [name, data][0 if names else 1 :]), ""]
    return lines


WORLD = [begun(), *text(0, "Wörld ", "→ 😀"), *ended()]
NOTED = [begun(), *call(0, "act", '{"answer": ', '"\\u00', "e4\\ud83d", '\\ude00"}'), *ended("tool_use")]
PARALLEL = [
    begun(),
    {"type": "content_block_start", "index": 1, "content_block": call(1, "act")[0]["content_block"]},
    {"type": "content_block_start", "index": 0, "content_block": call(0, "act")[0]["content_block"]},
    *(
        {"type": "content_block_delta", "index": index, "delta": {"type": "input_json_delta", "partial_json": piece}}
        for index, piece in [(0, '{"answer"'), (1, '{"answer": 2'), (0, ": 1}"), (1, "}")]
    ),
    *ended("tool_use"),
]

SAID_DIFFERENTLY = {
    "crlf": sse(*lines_of(*WORLD), eol="\r\n"),
    "cr": sse(*lines_of(*WORLD), eol="\r"),
    "byte by byte": sse(*lines_of(*WORLD), eol="\r\n", size=1),
    "comments": sse(": hello", "", ":", *lines_of(*WORLD), ": bye"),
    "data before its name": sse(*lines_of(*WORLD, data_first=True)),
    "no names": sse(*lines_of(*WORLD, names=False)),
    "no types": sse(
        *(
            line
            for event in WORLD
            for line in (
                f"event: {event['type']}",
                f"data: {json.dumps({name: value for name, value in event.items() if name != 'type'})}",
                "",
            )
        )
    ),
    "no space": sse(*(line.replace(": ", ":", 1) for line in lines_of(*WORLD))),
    "data in many lines": sse(
        *(
            line
            for event in WORLD
            for line in [
                f"event: {event['type']}",
                *(f"data: {part}" for part in json.dumps(event, indent=1).split("\n")),
                "",
            ]
        )
    ),
    "ids and retries": sse("id: 7", "retry: 10", "", *lines_of(*WORLD)),
    "no final newline": Recorded(sse(*lines_of(*WORLD)).body.rstrip()),
    "no message_stop": stream(*WORLD[:-1]),
    "more after the end": sse(*lines_of(*WORLD), "data: [DONE]", ""),
    "lost after the end": sse(*lines_of(*WORLD), cut=True),
    "pings and unknown events": stream(
        {"type": "ping"}, *WORLD[:2], {"type": "ping"}, {"type": "of_next_year", "index": 9}, *WORLD[2:]
    ),
    "begun twice": stream(begun(), *WORLD),
    "notes beside": stream(*({**event, "private": {"a": [1]}} for event in WORLD)),
    "no content type": sse(*lines_of(*WORLD), headers={}),
    "another content type": sse(*lines_of(*WORLD), headers={"content-type": "text/plain"}),
    "upper case": sse(*lines_of(*WORLD), headers={"content-type": "Text/Event-Stream"}),
    "zipped": Recorded(
        gzip.compress(sse(*lines_of(*WORLD)).body),
        headers={"content-type": "text/event-stream", "content-encoding": "gzip"},
        size=7,
    ),
    "pairs cut apart": stream(begun(), *text(0, "Wörld → \ud83d", "\ude00"), *ended()),
    "nothing in a delta": stream(
        begun(),
        *block(
            0,
            {"type": "text", "text": "Wör"},
            {"type": "text_delta", "text": None},
            {"type": "text_delta", "text": "ld → 😀"},
        ),
        *ended(),
    ),
    "null content": stream(begun(content=None), *WORLD[1:]),
    "at once": plain(message({"type": "text", "text": "Wörld → 😀"})),
    "at once, zipped": Recorded(
        gzip.compress(json.dumps(message({"type": "text", "text": "Wörld → 😀"})).encode()),
        headers={**JSON, "content-encoding": "gzip"},
    ),
}


@pytest.mark.parametrize("how", SAID_DIFFERENTLY)
def test_equivalent_responses_give_the_same_answer(
    run: Any, tasks: Tasks, recorded_server: RecordedServer, how: str
) -> None:
    task = run(SAID_DIFFERENTLY[how])
    assert (task["state"], task["output"]) == ("succeeded", {"content": "Wörld → 😀"})
    [execution] = tasks.executions(task["id"])
    used = [execution[name] for name in ("input_tokens", "output_tokens", "cost_microdollars")]
    assert used == [10, 20, 220]
    assert len(recorded_server.requests) == 1


SERVER_TOOLS = [
    {"type": "thinking", "thinking": "Let me look.", "signature": SIGNATURE},
    {"type": "redacted_thinking", "data": "EqkECkYIBxgCKkA8"},
    {"type": "server_tool_use", "id": "srvtoolu_1", "name": "web_search", "input": {"query": "x"}, "caller": None},
    {
        "type": "web_search_tool_result",
        "tool_use_id": "srvtoolu_1",
        "content": [
            {"type": "web_search_result", "url": "https://x", "encrypted_content": "a" * 400, "page_age": None}
        ],
    },
    {"type": "text", "text": "It says", "citations": [{"type": "web_search_result_location", "cited_text": "ä"}]},
    {"type": "mcp_tool_use", "id": "mcptoolu_1", "name": "find", "input": {"n": 1.5}, "server_name": "s"},
    {"type": "mcp_tool_result", "tool_use_id": "mcptoolu_1", "is_error": False, "content": []},
    {"type": "bash_code_execution_tool_result", "tool_use_id": "srvtoolu_2", "content": {"return_code": 0}},
    {"type": "container_upload", "file_id": "file_1"},
    {"type": "compaction", "content": "Before:", "encrypted_content": "b" * 40},
    {"type": "fallback", "from": {"model": "claude-fable-5"}, "to": {"model": "claude-sonnet-5-5"}},
    {"type": "of_next_year", "inside": {"b": [None, True], "a": {}}},
]
CALL = {"type": "tool_use", "id": "toolu_9", "name": "act", "input": {"answer": 1}, "caller": {"type": "direct"}}
USAGE = {"input_tokens": 100, "output_tokens": 50}

CASES = {
    "a call whose input is cut inside of its escapes": Case(
        [stream(*NOTED), DONE],
        "Done.",
        [{"answer": "ä😀"}],
        [{"type": "tool_use", "id": "toolu_0", "name": "act", "input": {"answer": "ä😀"}}],
    ),
    "calls side by side": Case([stream(*PARALLEL), DONE], "Done.", [{"answer": 1}, {"answer": 2}]),
    "a call without input": Case([stream(begun(), *call(0, "act", ""), *ended("tool_use")), DONE], "Done.", [{}]),
    "a call with nothing at all": Case(
        [stream(begun(), *block(0, {"type": "tool_use", "id": "t", "name": "act"}), *ended("tool_use")), DONE],
        "Done.",
        [{}],
    ),
    "a call whose input is null": Case(
        [plain(message({**CALL, "input": None}, stop_reason="tool_use")), DONE], "Done.", [{}]
    ),
    "an input that is no JSON": Case(
        [stream(begun(), *call(0, "act", '{"answer": ', "yes}"), *ended("tool_use")), DONE],
        "Done.",
        carried=[{"type": "tool_use", "id": "toolu_0", "name": "act", "input": {"INVALID_JSON": '{"answer": yes}'}}],
    ),
    "an input that is no object": Case(
        [stream(begun(), *call(0, "act", '"{}"'), *ended("tool_use")), DONE],
        "Done.",
        carried=[{"type": "tool_use", "id": "toolu_0", "name": "act", "input": {"INVALID_JSON": "{}"}}],
    ),
    "calls with another stop reason": Case(
        [stream(begun(), *call(0, "act", "{}"), *ended("end_turn")), DONE], "Done.", [{}]
    ),
    "all kinds of blocks, at once": Case(
        [plain(message(*SERVER_TOOLS, CALL, stop_reason="tool_use")), DONE],
        "Done.",
        [{"answer": 1}],
        [*SERVER_TOOLS, CALL],
    ),
    "all kinds of blocks, as they begin": Case(
        [
            stream(
                begun(),
                *(event for index, each in enumerate([*SERVER_TOOLS, CALL]) for event in block(index, each)),
                *ended("tool_use"),
            ),
            DONE,
        ],
        "Done.",
        [{"answer": 1}],
        [*SERVER_TOOLS, CALL],
    ),
    "a thought that is not shown": Case(
        [
            stream(
                begun(),
                *block(
                    0,
                    {"type": "thinking", "thinking": "", "signature": ""},
                    {"type": "thinking_delta", "thinking": "", "estimated_tokens": 50},
                    {"type": "thinking_delta", "thinking": "", "estimated_tokens": None},
                    {"type": "signature_delta", "signature": SIGNATURE},
                ),
                *call(1, "act", "{}"),
                *ended("tool_use"),
            ),
            DONE,
        ],
        "Done.",
        [{}],
        [THOUGHT, {"type": "tool_use", "id": "toolu_1", "name": "act", "input": {}}],
    ),
    "a signature that is told twice": Case(
        [
            stream(
                begun(),
                *block(
                    0,
                    {"type": "thinking", "thinking": None, "signature": SIGNATURE},
                    {"type": "thinking_delta", "thinking": None},
                    {"type": "signature_delta", "signature": SIGNATURE},
                ),
                *call(1, "act", "{}"),
                *ended("tool_use"),
            ),
            DONE,
        ],
        "Done.",
        [{}],
        [THOUGHT, {"type": "tool_use", "id": "toolu_1", "name": "act", "input": {}}],
    ),
    "blank texts, which the API does not take back": Case(
        [stream(begun(), *text(0, "\n\n"), *text(1), *call(2, "act", "{}"), *text(3, ""), *ended("tool_use")), DONE],
        "Done.",
        [{}],
        [{"type": "tool_use", "id": "toolu_2", "name": "act", "input": {}}],
    ),
    "citations": Case(
        [
            stream(
                begun(),
                *block(
                    0,
                    {"type": "text", "text": "", "citations": []},
                    {"type": "citations_delta", "citation": {"type": "char_location", "cited_text": "a"}},
                    {"type": "text_delta", "text": "The grass"},
                    {"type": "citations_delta", "citation": {"type": "char_location", "cited_text": "b"}},
                ),
                *ended("pause_turn"),
            ),
            DONE,
        ],
        "Done.",
        carried=[
            {
                "type": "text",
                "text": "The grass",
                "citations": [{"type": "char_location", "cited_text": each} for each in "ab"],
            }
        ],
    ),
    "a long turn in parts": Case(
        [plain(message(*SERVER_TOOLS[:3], stop_reason="pause_turn")), DONE], "Done.", carried=SERVER_TOOLS[:3]
    ),
    "a turn that pauses for a compaction": Case(
        [
            stream(
                begun(),
                *block(
                    0,
                    {"type": "compaction", "content": None, "encrypted_content": None},
                    {"type": "compaction_delta", "content": "So far: ", "encrypted_content": None},
                    {"type": "compaction_delta", "content": "nothing."},
                ),
                *ended("compaction", context_management={"applied_edits": []}),
            ),
            DONE,
        ],
        "Done.",
        carried=[{"type": "compaction", "content": "So far: nothing.", "encrypted_content": None}],
    ),
    "a message that begins with its content": Case(
        [
            stream(
                begun(content=[SERVER_TOOLS[7], CALL], stop_reason="tool_use", container={"id": "c"}),
                {"type": "message_stop"},
            ),
            DONE,
        ],
        "Done.",
        [{"answer": 1}],
        [SERVER_TOOLS[7], CALL],
    ),
    "notes of the API": Case(
        [
            stream(
                begun(input_transformations=[{"type": "thinking_dropped", "path": "messages.1.content.0"}]),
                *text(0, "Hi."),
                *ended(delta={"container": {"id": "c"}}, context_management={}, input_transformations=[]),
            )
        ],
        "Hi.",
    ),
    "an answer that is empty": Case([stream(begun(), *ended()), DONE], "Done."),
    "an answer that is empty twice": Case([stream(begun(), *ended())] * 2, error="gave an empty answer"),
    "thoughts and no answer": Case(
        [stream(begun(), *block(0, THOUGHT), *ended()), stream(begun(), *text(0, '{"n": 1}'), *ended())],
        {"n": 1},
        schema={"type": "object", "required": ["n"]},
    ),
    # Usage, and what it costs: a million tokens of claude-sonnet-5-5 cost 2 dollars in, 10 out, 2.5 written to the
    # cache for five minutes, 4 for an hour, 0.1 read from it; 1,000 searches on the web cost 10.
    "the end tells more than the beginning": Case(
        [stream(begun(usage={"input_tokens": 43, "output_tokens": 1}), *text(0, "Hi."), *ended(usage=USAGE))],
        "Hi.",
        spent=700,
    ),
    "the end tells in parts": Case(
        [
            stream(
                begun(usage={"input_tokens": 100, "output_tokens": 1}),
                *text(0, "Hi."),
                ended(None, {"output_tokens": 30, "input_tokens": None})[0],
                ended("end_turn", {"output_tokens": 50})[0],
                {"type": "message_delta", "delta": {}, "usage": None},
                {"type": "message_stop"},
            )
        ],
        "Hi.",
        spent=700,
    ),
    "only the end tells": Case(
        [stream(begun(usage=0), *text(0, "Hi."), *ended(usage=USAGE))],
        "Hi.",
        spent=700,
    ),
    "a cache of an hour, and searches": Case(
        [
            plain(
                message(
                    {"type": "text", "text": "Hi."},
                    usage={
                        **USAGE,
                        "cache_creation_input_tokens": 1000,
                        "cache_read_input_tokens": 10_000,
                        "cache_creation": {"ephemeral_5m_input_tokens": 400, "ephemeral_1h_input_tokens": 600},
                        "server_tool_use": {"web_search_requests": 2, "web_fetch_requests": 1},
                        "output_tokens_details": {"thinking_tokens": 12},
                        "service_tier": "standard",
                        "inference_geo": "global",
                    },
                )
            )
        ],
        "Hi.",
        spent=700 + 1000 + 2400 + 1000 + 20_000,
    ),
    "a compaction": Case(
        [
            plain(
                message(
                    {"type": "text", "text": "Hi."},
                    usage={
                        **USAGE,
                        "iterations": [
                            {"type": "compaction", "input_tokens": 1000, "output_tokens": 100},
                            {"type": "message", **USAGE},
                        ],
                    },
                )
            )
        ],
        "Hi.",
        spent=700 + 3000,
    ),
    "an advisor": Case(
        [
            stream(
                begun(),
                *text(0, "Hi."),
                *ended(
                    usage={
                        **USAGE,
                        "iterations": [
                            {"type": "message", "input_tokens": 40, "output_tokens": 30},
                            {
                                "type": "advisor_message",
                                "model": "claude-opus-4-8",
                                "input_tokens": 1000,
                                "output_tokens": 10,
                            },
                            {"type": "message", "input_tokens": 60, "output_tokens": 20},
                        ],
                    }
                ),
            )
        ],
        "Hi.",
        spent=700 + 5000 + 250,
    ),
    "another model that answers": Case(
        [
            stream(
                begun("claude-fable-5"),
                *block(
                    0, {"type": "fallback", "from": {"model": "claude-fable-5"}, "to": {"model": "claude-sonnet-5-5"}}
                ),
                *text(1, "Hi."),
                *ended(
                    usage={
                        **USAGE,
                        "iterations": [
                            {"type": "message", "model": "claude-fable-5", "input_tokens": 99, "output_tokens": 0},
                            {"type": "fallback_message", "model": "claude-sonnet-5-5", **USAGE},
                        ],
                    }
                ),
            )
        ],
        "Hi.",
        spent=700,
    ),
    "another model that goes on": Case(
        [
            plain(
                message(
                    {"type": "text", "text": "Hi."},
                    usage={
                        **USAGE,
                        "iterations": [
                            {"type": "message", "model": "claude-fable-5", "input_tokens": 1000, "output_tokens": 100},
                            {"type": "message", "model": "claude-sonnet-5-5", "input_tokens": 1, "output_tokens": 1},
                            {"type": "fallback_message", "model": "claude-sonnet-5-5", **USAGE},
                        ],
                    },
                )
            )
        ],
        "Hi.",
        spent=700 + 10_000 + 5000,
    ),
    "inference in the US": Case(
        [
            plain(
                message(
                    {"type": "text", "text": "Hi."},
                    usage={**USAGE, "inference_geo": "us", "server_tool_use": {"web_search_requests": 1}},
                )
            )
        ],
        "Hi.",
        spent=770 + 10_000,
    ),
    "usage of another kind": Case(
        [
            plain(
                message(
                    {"type": "text", "text": "Hi."},
                    usage={
                        **USAGE,
                        "cache_creation_input_tokens": -1,
                        "cache_read_input_tokens": "3",
                        "cache_creation": {"ephemeral_1h_input_tokens": 5},
                        "server_tool_use": None,
                        "iterations": [None, {"type": "message"}],
                    },
                )
            )
        ],
        "Hi.",
        spent=700,
    ),
    "a gateway that tells no usage": Case(
        [plain({**message({"type": "text", "text": "Hi."}), "usage": None})], "Hi.", spent=0
    ),
    "a gateway that names no model": Case(
        [plain({**message({"type": "text", "text": "Hi."}), "model": None})], "Hi.", spent=220
    ),
    # Ends that are no answer.
    "a refusal before any word, which costs nothing": Case(
        [
            stream(
                begun(),
                *ended(
                    "refusal",
                    delta={"stop_details": {"type": "refusal", "category": "cyber", "explanation": "Not that."}},
                ),
            )
        ],
        error="The model refused to answer (cyber). Not that.",
        spent=0,
    ),
    "a refusal in the middle": Case(
        [stream(begun(), *text(0, "Well, "), *ended("refusal"))], error="The model refused to answer.", spent=220
    ),
    "a refusal of no category": Case(
        [
            plain(
                message(stop_reason="refusal", stop_details={"type": "refusal", "category": None, "explanation": None})
            )
        ],
        error="The model refused to answer.",
    ),
    "a refusal with a blank text": Case(
        [stream(begun(), *text(0, ""), *ended("refusal", usage={"output_tokens": 0}))],
        error="The model refused to answer.",
        spent=0,
    ),
    "no stop reason": Case(
        [plain(message({"type": "text", "text": "Half an"}, stop_reason=None))],
        error="its stop reason is 'none'",
        spent=220,
    ),
    "a stream without a stop reason": Case(
        [stream(begun(), *text(0, "Half an"), *ended(None))],
        error="its stop reason is 'none'",
        spent=220,
    ),
    "an unknown stop reason": Case(
        [stream(begun(), *text(0, "Half an"), *ended("of_next_year"))],
        error="its stop reason is 'of_next_year'",
        spent=220,
    ),
    "a call cut off": Case(
        [stream(begun(), *call(0, "act", '{"answer": 1, "b'), *ended("max_tokens"))],
        error="cut off at max_tokens (4096)",
        spent=220,
    ),
    "no room": Case(
        [stream(begun(), *text(0, "And so"), *ended("model_context_window_exceeded"))],
        error="do not fit into the model's context window",
    ),
    # Unreadable responses.
    "a block that never began": Case(
        [stream(begun(), *text(0, "Hi."), *call(1, "act", "{}")[1:], *ended("tool_use"))],
        error="answer cannot be read: block 1 continues, but never began",
    ),
    "a page": Case(
        [Recorded(b"<html>Bad gateway</html>", headers={"content-type": "text/html"})],
        error="answer cannot be read: b'<html>Bad gateway</html>'",
    ),
    "an event that is no JSON": Case(
        [sse(*lines_of(begun()), "event: ping", "data: {nothing", "")], error="answer cannot be read: "
    ),
    "an event that is no object": Case([sse(*lines_of(begun()), "data: null", "")], error="answer cannot be read: "),
    "bytes that are no text": Case([Recorded(b"data: \xff\n\n")], error="answer cannot be read: "),
    "a text that is a list": Case([plain(message({"type": "text", "text": ["Hi."]}))], error="a text that is none"),
    "details that are no object": Case([plain(message({"type": "text", "text": "Hi."}, stop_details="none"))], "Hi."),
    "a search whose name is no text": Case(
        [plain(message({"type": "server_tool_use", "id": "t", "name": ["web_search"], "input": {}}))],
        error="a tool call without id or name",
    ),
    "a call without a name": Case(
        [plain(message({"type": "tool_use", "id": "t", "input": {}}))], error="a tool call without id or name"
    ),
    "a block without a type": Case([plain(message({"text": "Hi."}))], error="a block without a type"),
}


@pytest.mark.parametrize("name", CASES)
def test_recorded_response_gives_expected_outcome(
    run: Any, tasks: Tasks, recorded_server: RecordedServer, name: str
) -> None:
    case = CASES[name]
    task = run(*case.responses, **({"output_schema": case.schema} if case.schema else {}))
    made = [step["input"]["arguments"] for step in tasks.steps(task["id"]) if step["name"] == "act"]
    assert made == case.calls
    assert len(recorded_server.requests) == len(case.responses)
    if case.spent is not None:
        assert sum(each["cost_microdollars"] for each in tasks.executions(task["id"])) == case.spent
    if case.error is not None:
        assert task["state"] == "failed"
        assert case.error in task["error"]["message"]
        return
    output = case.output if case.schema else {"content": case.output}
    assert (task["state"], task["output"], task["error"]) == ("succeeded", output, None)
    if case.carried is not None:
        assert unmarked(recorded_server.requests[1]["messages"][1]) == {"role": "assistant", "content": case.carried}


def unmarked(said: dict[str, Any]) -> dict[str, Any]:
    """A message without the mark of the prompt cache."""
    blocks = [{name: value for name, value in each.items() if name != "cache_control"} for each in said["content"]]
    return {**said, "content": blocks}


def test_usage_is_summed(run: Any, tasks: Tasks) -> None:
    [case] = CASES["a cache of an hour, and searches"].responses
    [step] = tasks.steps(run(case)["id"])
    assert step["usage"] == {
        "input_tokens": 11_100,
        "output_tokens": 50,
        "cache_read_input_tokens": 10_000,
        "cache_creation_input_tokens": 1000,
        "cache_creation_1h_input_tokens": 600,
        "thinking_tokens": 12,
        "web_search_requests": 2,
        "web_fetch_requests": 1,
    }


REQUEST = "req_011CYvBm7Nest"

FINAL = {
    "400": (
        plain(api_error("invalid_request_error", "messages.1: no"), 400, request_id=REQUEST),
        "400: messages.1: no",
    ),
    "400, of the body": (
        plain(api_error("invalid_request_error", "prompt is too long: 9 > 8", request_id=REQUEST), 400),
        "400: prompt is too long: 9 > 8",
    ),
    "401": (
        plain(api_error("authentication_error", "invalid x-api-key"), 401, request_id=REQUEST, x_should_retry="false"),
        "refused the key: check ANTHROPIC_API_KEY. It answered 401: invalid x-api-key",
    ),
    "403": (plain(api_error("permission_error", "not this model"), 403, request_id=REQUEST), "403: not this model"),
    "404": (
        plain(api_error("not_found_error", "model: claude-x"), 404, request_id=REQUEST),
        "does not know the model 'claude-sonnet-5-5'. It answered 404: model: claude-x",
    ),
    "413": (plain(api_error("request_too_large", "too large"), 413, request_id=REQUEST), "413: too large"),
    "429 that asks for no more": (
        plain(api_error("rate_limit_error", "no credit"), 429, request_id=REQUEST, x_should_retry="false"),
        "429: no credit",
    ),
    "in the stream": (
        stream(begun(), api_error("invalid_request_error", "too long", request_id=REQUEST)),
        "400: too long",
    ),
    "with status 200": (plain(api_error("invalid_request_error", "no", request_id=REQUEST)), "400: no"),
}


@pytest.mark.parametrize("name", FINAL)
def test_an_error_that_is_final(run: Any, recorded_server: RecordedServer, name: str) -> None:
    response, said = FINAL[name]
    task = run(response)
    assert (task["state"], task["error"]["type"]) == ("failed", "model_error")
    assert task["error"]["message"].endswith(f'{said} (request "{REQUEST}")')
    assert task["error"]["request_id"] == REQUEST
    assert len(recorded_server.requests) == 1


@pytest.mark.parametrize("counted", [False, True])
def test_refusal_is_free_even_without_its_text(run: Any, recorded_server: RecordedServer, counted: bool) -> None:
    lost = Recorded(b'{"type": "err', 400, {**JSON, "request-id": REQUEST}, cut=True)
    recorded_server.counts = [plain({"input_tokens": 7}) if counted else lost]
    task = run(lost, budget=Budget(tokens=100_000))
    assert (task["state"], task["claim"], task["error"]["http_status"]) == ("failed", 1, 400)
    assert task["error"]["message"].endswith(f'(request "{REQUEST}")')
    assert task["budget"]["tokens"]["spent"] == 0
    assert len(recorded_server.requests) == 1


def test_errors_of_one_kind_have_one_fingerprint(run: Any, database: Engine) -> None:
    for number in range(2):
        error = api_error("invalid_request_error", "This can't be", request_id=f"req_{'ab'[number]}Q1x")
        assert run(plain(error, 400))["state"] == "failed"
    with database.connect() as connection:
        found = connection.exec_driver_sql("SELECT error_fingerprint FROM task_outcomes").scalars().all()
    assert len(found) == 2
    assert len(set(found)) == 1


AGAIN = {
    "429": (plain(api_error("rate_limit_error", "slow down"), 429, retry_after="0", request_id=REQUEST), "429: slow"),
    "500": (plain(api_error("api_error", "Internal server error"), 500, request_id=REQUEST), "500: Internal"),
    "502 of a proxy": (Recorded(b"<html>502</html>", 502, {"content-type": "text/html"}), "502: <html>502</html>"),
    "503, empty": (Recorded(b"", 503, {}), "503: "),
    "502, cut off": (Recorded(b"<html>50", 502, {"content-type": "text/html"}, cut=True), "502: "),
    "529, cut off": (Recorded(b'{"type": "err', 529, JSON, cut=True), "529: "),
    "503, zipped wrongly": (Recorded(b"no gzip", 503, {**JSON, "content-encoding": "gzip"}), "503: "),
    "529": (plain(api_error("overloaded_error", "Overloaded"), 529, x_should_retry="true"), "529: Overloaded"),
    "400 that may be asked again": (plain(api_error("x", "later"), 400, x_should_retry="true"), "400: later"),
    "overloaded in the stream": (
        stream(begun(), *text(0, "Hi"), api_error("overloaded_error", "Overloaded", request_id=REQUEST)),
        f'529: Overloaded (request "{REQUEST}")',
    ),
    "an error of another form in the stream": (
        sse(*lines_of(begun()), "event: error", 'data: {"message": "upstream died"}', ""),
        "500: upstream died",
    ),
    "overloaded at once": (plain(api_error("overloaded_error", "Overloaded")), "529: Overloaded"),
    "a stream that ends in a block": (stream(begun(), *text(0, "Hi.")), "the stream ended in the middle"),
    "a stream that only stops": (stream(begun(), *text(0, "Hi."), {"type": "message_stop"}), "ended in the middle"),
    "a stream that ends in an event": (Recorded(stream(*WORLD[:-2]).body + b'data: {"type": "mess'), "ended in the"),
    "a stream that is cut": (
        stream(begun(), *text(0, "Hi."), cut=True, headers={**STREAM, "request-id": REQUEST}),
        f'(request "{REQUEST}")',
    ),
    "nothing": (stream(), "the stream ended in the middle"),
    "a stop reason at the beginning": (stream(begun(stop_reason="end_turn"), *text(0, "Hi.")), "ended in the middle"),
}


@pytest.mark.parametrize("name", AGAIN)
def test_an_error_after_which_it_is_asked_again(
    run: Any, tasks: Tasks, inline_worker: InlineWorker, recorded_server: RecordedServer, database: Engine, name: str
) -> None:
    response, said = AGAIN[name]
    task = run(response, DONE)
    if task["state"] == "waiting":
        with database.connect() as connection:
            assert said in explain(connection, task["id"], lease=10).sentence
        with transaction() as connection:
            connection.exec_driver_sql("UPDATE task_status SET due_at = now()")
        inline_worker.run_all()
        task = tasks.get(task["id"])
    assert (task["state"], task["output"], task["attempts"]) == ("succeeded", {"content": "Done."}, 0)
    assert len(recorded_server.requests) == 2


def test_uncounted_input_is_estimated(run: Any, recorded_server: RecordedServer) -> None:
    for counted in (
        plain({"input_tokens": 7, "context_management": {"original_input_tokens": 9}}),
        plain(api_error("not_found_error", "Not found"), 404),
        plain({"tokens": 7}),
        Recorded(b"<html></html>", headers={"content-type": "text/html"}),
        plain([]),
    ):
        recorded_server.requests.clear()
        recorded_server.counts = [counted]
        task = run(HI, budget=Budget(tokens=100_000))
        assert (task["state"], task["budget"]["tokens"]["spent"]) == ("succeeded", 30)
        assert recorded_server.counts == []


def test_unreported_usage_stays_reserved(run: Any, recorded_server: RecordedServer) -> None:
    recorded_server.counts = [plain({"input_tokens": 1000})]
    task = run(
        plain({**message({"type": "text", "text": "Hi."}), "usage": None}),
        config={"max_tokens": 100},
        budget=Budget(tokens=5000, dollars=1),
    )
    assert task["state"] == "succeeded"
    assert task["budget"]["tokens"]["spent"] == 1100
    assert task["budget"]["dollars"]["spent"] == 0.0035


def test_free_refusal_releases_its_budget(run: Any, recorded_server: RecordedServer) -> None:
    recorded_server.counts = [plain({"input_tokens": 1000})]
    task = run(stream(begun(), *ended("refusal")), budget=Budget(dollars=1))
    assert task["state"] == "failed"
    assert task["budget"]["dollars"]["spent"] == 0
