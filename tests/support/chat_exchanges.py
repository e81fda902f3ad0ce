"""Answers of servers that speak the Chat Completions API, in the forms that their references describe.

OpenAI, Azure, Ollama, vLLM, LiteLLM, OpenRouter, Groq, Mistral, DeepSeek, Gemini, llama.cpp, TGI, LM Studio, xAI,
Moonshot, SGLang, Together, Fireworks, Cerebras, Perplexity and gateways in front of them.
"""

from __future__ import annotations

import gzip
import json
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from tests.support.recorded_http import JSON, STREAM, Recorded
from workers.llm.base import ModelReply

Fields = dict[str, Any]
USAGE = {"prompt_tokens": 100, "completion_tokens": 20, "total_tokens": 120}
HI = [{"type": "text", "text": "Hi."}]
ARGUMENTS = '{"answer": "ä 😀 \\"x\\" {}"}'
INPUT = {"answer": 'ä 😀 "x" {}'}


@dataclass(frozen=True)
class Exchange:
    """An answer as chunks of a stream, and the reply that it must become.

    Attributes:
        calls: names and inputs of calls, beside `content`.
        usage: input, output, cached and thinking tokens; None: none is reported.
    """

    chunks: list[Any]
    content: list[Fields] = field(default_factory=lambda: HI)
    calls: list[tuple[str, Fields]] = field(default_factory=list)
    stop: str = "end_turn"
    usage: tuple[int, int, int, int] | None = (100, 20, 0, 0)


def chunk(delta: Any = None, finish: Any = None, **fields: Any) -> Fields:
    """A chunk of a stream."""
    choice = {"index": 0, "delta": {} if delta is None else delta, "finish_reason": finish, "logprobs": None}
    begun = {"id": "chatcmpl-1", "object": "chat.completion.chunk", "created": 1_790_000_000, "model": "qwen3:8b"}
    return {**begun, "choices": [choice], **fields}


def counted(usage: Any = USAGE, **fields: Any) -> Fields:
    """The chunk with the usage, which has no choices."""
    return {**chunk(**fields), "choices": [], "usage": usage}


def call(index: Any = None, name: str | None = None, arguments: Any = None, id: Any = None, **more: Any) -> Fields:
    """A delta of a tool call; what is None is left out."""
    function = {**({} if name is None else {"name": name}), **({} if arguments is None else {"arguments": arguments})}
    given = {"index": index, "id": id}
    return {
        "tool_calls": [
            {
                **{name: value for name, value in given.items() if value is not None},
                **more,
                "type": "function",
                "function": function,
            }
        ]
    }


def text(*pieces: str, finish: Any = "stop", usage: Any = USAGE, **fields: Any) -> list[Fields]:
    """A text in pieces, its end, and the usage."""
    said = [chunk({"content": piece}, **fields) for piece in pieces]
    return [ROLE, *said, chunk({}, finish, **fields), *([counted(usage)] if usage is not None else [])]


def called(*deltas: Fields, finish: Any = "tool_calls") -> list[Fields]:
    """Deltas of calls, their end, and the usage."""
    return [ROLE, *map(chunk, deltas), chunk({}, finish), counted()]


def thought(said: str, **fields: Any) -> Fields:
    return {"type": "thinking", "thinking": said, **fields}


ROLE = chunk({"role": "assistant", "content": ""})
ACT = [("act", INPUT)]
SIGNATURE = {"google": {"thought_signature": "CiQB0e2Kb+/=="}}
SPLIT = [call(0, None, letter) for letter in ARGUMENTS]
DETAIL = {"type": "reasoning.text", "format": "anthropic-claude-v1", "index": 0}

