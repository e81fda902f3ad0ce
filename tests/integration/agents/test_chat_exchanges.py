"""Exchanges with servers of the Chat Completions API: what a client makes of each, however it arrives."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from typing import Any

import pytest
from sqlalchemy import Engine

from shared.errors import ModelError, ModelUnavailable
from tests.support.chat_exchanges import (
    EXCHANGES,
    HI,
    SIGNATURE,
    USAGE,
    WAYS,
    Exchange,
    call,
    check,
    chunk,
    counted,
    joined,
    lines,
    text,
)
from tests.support.providers import use_providers
from tests.support.recorded_http import STREAM, Recorded, RecordedServer, plain, serve_recorded
from workers.llm import client_for
from workers.llm.base import ModelReply, ModelRequest, ToolSpec

MODEL = "own:qwen3:8b"
TOOLS = tuple(ToolSpec(name, "", {"type": "object"}) for name in ("act", "echo"))
ASKED = {"role": "user", "content": "Hello"}


@pytest.fixture
def server(database: Engine, monkeypatch: pytest.MonkeyPatch) -> Iterator[RecordedServer]:
    with serve_recorded() as replay, use_providers(replay.url, monkeypatch):
        yield replay


@pytest.fixture
def ask(server: RecordedServer) -> Callable[..., ModelReply]:
    """Makes a call that gets these responses."""

    def once(*responses: Recorded, messages: Any = (ASKED,), **fields: Any) -> ModelReply:
        server.responses, server.requests = list(responses), []
        request = ModelRequest(MODEL, "", list(messages), TOOLS, 100, **fields)
        return client_for(MODEL).complete(request, lambda _: None)

    return once


@pytest.mark.parametrize("way", WAYS)
def test_exchange_gives_same_reply_however_it_arrives(ask: Any, server: RecordedServer, way: str) -> None:
    exchange = EXCHANGES["OpenAI: calls in turns"]
    check(ask(WAYS[way](exchange)), exchange)
    assert len(server.requests) == 1


def test_calls_and_thoughts_go_back_with_the_results(ask: Any, server: RecordedServer) -> None:
    for name, exchange in EXCHANGES.items():
        if not exchange.calls:
            continue
        reply = ask(Recorded(joined(exchange)))
        calls = [block for block in reply.content if block["type"] == "tool_use"]
        results = [{"type": "tool_result", "tool_use_id": each["id"], "content": '"ok"'} for each in calls]
        answer = {"role": "assistant", "content": reply.content}
        ask(Recorded(joined(EXCHANGES["OpenAI: text"])), messages=[ASKED, answer, {"role": "user", "content": results}])
        _, answered, *told = server.requests[0]["messages"]
        assert [each["id"] for each in answered["tool_calls"]] == [each["tool_call_id"] for each in told], name
        assert all(isinstance(json.loads(each["function"]["arguments"]), dict) for each in answered["tool_calls"])
        for block in reply.content[: len(exchange.content)]:
            if block["type"] == "thinking":
                assert answered.get(block.get("field", "reasoning_content"), "") == block["thinking"], name
                assert answered.get("reasoning_details") == block.get("details"), name
        if name.startswith("Gemini: a signature"):
            assert answered["tool_calls"][0]["extra_content"] == SIGNATURE


def test_thoughts_among_parts_go_back_among_parts(ask: Any, server: RecordedServer) -> None:
    thought = {"type": "thinking", "thinking": "Hm.", "field": "content"}
    ask(
        Recorded(joined(EXCHANGES["OpenAI: text"])),
        messages=[ASKED, {"role": "assistant", "content": [thought, *HI]}],
    )
    assert server.requests[0]["messages"][1]["content"] == [
        {"type": "thinking", "thinking": [{"type": "text", "text": "Hm."}]},
        {"type": "text", "text": "Hi."},
    ]


FAILURES: dict[str, tuple[Recorded, bool, str]] = {
    "OpenAI: a key": (
        plain({"error": {"message": "Incorrect API key provided: sk-x.", "code": "invalid_api_key"}}, 401),
        False,
        "refused the key",
    ),
    "OpenAI: no quota": (
        plain({"error": {"message": "Quota", "type": "insufficient_quota", "code": None}}, 429),
        False,
        "answered 429: Quota",
    ),
    "OpenAI: no quota in the stream": (
        Recorded(
            "\n\n".join(
                [*lines([chunk({"content": "H"}), {"error": {"message": "Quota", "code": "insufficient_quota"}}]), ""]
            ).encode()
        ),
        False,
        "answered 429: Quota",
    ),
    "Azure: a prompt that its filter refuses": (
        plain(
            {
                "error": {
                    "message": "The response was filtered",
                    "code": "content_filter",
                    "status": 400,
                    "innererror": {"code": "ResponsibleAIPolicyViolation"},
                }
            },
            400,
        ),
        False,
        "was filtered",
    ),
    "Azure: a date to wait for": (
        plain(
            {"error": {"code": "429", "message": "Requests exceeded"}}, 429, retry_after="Wed, 21 Oct 2099 07:28:00 GMT"
        ),
        True,
        "Requests exceeded",
    ),
    "vLLM: an error without a frame": (
        plain({"object": "error", "message": "too long", "type": "BadRequestError", "code": 400}, 400),
        False,
        "answered 400: too long",
    ),
    "vLLM: FastAPI's detail": (
        plain({"detail": [{"loc": ["body"], "msg": "field required"}]}, 422),
        False,
        "field required",
    ),
    "vLLM: an error in the stream": (
        Recorded(
            b'data: {"error": {"object": "error", "message": "EngineDeadError", "type": "InternalServerError", '
            b'"code": 500}}\n\ndata: [DONE]\n\n'
        ),
        True,
        "EngineDeadError",
    ),
    "TGI: overloaded": (
        plain({"error": "Model is overloaded", "error_type": "overloaded"}, 429),
        True,
        "answered 429: Model is overloaded",
    ),
    "TGI: an error in the stream": (
        Recorded(b'data: {"error": "Request failed", "error_type": "generation"}\n\n'),
        True,
        "Request failed",
    ),
    "Ollama: no such model": (
        plain({"error": {"message": "model 'x' not found", "type": "api_error"}}, 404),
        False,
        "does not know the model",
    ),
    "Ollama: an error as a text": (plain({"error": "model is loading"}, 503), True, "answered 503: model is loading"),
    "Gemini: a list of errors": (
        plain([{"error": {"code": 429, "message": "Resource exhausted", "status": "RESOURCE_EXHAUSTED"}}], 429),
        True,
        "answered 429: Resource exhausted",
    ),
    "Gemini: a list of errors with 200": (
        plain([{"error": {"code": 503, "message": "Overloaded", "status": "UNAVAILABLE"}}]),
        True,
        "answered 503: Overloaded",
    ),
    "OpenRouter: the provider is gone": (
        Recorded(
            "\n\n".join(
                lines(
                    [
                        chunk({"content": "H"}),
                        {
                            **chunk({"content": ""}, "error"),
                            "error": {"code": "server_error", "message": "Provider disconnected"},
                        },
                        "data: [DONE]",
                    ]
                )
            ).encode()
        ),
        True,
        "Provider disconnected",
    ),
    "OpenRouter: no credits": (
        plain({"error": {"code": 402, "message": "Insufficient credits"}}, 402),
        False,
        "answered 402",
    ),
    "DeepSeek: interrupted": (
        Recorded("\n\n".join(lines(text("H", finish="insufficient_system_resource"))).encode()),
        True,
        "broken off",
    ),
    "SGLang: aborted": (Recorded("\n\n".join(lines(text("H", finish="abort"))).encode()), True, "broken off"),
    "llama.cpp: loading": (
        plain({"error": {"code": 503, "message": "Loading model", "type": "unavailable_error"}}, 503),
        True,
        "Loading model",
    ),
    "llama.cpp: an error as a field of its own": (
        Recorded(b'error: {"code": 500, "message": "x"}\n\n'),
        False,
        "cannot be read",
    ),
    "LiteLLM: an error with the code of a text": (
        plain({"error": {"message": "litellm.Timeout", "type": None, "param": None, "code": "408"}}, 408),
        True,
        "litellm.Timeout",
    ),
    "a page of nginx": (
        Recorded(b"<html><h1>502 Bad Gateway</h1></html>", 502, {"content-type": "text/html"}),
        True,
        "502",
    ),
    "a page with 200": (
        Recorded(b"<!doctype html><title>Sign in</title>", 200, {"content-type": "text/html"}),
        False,
        "cannot be read",
    ),
    "a page that is called a stream": (Recorded(b"<!doctype html><title>Sign in</title>"), False, "cannot be read"),
    "an error that is called a stream": (Recorded(b'{"error": {"message": "busy", "code": 503}}'), True, "busy"),
    "an event that is no JSON": (Recorded(b"event: error\ndata: upstream reset\n\n"), True, "upstream reset"),
    "nothing": (Recorded(b""), True, "middle of the answer"),
    "comments alone": (Recorded(b": keep-alive\n\n: keep-alive\n\n"), True, "middle of the answer"),
    "broken gzip": (Recorded(b"\x1f\x8b nothing", headers={**STREAM, "content-encoding": "gzip"}), True, "lost"),
    "bytes that are no text": (Recorded(b'data: {"choices": "\xff\xfe"}\n\n'), False, "cannot be read"),
    "a code of many digits": (
        Recorded(b'data: {"error": {"code": "' + b"9" * 5000 + b'", "message": "x"}}\n\n'),
        True,
        "answered 500: x",
    ),
    "a code that is no status": (plain({"error": {"code": 20, "message": "busy"}}), True, "answered 500: busy"),
    "choices that are a text": (Recorded(b'data: {"choices": "x"}\n\n'), False, "choices that are none"),
    "a delta that is a text": (Recorded(b'data: {"choices": [{"delta": "x"}]}\n\n'), False, "cannot be read"),
    "deep nesting": (Recorded(b"data: " + b"[" * 100_000 + b"\n\n"), False, "cannot be read"),
}


@pytest.mark.parametrize("name", FAILURES)
def test_failure_is_described(ask: Any, server: RecordedServer, name: str) -> None:
    response, again, message = FAILURES[name]
    with pytest.raises(ModelError) as caught:
        ask(response)
    assert (isinstance(caught.value, ModelUnavailable), message in caught.value.message) == (again, True), caught.value
    assert len(caught.value.message) < 1_300
    assert len(server.requests) == 1


def test_plain_answers_are_read_like_streams(ask: Any) -> None:
    calls = [each["tool_calls"][0] for each in (call(None, "act", '{"n": 1}', "0"), call(None, "act", '{"n": 2}', "0"))]
    message = {"role": "assistant", "content": None, "reasoning_content": "Hm.", "tool_calls": calls}
    reply = ask(plain({"choices": [{"message": message, "finish_reason": "tool_calls"}], "usage": USAGE}))
    check(
        reply,
        Exchange([], [{"type": "thinking", "thinking": "Hm."}], [("act", {"n": 1}), ("act", {"n": 2})], "tool_use"),
    )


def test_field_that_a_server_refuses_is_left_out(ask: Any, server: RecordedServer) -> None:
    extra = {"detail": [{"type": "extra_forbidden", "loc": ["body", "stream_options"], "msg": "Extra inputs"}]}
    whole = Recorded(joined(EXCHANGES["Mistral: text with the usage in the last choice"]))
    assert ask(plain(extra, 422), whole).output_tokens == 20
    assert ["stream_options" in each for each in server.requests] == [True, False]
    ask(whole)
    assert "stream_options" not in server.requests[0]


@pytest.mark.parametrize(
    "fields", [{"thinking": "adaptive"}, {"service_tier": "auto"}, {"betas": ("x",)}, {"task_budget": 20_000}]
)
def test_setting_of_claude_is_refused_before_the_request(ask: Any, server: RecordedServer, fields: Any) -> None:
    [name] = fields
    with pytest.raises(ModelError, match=f"'own' cannot honour {name}"):
        ask(**fields)
    assert server.requests == []


def test_last_chunk_ends_the_answer_of_a_server_that_stays_silent(ask: Any) -> None:
    """Nothing after the usage is awaited."""
    silent = [*lines([*text("Hi.", usage=None), counted()]), "data: {nothing"]
    assert ask(Recorded("\n\n".join([*silent, ""]).encode())).content == HI
