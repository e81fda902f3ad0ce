"""Answers of servers that speak the Chat Completions API, in the forms that each of them sends.

They are written after the references of OpenAI, Ollama, vLLM, LiteLLM, Mistral, Groq, OpenRouter and DeepSeek.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

import pytest

from tests.conftest import Define
from tests.integration.conftest import ACT, InlineWorker, Tasks
from tests.support.providers import use_providers
from tests.support.recorded_http import Recorded, RecordedServer, plain, serve_recorded

USAGE = {"prompt_tokens": 100, "completion_tokens": 20, "total_tokens": 120}
CHARGED = 100 * 2 + 20 * 10
"""In micro-dollars, at the prices of `tests.support.providers`."""
SCHEMA = {"type": "object", "required": ["n"], "properties": {"n": {"type": "integer"}}, "additionalProperties": False}


def chunk(delta: Any = None, finish: str | None = None, **fields: Any) -> dict[str, Any]:
    """A chunk of a stream."""
    choice = {"index": 0, "delta": delta or {}, "finish_reason": finish}
    begun = {"id": "chatcmpl-1", "object": "chat.completion.chunk", "created": 1_790_000_000, "model": "qwen3:8b"}
    return {**begun, "choices": [choice], **fields}


def stream(*chunks: Any, done: bool = True, **how: Any) -> Recorded:
    """A stream of chunks; a text is a line of its own."""
    lines = [each if isinstance(each, str) else f"data: {json.dumps(each)}" for each in chunks]
    end = ["data: [DONE]"] if done else []
    return Recorded("".join(f"{line}\n\n" for line in [*lines, *end]).encode(), **how)


def counted(usage: Any = None) -> dict[str, Any]:
    """The last chunk, which has no choices."""
    return {**chunk(), "choices": [], "usage": USAGE if usage is None else usage}


def call(index: int | None, name: str | None, arguments: Any, id: str | None = None, **fields: Any) -> dict[str, Any]:
    """A delta of a tool call."""
    numbered = {} if index is None else {"index": index}
    named = {} if id is None else {"id": id}
    function = {**({} if name is None else {"name": name}), "arguments": arguments}
    return {"tool_calls": [{**numbered, **named, "type": "function", "function": function, **fields}]}


def completion(message: dict[str, Any], finish: str | None = "stop", usage: Any = None, **fields: Any) -> Recorded:
    """An answer that was not streamed."""
    choice = {"index": 0, "message": {"role": "assistant", **message}, "finish_reason": finish, "logprobs": None}
    begun = {"id": "chatcmpl-1", "object": "chat.completion", "created": 1_790_000_000, "model": "qwen3:8b"}
    return plain({**begun, "choices": [choice], "usage": USAGE if usage is None else usage, **fields})


ROLE = chunk({"role": "assistant", "content": ""})
HI = [ROLE, chunk({"content": "H"}), chunk({"content": "i."}), chunk({}, "stop"), counted()]
DONE = stream(ROLE, chunk({"content": "Done."}), chunk({}, "stop"), counted())


@dataclass(frozen=True)
class Case:
    """The outcome of a task whose model calls get these responses.

    Attributes:
        calls: the inputs of the calls of `act`.
        thoughts: of the first answer, which go back in the second request.
    """

    responses: list[Recorded]
    output: Any = "Hi."
    calls: list[Any] = field(default_factory=list)
    spent: int | None = None
    error: str | None = None
    schema: Any = None
    thoughts: dict[str, str] | None = None


CASES = {
    "OpenAI": Case(
        [stream(*HI, headers={"content-type": "text/event-stream", "x-request-id": "req_1"})], spent=CHARGED
    ),
    "OpenAI with obfuscation and a tier": Case(
        [stream(*({**each, "obfuscation": "x7f", "service_tier": "default"} for each in HI))], spent=CHARGED
    ),
    "OpenAI: two calls in pieces": Case(
        [
            stream(
                chunk({"role": "assistant", "content": None}),
                chunk(call(0, "act", "", "call_a")),
                chunk(call(0, None, '{"ans')),
                chunk(call(0, None, 'wer": 1}')),
                chunk(call(1, "act", "", "call_b")),
                chunk(call(1, None, '{"answer": 2}')),
                chunk({}, "tool_calls"),
                counted(),
            ),
            DONE,
        ],
        "Done.",
        [{"answer": 1}, {"answer": 2}],
        2 * CHARGED,
    ),
    "Azure: prompt filters before the first choice": Case(
        [stream({**chunk(), "choices": [], "model": "", "prompt_filter_results": [{"prompt_index": 0}]}, *HI)],
        spent=CHARGED,
    ),
    "Ollama: a whole call at once, without an index, stop as its reason": Case(
        [
            stream(
                chunk({"role": "assistant", "content": "", **call(None, "act", '{"answer": 3}', "call_o")}),
                chunk({"role": "assistant", "content": ""}, "stop"),
                counted(),
            ),
            DONE,
        ],
        "Done.",
        [{"answer": 3}],
        2 * CHARGED,
    ),
    "Ollama: two calls without ids and indexes": Case(
        [
            stream(
                chunk({"content": "", **call(None, "act", '{"answer": 1}')}),
                chunk({"content": "", **call(None, "act", '{"answer": 2}')}),
                chunk({}, "tool_calls"),
                counted(),
            ),
            DONE,
        ],
        "Done.",
        [{"answer": 1}, {"answer": 2}],
    ),
    "two calls with the same index and other ids": Case(
        [
            stream(
                chunk(call(0, "act", '{"answer": 1}', "a")),
                chunk(call(0, "act", '{"answer": 2}', "b")),
                chunk({}, "tool_calls"),
                counted(),
            ),
            DONE,
        ],
        "Done.",
        [{"answer": 1}, {"answer": 2}],
    ),
    "arguments as an object": Case(
        [stream(chunk(call(0, "act", {"answer": 4}, "c")), chunk({}, "tool_calls"), counted()), DONE],
        "Done.",
        [{"answer": 4}],
    ),
    "arguments that are null": Case(
        [stream(chunk(call(0, "act", None, "c")), chunk({}, "tool_calls"), counted()), DONE], "Done.", [{}]
    ),
    "a name in every delta": Case(
        [
            stream(
                chunk(call(0, "act", '{"answer"', "c")),
                chunk(call(0, "act", ": 5}", "c")),
                chunk({}, "tool_calls"),
                counted(),
            ),
            DONE,
        ],
        "Done.",
        [{"answer": 5}],
    ),
    "vLLM: reasoning_content, and the usage so far in each chunk": Case(
        [
            stream(
                chunk({"role": "assistant", "content": ""}, usage={"prompt_tokens": 100, "completion_tokens": 0}),
                chunk({"reasoning_content": "Let me "}, usage={"prompt_tokens": 100, "completion_tokens": 5}),
                chunk({"reasoning_content": "act."}, usage={"prompt_tokens": 100, "completion_tokens": 9}),
                chunk(call(0, "act", '{"answer": 1}', "chatcmpl-tool-1")),
                chunk({"content": ""}, "tool_calls", stop_reason=None),
                counted(),
            ),
            DONE,
        ],
        "Done.",
        [{"answer": 1}],
        2 * CHARGED,
        thoughts={"reasoning_content": "Let me act."},
    ),
    "OpenRouter: comments while it waits, reasoning, a cost": Case(
        [
            stream(
                ": OPENROUTER PROCESSING",
                ": OPENROUTER PROCESSING",
                chunk({"role": "assistant", "content": "", "reasoning": "Hm.", "reasoning_details": []}),
                chunk(call(0, "act", '{"answer": 1}', "c")),
                chunk({"content": ""}, "tool_calls", native_finish_reason="tool_calls"),
                counted({**USAGE, "cost": 0.5}),
            ),
            DONE,
        ],
        "Done.",
        [{"answer": 1}],
        2 * CHARGED,
        thoughts={"reasoning": "Hm."},
    ),
    "LiteLLM: usage in the last chunk with a choice, null content": Case(
        [
            stream(
                chunk({"role": "assistant", "content": "Hi.", "function_call": None, "tool_calls": None}),
                chunk({"content": None}, "stop"),
                chunk({"content": None}, None, usage={**USAGE, "prompt_tokens_details": None}),
            )
        ],
        spent=CHARGED,
    ),
    "Groq: usage under its own name": Case(
        [stream(*HI[:-2], chunk({}, "stop", x_groq={"id": "req_1", "usage": USAGE}))], spent=CHARGED
    ),
    "Mistral: content in parts": Case(
        [
            stream(
                chunk({"role": "assistant", "content": [{"type": "text", "text": "Hi"}]}),
                chunk({"content": "."}, "stop", usage=USAGE),
            )
        ],
        spent=CHARGED,
    ),
    "DeepSeek: its own count of cached tokens": Case(
        [stream(*HI[:-1], counted({**USAGE, "prompt_cache_hit_tokens": 60, "prompt_cache_miss_tokens": 40}))],
        spent=40 * 2 + 60 * 1 + 20 * 10,
    ),
    "OpenAI: cached tokens and thoughts within the answer": Case(
        [
            stream(
                *HI[:-1],
                counted(
                    {
                        **USAGE,
                        "prompt_tokens_details": {"cached_tokens": 60},
                        "completion_tokens_details": {"reasoning_tokens": 15},
                    }
                ),
            )
        ],
        spent=40 * 2 + 60 * 1 + 20 * 10,
    ),
    "xAI: thoughts beside the answer": Case(
        [
            stream(
                *HI[:-1],
                counted({**USAGE, "total_tokens": 135, "completion_tokens_details": {"reasoning_tokens": 15}}),
            )
        ],
        spent=100 * 2 + 35 * 10,
    ),
    "no usage": Case([stream(*HI[:-1])], spent=0),
    "no [DONE]": Case([stream(*HI, done=False)], spent=CHARGED),
    "byte by byte": Case([stream(*HI, size=1)], spent=CHARGED),
    "a content type that lies": Case([stream(*HI, headers={"content-type": "application/json"})], spent=CHARGED),
    "a character in two chunks": Case(
        [
            stream(
                'data: {"choices":[{"delta":{"content":"\\ud83d"}}]}',
                'data: {"choices":[{"delta":{"content":"\\ude00"},"finish_reason":"stop"}]}',
            )
        ],
        "😀",
    ),
    "a gateway that cannot stream": Case([completion({"content": "Hi."})], spent=CHARGED),
    "a plain answer with a call": Case(
        [
            completion(
                {
                    "content": None,
                    "tool_calls": [
                        {"id": "c", "type": "function", "function": {"name": "act", "arguments": '{"answer": 6}'}}
                    ],
                },
                "tool_calls",
            ),
            DONE,
        ],
        "Done.",
        [{"answer": 6}],
    ),
    "JSON in a code fence": Case([completion({"content": '```json\n{"n": 1}\n```'})], {"n": 1}, schema=SCHEMA),
    "cut off": Case([completion({"content": "Half"}, "length")], error="cut off at max_tokens", spent=CHARGED),
    "filtered": Case([completion({"content": ""}, "content_filter")], error="The model refused to answer"),
    "refused": Case(
        [stream(ROLE, chunk({"refusal": "I cannot "}), chunk({"refusal": "help."}), chunk({}, "stop"), counted())],
        error="The model refused to answer. I cannot help.",
    ),
    "no reason": Case([completion({"content": "Hi."}, None)], error="its stop reason is 'none'"),
    "a reason of next year": Case([completion({"content": "Hi."}, "moon")], error="its stop reason is 'moon'"),
    "calls without a call": Case([completion({"content": ""}, "tool_calls")], error="ended its turn for a tool call"),
    "a call without a name": Case(
        [stream(chunk(call(0, None, "{}", "c")), chunk({}, "tool_calls"))], error="a tool call without a name"
    ),
    "a call that is none": Case(
        [stream(chunk({"tool_calls": ["act"]}), chunk({}, "tool_calls"))], error="a tool call that is none"
    ),
    "no JSON": Case([stream("data: {nothing")], error="answer cannot be read: "),
    "no object": Case([stream("data: [1]")], error="answer cannot be read: not an object"),
    "a page of HTML": Case(
        [Recorded(b"<html></html>", headers={"content-type": "text/html"})], error="answer cannot be read: "
    ),
    "no choices": Case([plain({"id": "chatcmpl-1"})], error="answer cannot be read: "),
    "an error of OpenAI": Case(
        [plain({"error": {"message": "Invalid 'messages'", "type": "invalid_request_error", "code": None}}, 400)],
        error="The provider 'own' answered 400: Invalid 'messages'",
    ),
    "an error of vLLM": Case(
        [plain({"object": "error", "message": "max_tokens is too large", "code": 400}, 400)],
        error="The provider 'own' answered 400: ",
    ),
    "an unknown model": Case(
        [plain({"error": {"message": "model not found", "type": "api_error"}}, 404)],
        error="The provider 'own' does not know the model 'own:qwen3:8b'. It answered 404: model not found",
    ),
    "no money": Case(
        [plain({"error": {"message": "You exceeded your quota", "code": "insufficient_quota"}}, 429)],
        error="answered 429: You exceeded your quota",
    ),
    "an error in the stream with a status": Case(
        [stream(ROLE, {"error": {"message": "too long", "code": 400}})], error="answered 400: too long"
    ),
}


@pytest.fixture
def recorded_server(monkeypatch: pytest.MonkeyPatch) -> Iterator[RecordedServer]:
    """The server that this process's minion talks to."""
    with serve_recorded() as replay, use_providers(replay.url, monkeypatch):
        yield replay