EXCHANGES = {
    # OpenAI, Azure
    "OpenAI: text": Exchange(text("H", "i", ".")),
    "OpenAI: nulls for what an answer lacks": Exchange(
        [
            chunk({"role": "assistant", "content": "Hi.", "refusal": None, "audio": None, "annotations": []}),
            chunk({}, "stop"),
            counted({**USAGE, "prompt_tokens_details": {"cached_tokens": 0, "audio_tokens": 0}}),
        ]
    ),
    "OpenAI: null usage in each chunk": Exchange([*text("Hi.", usage=None), counted()]),
    "OpenAI: usage null until the end": Exchange(
        [chunk({"content": "Hi."}, usage=None), chunk({}, "stop", usage=None), counted()]
    ),
    "OpenAI: obfuscation and tier": Exchange(text("Hi.", obfuscation="aB", service_tier="default")),
    "OpenAI: refusal in pieces": Exchange(
        [
            chunk({"role": "assistant", "refusal": ""}),
            chunk({"refusal": "I "}),
            chunk({"refusal": "can't."}),
            chunk({}, "stop"),
            counted(),
        ],
        [],
        stop="refusal",
    ),
    "OpenAI: refusal beside null content": Exchange(
        [chunk({"content": None, "refusal": "No."}), chunk({}, "stop"), counted()], [], stop="refusal"
    ),
    "OpenAI: filtered": Exchange(
        text("Half", finish="content_filter"), [{"type": "text", "text": "Half"}], stop="refusal"
    ),
    "OpenAI: cut at the limit": Exchange(
        text("Half", finish="length"), [{"type": "text", "text": "Half"}], stop="max_tokens"
    ),
    "OpenAI: cached tokens and thoughts": Exchange(
        text(
            "Hi.",
            usage={
                **USAGE,
                "prompt_tokens_details": {"cached_tokens": 64},
                "completion_tokens_details": {"reasoning_tokens": 12, "accepted_prediction_tokens": 0},
            },
        ),
        usage=(100, 20, 64, 12),
    ),
    "OpenAI: a call": Exchange(called(call(0, "act", "", "call_a"), call(0, None, ARGUMENTS)), [], ACT, "tool_use"),
    "OpenAI: a call letter by letter": Exchange(called(call(0, "act", "", "call_a"), *SPLIT), [], ACT, "tool_use"),
    "OpenAI: calls in turns": Exchange(
        called(
            call(0, "act", "", "a"),
            call(1, "echo", "", "b"),
            call(0, None, '{"n":'),
            call(1, None, '{"n": 2'),
            call(0, None, " 1}"),
            call(1, None, "}"),
        ),
        [],
        [("act", {"n": 1}), ("echo", {"n": 2})],
        "tool_use",
    ),
    "OpenAI: text before a call": Exchange(
        [ROLE, chunk({"content": "Hi."}), *called(call(0, "act", ARGUMENTS, "a"))], HI, ACT, "tool_use"
    ),
    "OpenAI: two calls in one delta": Exchange(
        [
            chunk(
                {
                    "tool_calls": [
                        *call(0, "act", '{"n": 1}', "a")["tool_calls"],
                        *call(1, "act", '{"n": 2}', "b")["tool_calls"],
                    ]
                }
            ),
            chunk({}, "tool_calls"),
            counted(),
        ],
        [],
        [("act", {"n": 1}), ("act", {"n": 2})],
        "tool_use",
    ),
    "OpenAI: stop as the reason of a forced call": Exchange(
        called(call(0, "act", ARGUMENTS, "a"), finish="stop"), [], ACT, "tool_use"
    ),
    "Azure: filters of the prompt come first": Exchange(
        [
            {
                "choices": [],
                "created": 0,
                "id": "",
                "model": "",
                "object": "",
                "prompt_filter_results": [{"prompt_index": 0, "content_filter_results": {"hate": {"filtered": False}}}],
            },
            *text("Hi."),
        ]
    ),
    "Azure: filters at each choice": Exchange(
        [
            {**each, "choices": [{**choice, "content_filter_results": {}} for choice in each["choices"]]}
            for each in text("Hi.")
        ]
    ),
    "Azure: offsets of a filter that looks later, without a delta": Exchange(
        [
            *text("Hi.")[:-1],
            {**chunk(), "choices": [{"index": 0, "finish_reason": None, "content_filter_offsets": {}}]},
            counted(),
        ]
    ),
    "Azure: filtered in the middle": Exchange(
        [
            chunk({"content": "Half"}),
            {
                **chunk(),
                "choices": [
                    {
                        "index": 0,
                        "finish_reason": "content_filter",
                        "content_filter_results": {"hate": {"filtered": True}},
                    }
                ],
            },
            counted(),
        ],
        [{"type": "text", "text": "Half"}],
        stop="refusal",
    ),
    # Ollama, LM Studio
    "Ollama: text": Exchange(
        [chunk({"role": "assistant", "content": "Hi."}), chunk({"role": "assistant", "content": ""}, "stop"), counted()]
    ),
    "Ollama: a whole call, and stop": Exchange(
        called({"content": "", **call(0, "act", ARGUMENTS, "call_8k2")}, finish="stop"), [], ACT, "tool_use"
    ),
    "Ollama: calls that all have index 0": Exchange(
        called(call(0, "act", '{"n": 1}', "call_1"), call(0, "act", '{"n": 2}', "call_2")),
        [],
        [("act", {"n": 1}), ("act", {"n": 2})],
        "tool_use",
    ),
    "Ollama: calls without ids and indexes": Exchange(
        called(call(None, "act", '{"n": 1}'), call(None, "act", '{"n": 2}')),
        [],
        [("act", {"n": 1}), ("act", {"n": 2})],
        "tool_use",
    ),
    "Ollama: thoughts": Exchange(
        [
            chunk({"role": "assistant", "content": "", "reasoning": "Hm"}),
            chunk({"content": "", "reasoning": "."}),
            *text("Hi."),
        ],
        [thought("Hm.", field="reasoning"), *HI],
    ),
    "LM Studio: ids of digits": Exchange(
        called(call(0, "act", "", "365174485"), call(0, None, ARGUMENTS)), [], ACT, "tool_use"
    ),
    "LM Studio: a name in two deltas of the same id": Exchange(
        called(call(0, "act", None, "3"), call(0, "act", ARGUMENTS, "3")), [], ACT, "tool_use"
    ),
    "LM Studio: stats beside the usage": Exchange(text("Hi.", stats={}, system_fingerprint="qwen3")),
    # vLLM, SGLang, TGI
    "vLLM: thoughts of a parser": Exchange(
        [ROLE, chunk({"reasoning_content": "Let "}), chunk({"reasoning_content": "me."}), *text("Hi.")],
        [thought("Let me."), *HI],
    ),
    "vLLM: thoughts under both names": Exchange(
        [ROLE, chunk({"reasoning_content": "Hm.", "reasoning": "Hm."}), *text("Hi.")], [thought("Hm."), *HI]
    ),
    "vLLM: thoughts under the new name, the old one empty": Exchange(
        [ROLE, chunk({"reasoning_content": "", "reasoning": "Hm."}), *text("Hi.")],
        [thought("Hm.", field="reasoning"), *HI],
    ),
    "vLLM: null content beside thoughts": Exchange(
        [ROLE, chunk({"content": None, "reasoning_content": "Hm."}), *text("Hi.")], [thought("Hm."), *HI]
    ),
    "vLLM: usage so far in each chunk": Exchange(
        [
            chunk({"content": "Hi"}, usage={"prompt_tokens": 100, "total_tokens": 101, "completion_tokens": 1}),
            chunk({"content": "."}, usage={"prompt_tokens": 100, "total_tokens": 102, "completion_tokens": 2}),
            chunk(
                {"content": ""},
                "stop",
                stop_reason=None,
                usage={"prompt_tokens": 100, "total_tokens": 120, "completion_tokens": 20},
            ),
            counted(),
        ]
    ),
    "vLLM: a tool parser that repeats the id": Exchange(
        called(call(0, "act", "", "chatcmpl-tool-1"), call(0, None, ARGUMENTS, "chatcmpl-tool-1")), [], ACT, "tool_use"
    ),
    "vLLM: null id and name in later deltas": Exchange(
        called(
            call(0, "act", "", "chatcmpl-tool-1"),
            {"tool_calls": [{"index": 0, "id": None, "function": {"name": None, "arguments": ARGUMENTS}}]},
        ),
        [],
        ACT,
        "tool_use",
    ),
    "vLLM: prompt details null": Exchange(text("Hi.", usage={**USAGE, "prompt_tokens_details": None})),
    "SGLang: thoughts and text in one delta": Exchange(
        [chunk({"reasoning_content": "Hm.", "content": "Hi."}), chunk({}, "stop", matched_stop=151645), counted()],
        [thought("Hm."), *HI],
    ),
    "SGLang: deltas without fields": Exchange(
        [chunk({"role": "assistant", "content": "", "reasoning_content": None, "tool_calls": None}), *text("Hi.")]
    ),
    "TGI: eos_token as the reason": Exchange(text("Hi.", finish="eos_token")),
    "TGI: the same id for each call": Exchange(
        called(call(0, "act", '{"n": 1}', "0"), call(1, "act", '{"n": 2}', "0")),
        [],
        [("act", {"n": 1}), ("act", {"n": 2})],
        "tool_use",
    ),
    "TGI: calls with eos_token as the reason": Exchange(
        called(call(0, "act", ARGUMENTS, "0"), finish="eos_token"), [], ACT, "tool_use"
    ),
    "TGI: arguments as an object": Exchange(called(call(0, "act", INPUT, "0", **{})), [], ACT, "tool_use"),
    # llama.cpp
    "llama.cpp: timings": Exchange(text("Hi.", timings={"prompt_n": 1, "predicted_ms": 12.5})),
    "llama.cpp: timings and progress of the prompt": Exchange(
        [chunk({"role": "assistant", "content": None}, prompt_progress={"total": 10, "processed": 5}), *text("Hi.")]
    ),
    "llama.cpp: thoughts": Exchange([ROLE, chunk({"reasoning_content": "Hm."}), *text("Hi.")], [thought("Hm."), *HI]),
    "llama.cpp: a call in pieces with its id once": Exchange(
        called(call(0, "act", "{", "5iqxhlwE1VXtP8"), *(call(0, None, each) for each in ARGUMENTS[1:])),
        [],
        ACT,
        "tool_use",
    ),
    # OpenRouter, LiteLLM
    "OpenRouter: comments": Exchange([": OPENROUTER PROCESSING", ": OPENROUTER PROCESSING", *text("Hi.")]),
    "OpenRouter: a comment in the middle": Exchange(
        [ROLE, chunk({"content": "H"}), ": OPENROUTER PROCESSING", *text("i.")]
    ),
    "OpenRouter: usage in a choice without a reason": Exchange(
        [*text("Hi.", usage=None), chunk({"role": "assistant", "content": ""}, None, usage={**USAGE, "cost": 0.01})]
    ),
    "OpenRouter: details of thoughts in pieces": Exchange(
        [
            ROLE,
            chunk({"reasoning": "Let ", "reasoning_details": [{**DETAIL, "text": "Let "}]}),
            chunk({"reasoning": "me.", "reasoning_details": [{**DETAIL, "text": "me."}]}),
            chunk({"reasoning_details": [{**DETAIL, "text": None, "signature": "c2ln"}]}),
            *text("Hi."),
        ],
        [thought("Let me.", field="reasoning", details=[{**DETAIL, "text": "Let me.", "signature": "c2ln"}]), *HI],
    ),
    "OpenRouter: encrypted thoughts alone": Exchange(
        [
            ROLE,
            chunk(
                {
                    "reasoning": None,
                    "reasoning_details": [
                        {
                            "type": "reasoning.encrypted",
                            "data": "abc",
                            "id": "tool_1",
                            "format": "google-gemini-v1",
                            "index": 0,
                        }
                    ],
                }
            ),
            *called(call(0, "act", ARGUMENTS, "tool_1")),
        ],
        [
            thought(
                "",
                field="reasoning",
                details=[
                    {
                        "type": "reasoning.encrypted",
                        "data": "abc",
                        "id": "tool_1",
                        "format": "google-gemini-v1",
                        "index": 0,
                    }
                ],
            )
        ],
        ACT,
        "tool_use",
    ),
    "LiteLLM: usage in a last chunk with a choice": Exchange(
        [*text("Hi.", usage=None), chunk({}, None, usage={**USAGE, "prompt_tokens_details": None})]
    ),
    "LiteLLM: nulls everywhere": Exchange(
        [
            chunk(
                {"content": "Hi.", "role": "assistant", "function_call": None, "tool_calls": None, "audio": None},
                provider_specific_fields=None,
                citations=None,
            ),
            chunk({}, "stop"),
            counted(),
        ]
    ),
    "LiteLLM: fields of its provider": Exchange(
        [chunk({"content": "Hi.", "provider_specific_fields": {"x": 1}}), chunk({}, "stop"), counted()]
    ),
    "LiteLLM: usage twice": Exchange([*text("Hi."), counted()]),
    # hosted models
    "Groq: usage under its name": Exchange(
        [
            *text("Hi.", usage=None)[:-1],
            chunk({}, "stop", x_groq={"id": "req_1", "usage": {**USAGE, "queue_time": 0.1}}),
        ]
    ),
    "Groq: usage in both places": Exchange([*text("Hi."), {**counted(), "x_groq": {"usage": USAGE}}]),
    "Groq: an id at the beginning": Exchange([{**ROLE, "x_groq": {"id": "req_1"}}, *text("Hi.")]),
    "Groq: thoughts with a channel": Exchange(
        [ROLE, chunk({"reasoning": "Hm.", "channel": "analysis"}), *text("Hi.")],
        [thought("Hm.", field="reasoning"), *HI],
    ),
    "Mistral: text with the usage in the last choice": Exchange(
        [
            chunk({"role": "assistant", "content": ""}),
            chunk({"content": "Hi."}),
            chunk({"content": ""}, "stop", usage=USAGE),
        ]
    ),
    "Mistral: parts of text": Exchange([chunk({"content": [{"type": "text", "text": "Hi"}]}), *text(".")]),
    "Mistral: thoughts among the parts": Exchange(
        [
            ROLE,
            chunk({"content": [{"type": "thinking", "thinking": [{"type": "text", "text": "H"}]}]}),
            chunk({"content": [{"type": "thinking", "thinking": [{"type": "text", "text": "m."}], "closed": True}]}),
            *text("Hi."),
        ],
        [thought("Hm.", field="content"), *HI],
    ),
    "Mistral: a whole call with an id of nine letters": Exchange(
        [chunk(call(0, "act", ARGUMENTS, "D681PevKs"), "tool_calls", usage=USAGE)], [], ACT, "tool_use"
    ),
    "Mistral: cut by the model's length": Exchange(
        text("Half", finish="model_length"), [{"type": "text", "text": "Half"}], stop="max_tokens"
    ),
    "DeepSeek: thoughts, then null content": Exchange(
        [
            chunk({"role": "assistant", "content": None, "reasoning_content": ""}),
            chunk({"content": None, "reasoning_content": "Hm."}),
            chunk({"content": "Hi.", "reasoning_content": None}),
            chunk(
                {"content": "", "reasoning_content": None},
                "stop",
                usage={
                    **USAGE,
                    "prompt_cache_hit_tokens": 64,
                    "prompt_cache_miss_tokens": 36,
                    "prompt_tokens_details": {"cached_tokens": 64},
                    "completion_tokens_details": {"reasoning_tokens": 9},
                },
            ),
        ],
        [thought("Hm."), *HI],
        usage=(100, 20, 64, 9),
    ),
    "DeepSeek: comments to keep the connection": Exchange([": keep-alive", "", ": keep-alive", *text("Hi.")]),
    "DeepSeek: thoughts before a call": Exchange(
        [ROLE, chunk({"reasoning_content": "Hm."}), *called(call(0, "act", "", "call_00_x"), call(0, None, ARGUMENTS))],
        [thought("Hm.")],
        ACT,
        "tool_use",
    ),
    "Gemini: a signature at a call": Exchange(
        [
            chunk(
                {"role": "assistant", **call(0, "act", ARGUMENTS, "function-call-1", extra_content=SIGNATURE)},
                "tool_calls",
                usage=USAGE,
            )
        ],
        [],
        ACT,
        "tool_use",
    ),
    "Gemini: calls that all have index 0, one signature": Exchange(
        [
            chunk({**call(0, "act", '{"n": 1}', "f-1", extra_content=SIGNATURE)}),
            chunk({**call(0, "act", '{"n": 2}', "f-2")}, "stop"),
            counted(),
        ],
        [],
        [("act", {"n": 1}), ("act", {"n": 2})],
        "tool_use",
    ),
    "Gemini: empty ids": Exchange(
        [chunk(call(0, "act", '{"n": 1}', "")), chunk(call(0, "act", '{"n": 2}', ""), "tool_calls"), counted()],
        [],
        [("act", {"n": 1}), ("act", {"n": 2})],
        "tool_use",
    ),
    "Gemini: the total alone counts thoughts": Exchange(
        text("Hi.", usage={**USAGE, "total_tokens": 180}), usage=(100, 80, 0, 60)
    ),
    "Gemini: usage so far in each chunk": Exchange(
        [
            chunk(
                {"role": "assistant", "content": "H"},
                usage={"prompt_tokens": 100, "completion_tokens": 0, "total_tokens": 100},
            ),
            chunk({"role": "assistant", "content": "i."}, "stop", usage=USAGE),
        ]
    ),
    "xAI: thoughts beside the answer": Exchange(
        [
            ROLE,
            chunk({"reasoning_content": "Hm."}),
            *text("Hi.", usage={**USAGE, "total_tokens": 135, "completion_tokens_details": {"reasoning_tokens": 15}}),
        ],
        [thought("Hm."), *HI],
        usage=(100, 35, 0, 15),
    ),
    "xAI: a whole call in one chunk": Exchange(
        [chunk({"role": "assistant", "content": "", **call(0, "act", ARGUMENTS, "call_1")}, "tool_calls"), counted()],
        [],
        ACT,
        "tool_use",
    ),
    "Moonshot: usage in the choice": Exchange(
        [
            *text("Hi.", usage=None)[:-1],
            {
                **chunk(),
                "choices": [
                    {"index": 0, "delta": {}, "finish_reason": "stop", "usage": {**USAGE, "cached_tokens": 60}}
                ],
            },
        ],
        usage=(100, 20, 60, 0),
    ),
    "Moonshot: ids with the name of the tool": Exchange(
        called(call(0, "act", "", "functions.act:0"), call(0, None, ARGUMENTS)), [], ACT, "tool_use"
    ),
    "Together: null delta at the end": Exchange(
        [
            *text("Hi.", usage=None)[:-1],
            {**chunk(usage=USAGE), "choices": [{"index": 0, "delta": None, "finish_reason": "stop"}]},
        ]
    ),
    "Fireworks: usage with the reason": Exchange([*text("Hi.", usage=None)[:-1], chunk({}, "stop", usage=USAGE)]),
    "Cerebras: time_info": Exchange(
        [*text("Hi.", usage=None)[:-1], chunk({}, "stop", usage=USAGE, time_info={"total_time": 0.1})]
    ),
    "Perplexity: usage so far, sources, whole message in each chunk": Exchange(
        [
            {
                **chunk(usage={**USAGE, "completion_tokens": 1, "total_tokens": 101}),
                "citations": ["https://a.example"],
                "choices": [
                    {
                        "index": 0,
                        "delta": {"content": "Hi."},
                        "message": {"role": "assistant", "content": "Hi."},
                        "finish_reason": None,
                    }
                ],
            },
            {
                **chunk(usage=USAGE),
                "choices": [
                    {"index": 0, "delta": {"content": ""}, "message": {"content": "Hi."}, "finish_reason": "stop"}
                ],
            },
        ]
    ),
    # gateways
    "no usage": Exchange(text("Hi.", usage=None), usage=None),
    "usage of zeros": Exchange(text("Hi.", usage=dict.fromkeys(USAGE, 0)), usage=None),
    "usage of zeros after the numbers": Exchange([*text("Hi."), counted(dict.fromkeys(USAGE, 0))]),
    "usage in two halves": Exchange(
        [
            chunk({"content": "Hi."}, usage={"prompt_tokens": 100, "completion_tokens": 0}),
            chunk({}, "stop"),
            counted({"prompt_tokens": 0, "completion_tokens": 20}),
        ]
    ),
    "usage before the text": Exchange([counted(), *text("Hi.", usage=None)]),
    "usage of decimals": Exchange(text("Hi.", usage={"prompt_tokens": 100.0, "completion_tokens": 20.0})),
    "usage of nonsense": Exchange(text("Hi.", usage={"prompt_tokens": "100", "completion_tokens": None}), usage=None),
    "usage that is a text": Exchange(text("Hi.", usage="120 tokens"), usage=None),
    "usage that is below zero": Exchange(
        text("Hi.", usage={"prompt_tokens": -5, "completion_tokens": 20}), usage=(0, 20, 0, 0)
    ),
    "gaps between indexes": Exchange(
        called(call(3, "act", '{"n": 1}', "a"), call(7, "act", '{"n": 2}', "b")),
        [],
        [("act", {"n": 1}), ("act", {"n": 2})],
        "tool_use",
    ),
    "indexes that begin with 1": Exchange(called(call(1, "act", ARGUMENTS, "a")), [], ACT, "tool_use"),
    "indexes backwards": Exchange(
        called(call(1, "act", '{"n": 1}', "a"), call(0, "act", '{"n": 2}', "b")),
        [],
        [("act", {"n": 1}), ("act", {"n": 2})],
        "tool_use",
    ),
    "calls that continue by id alone": Exchange(
        called(
            call(None, "act", '{"n"', "a"),
            call(None, "act", '{"n"', "b"),
            call(None, None, ": 1}", "a"),
            call(None, None, ": 2}", "b"),
        ),
        [],
        [("act", {"n": 1}), ("act", {"n": 2})],
        "tool_use",
    ),
    "two calls of one id and one index": Exchange(
        called(call(0, "act", '{"n": 1}', "a"), call(0, "act", '{"n": 2}', "a")),
        [],
        [("act", {"n": 1}), ("act", {"n": 2})],
        "tool_use",
    ),
    "the name again with the last, empty piece": Exchange(
        called(call(0, "act", ARGUMENTS, "a"), call(0, "act", "", "a")), [], ACT, "tool_use"
    ),
    "ids of numbers": Exchange(called(call(0, "act", ARGUMENTS, 17)), [], ACT, "tool_use"),
    "no arguments": Exchange(called(call(0, "act", "", "a")), [], [("act", {})], "tool_use"),
    "arguments that are null": Exchange(called(call(0, "act", "null", "a")), [], [("act", {})], "tool_use"),
    "arguments that are blank": Exchange(called(call(0, "act", " \n", "a")), [], [("act", {})], "tool_use"),
    "arguments cut off": Exchange(
        called(call(0, "act", '{"n": ', "a")), [], [("act", {"INVALID_JSON": '{"n": '})], "tool_use"
    ),
    "arguments that are a list": Exchange(
        called(call(0, "act", "[1]", "a")), [], [("act", {"INVALID_JSON": "[1]"})], "tool_use"
    ),
    "arguments with NaN": Exchange(
        called(call(0, "act", '{"n": NaN}', "a")), [], [("act", {"INVALID_JSON": '{"n": NaN}'})], "tool_use"
    ),
    "arguments that are JSON in JSON": Exchange(
        called(call(0, "act", json.dumps(ARGUMENTS), "a")),
        [],
        [("act", {"INVALID_JSON": json.dumps(ARGUMENTS)})],
        "tool_use",
    ),
    "an empty finish_reason in each chunk": Exchange([chunk({"content": "Hi."}, ""), chunk({}, "stop"), counted()]),
    "two reasons": Exchange([*text("Hi.", usage=None), chunk({}, "stop"), counted()]),
    "events without choices": Exchange([{"id": "x", "object": "ping"}, *text("Hi.")]),
    "choices that are null": Exchange([{**chunk(), "choices": None}, *text("Hi.")]),
    "an error that is null": Exchange(text("Hi.", error=None)),
    "an unknown reason": Exchange(text("Hi.", finish="moon"), stop="moon"),
    "a reason that is a number": Exchange(text("Hi.", finish=7), stop="7"),
    "text with separators of lines": Exchange(
        text("a\u2028b\u2029c\u0085d\r\ne\x1c"), [{"type": "text", "text": "a\u2028b\u2029c\u0085d\r\ne\x1c"}]
    ),
    "text with half a character": Exchange(text("\ud83d", "\ude00"), [{"type": "text", "text": "😀"}]),
    "text that looks like the end": Exchange(
        text("[DONE]", "data: [DONE]"), [{"type": "text", "text": "[DONE]data: [DONE]"}]
    ),
}


def lines(chunks: list[Any]) -> list[str]:
    """Return chunks as lines of a stream; texts are lines already."""
    return [each if isinstance(each, str) else f"data: {json.dumps(each)}" for each in chunks]


def in_lines(exchange: Exchange) -> list[str]:
    return [*lines(exchange.chunks), "data: [DONE]"]


def joined(exchange: Exchange, end: str = "\n", before: str = "data: ") -> bytes:
    return "".join(line.replace("data: ", before, 1) + end * 2 for line in in_lines(exchange)).encode()


def in_several_lines(exchange: Exchange) -> bytes:
    """The JSON of each chunk in several lines, each with a `data` field."""
    events = []
    for each in exchange.chunks:
        said = each if isinstance(each, str) else json.dumps(each, indent=1)
        events.append(said if isinstance(each, str) else "\n".join(f"data: {line}" for line in said.split("\n")))
    return "\n\n".join([*events, "data: [DONE]", ""]).encode()


WAYS: dict[str, Callable[[Exchange], Recorded]] = {
    "as usual": lambda each: Recorded(joined(each)),
    "byte by byte": lambda each: Recorded(joined(each), size=1),
    "in odd pieces": lambda each: Recorded(joined(each, "\r\n"), size=7),
    "CRLF": lambda each: Recorded(joined(each, "\r\n")),
    "CR": lambda each: Recorded(joined(each, "\r")),
    "no space after the colon": lambda each: Recorded(joined(each, before="data:")),
    "several lines of data": lambda each: Recorded(in_several_lines(each)),
    "ids and names of events": lambda each: Recorded(joined(each, before="id: 1\nevent: message\ndata: ")),
    "no empty lines": lambda each: Recorded("\n".join(in_lines(each)).encode()),
    "no empty line at the end": lambda each: Recorded(joined(each).rstrip()),
    "no [DONE]": lambda each: Recorded(joined(each).replace(b"data: [DONE]\n\n", b"")),
    "a connection lost at its end": lambda each: Recorded(joined(each).replace(b"data: [DONE]\n\n", b""), cut=True),
    "a content type that lies": lambda each: Recorded(joined(each), headers=JSON),
    "no content type": lambda each: Recorded(joined(each), headers={}),
    "gzip": lambda each: Recorded(gzip.compress(joined(each)), headers={**STREAM, "content-encoding": "gzip"}, size=9),
    "garbage after [DONE]": lambda each: Recorded(joined(each) + b"data: <html>\n\n"),
}


def check(reply: ModelReply, exchange: Exchange) -> None:
    """Compare a reply with the one that an exchange must give."""
    calls = [block for block in reply.content if block["type"] == "tool_use"]
    assert [block for block in reply.content if block["type"] != "tool_use"] == exchange.content
    assert [(block["name"], block["input"]) for block in calls] == exchange.calls
    ids = [block["id"] for block in calls]
    assert all(isinstance(id, str) and id for id in ids)
    assert len({*ids}) == len(ids)
    assert reply.stop_reason == exchange.stop
    if exchange.usage is None:
        assert reply.cost_microdollars is None
        return
    asked, answered, cached, thoughts = exchange.usage
    assert (reply.input_tokens, reply.output_tokens, reply.cache_read_tokens) == (asked, answered, cached)
    assert reply.used_besides.get("thinking_tokens", 0) == thoughts
    assert reply.cost_microdollars == (asked - cached) * 2 + cached + answered * 10