@pytest.fixture
def run(define: Define, tasks: Tasks, inline_worker: InlineWorker, recorded_server: RecordedServer) -> Any:
    """Runs a task of an agent with the tool `act` against these responses, once."""

    def once(*responses: Recorded, **fields: Any) -> dict[str, Any]:
        define(
            {**ACT, "input_schema": {"type": "object"}},
            {
                "kind": "agent",
                "name": "Agent",
                "model": "own:qwen3:8b",
                "tools": ["act"],
                "config": {"capabilities": ["work"]},
                **fields,
            },
        )
        recorded_server.responses = list(responses)
        task = tasks.submit("Agent", "Hello")
        inline_worker.run_due()
        return tasks.get(task)

    return once


@pytest.mark.parametrize("name", CASES)
def test_recorded_answer_gives_expected_outcome(
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
        assert (task["state"], case.error in task["error"]["message"]) == ("failed", True), task["error"]
        return
    output = case.output if case.schema else {"content": case.output}
    assert (task["state"], task["output"], task["error"]) == ("succeeded", output, None)
    if case.calls:
        asked, *results = recorded_server.requests[1]["messages"][1:]
        assert [result["tool_call_id"] for result in results] == [each["id"] for each in asked["tool_calls"]]
        assert asked.items() >= (case.thoughts or {}).items()


@pytest.mark.parametrize(
    "response",
    [
        stream(ROLE, chunk({"content": "Half"}), done=False),
        stream(*HI[:2], done=False, cut=True),
        stream(ROLE, {"error": {"message": "overloaded", "code": 503}}),
        stream(ROLE, {"error": {"message": "overloaded", "type": "server_error"}}),
        Recorded(b'event: error\ndata: {"message": "overloaded"}\n\n'),
        plain({"error": {"message": "busy"}}, 503),
        plain({"detail": "busy"}, 429, retry_after="7"),
    ],
)
def test_answer_after_which_it_is_asked_again(run: Any, tasks: Tasks, response: Recorded) -> None:
    task = run(response, plain({"error": {"message": "busy"}}, 503, retry_after="30"))
    assert (task["state"], task["wait_reason"], task["attempts"]) == ("waiting", "model_unavailable", 0)
