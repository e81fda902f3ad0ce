"""The Chat Completions API in the scripted server of `minions.testing`.

A script's replies are messages in blocks, whichever API is asked. This module converts them, and refuses requests that
OpenAI's API refuses: results without their call, calls without their result, tools and formats that are none.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from typing import Any

PATH = "/chat/completions"
NAME = r"[a-zA-Z0-9_-]{1,64}"
ROLES = ("system", "developer", "user", "assistant", "tool")
PARTS = {"user": ("text", "image_url", "input_audio", "file"), "assistant": ("text", "refusal")}
MOST_STOPS = 4
FINISH_REASONS = {
    "end_turn": "stop",
    "stop_sequence": "stop",
    "tool_use": "tool_calls",
    "max_tokens": "length",
    "refusal": "content_filter",
}
PIECES = 3
ERROR_TYPES = {401: "invalid_request_error", 429: "rate_limit_error", 500: "server_error", 503: "server_error"}

Fields = dict[str, Any]


def completion(message: Fields) -> Fields:
    """Return a message as a completion."""
    return {
        "id": f"chatcmpl-{message['id']}",
        "object": "chat.completion",
        "created": 1_790_000_000,
        "model": message["model"],
        "choices": [
            {"index": 0, "message": _said(message), "logprobs": None, "finish_reason": _finish_reason(message)}
        ],
        "usage": _usage(message),
        "system_fingerprint": None,
    }


def chunks(message: Fields) -> Iterator[Fields]:
    """Yield a message as the chunks of a stream. Texts and arguments come in pieces; the last chunk has the usage."""
    said = _said(message)
    yield _chunk(message, {"role": "assistant", "content": "" if said["content"] else None})
    for name in ("reasoning_content", "content", "refusal"):
        for piece in _pieces(said.get(name) or ""):
            yield _chunk(message, {name: piece})
    for index, call in enumerate(said.get("tool_calls", ())):
        function = call["function"]
        yield _chunk(message, {"tool_calls": [{"index": index, **call, "function": {**function, "arguments": ""}}]})
        for piece in _pieces(function["arguments"]):
            yield _chunk(message, {"tool_calls": [{"index": index, "function": {"arguments": piece}}]})
    yield _chunk(message, {}, _finish_reason(message))
    if (usage := _usage(message)) is not None:
        yield {**_chunk(message, {}), "choices": [], "usage": usage}


def error_body(status: int, fault: Fields) -> Fields:
    """Return an error of a script as this API words it."""
    kind = ERROR_TYPES.get(status, fault.get("type") or "invalid_request_error")
    return {"error": {"message": fault["message"], "type": kind, "param": None, "code": fault.get("code")}}


def request_fault(body: Fields) -> str | None:
    """Return the API's error text for an invalid request, as far as agents encounter it."""
    messages = body.get("messages")
    if not isinstance(messages, list) or not messages:
        return (
            "Invalid 'messages': empty array. Expected an array with minimum length 1, but got an empty array instead."
        )
    if {"max_tokens", "max_completion_tokens"} <= body.keys():
        return "Setting 'max_tokens' and 'max_completion_tokens' at the same time is not supported."
    if len(stops := body.get("stop") or []) > MOST_STOPS:
        return f"Invalid 'stop': array too long. Expected an array with maximum length {MOST_STOPS}, got {len(stops)}."
    return _tools_fault(body) or _format_fault(body.get("response_format")) or _messages_fault(messages)


def _tools_fault(body: Fields) -> str | None:
    names = []
    for number, tool in enumerate(body.get("tools", ())):
        function = tool.get("function") or {}
        if tool.get("type") != "function" or not re.fullmatch(NAME, function.get("name", "")):
            return f"Invalid 'tools[{number}].function.name': string does not match pattern. Expected '^{NAME}$'."
        if (function.get("parameters") or {}).get("type") != "object":
            return (
                f"Invalid schema for function '{function['name']}': schema must be a JSON Schema of 'type: \"object\"'."
            )
        if function.get("strict") and (fault := _strict_fault(function["parameters"])):
            return f"Invalid schema for function '{function['name']}': {fault}"
        names.append(function["name"])
    choice = body.get("tool_choice")
    if (choice is not None or "parallel_tool_calls" in body) and not names:
        return "'tool_choice' is only allowed when 'tools' are specified."
    if isinstance(choice, dict) and choice["function"]["name"] not in names:
        return f"Invalid value for 'tool_choice': no function named '{choice['function']['name']}' was specified."
    return None


def _format_fault(form: Fields | None) -> str | None:
    if form is None or form["type"] != "json_schema":
        return None
    wanted = form["json_schema"]
    if not re.fullmatch(NAME, wanted.get("name", "")):
        return "Missing required parameter: 'response_format.json_schema.name'."
    fault = _strict_fault(wanted["schema"]) if wanted.get("strict") else None
    return fault and f"Invalid schema for response_format '{wanted['name']}': {fault}"


def _strict_fault(schema: Any) -> str | None:
    """Return the error text for a schema that cannot be enforced."""
    if not isinstance(schema, dict):
        return None
    properties = schema.get("properties", {})
    if schema.get("type") == "object":
        if schema.get("additionalProperties") is not False:
            return "'additionalProperties' is required to be supplied and to be false."
        if {*schema.get("required", ())} != properties.keys():
            return "'required' is required to be supplied and to be an array including every key in properties."
    below = [*properties.values(), *schema.get("$defs", {}).values(), *schema.get("anyOf", ()), schema.get("items")]
    return next(filter(None, map(_strict_fault, below)), None)


def _messages_fault(messages: list[Fields]) -> str | None:
    open_calls: list[str] = []
    for number, message in enumerate(messages):
        role, content = message.get("role"), message.get("content")
        if role not in ROLES:
            return f"Invalid value: '{role}'. Supported values are: {', '.join(map(repr, ROLES))}."
        if role == "tool":
            if message.get("tool_call_id") not in open_calls:
                return (
                    "Invalid parameter: messages with role 'tool' must be a response to a preceding message with "
                    "'tool_calls'."
                )
            open_calls.remove(message["tool_call_id"])
        elif open_calls:
            return (
                "An assistant message with 'tool_calls' must be followed by tool messages responding to each "
                f"'tool_call_id'. The following tool_call_ids did not have response messages: {', '.join(open_calls)}"
            )
        if role == "assistant":
            open_calls = [call["id"] for call in message.get("tool_calls", ())]
            if fault := _calls_fault(number, message.get("tool_calls", ())):
                return fault
        if content is None and not open_calls:
            return f"Invalid value for 'content': expected a string, got null. (messages[{number}])"
        if fault := _content_fault(number, str(role), content):
            return fault
    return f"The following tool_call_ids did not have response messages: {open_calls[0]}" if open_calls else None


def _calls_fault(number: int, calls: Any) -> str | None:
    for index, call in enumerate(calls):
        if not isinstance(call["function"].get("arguments"), str):
            return f"Invalid type for 'messages[{number}].tool_calls[{index}].function.arguments': expected a string."
    return None


def _content_fault(number: int, role: str, content: Any) -> str | None:
    for index, part in enumerate(content if isinstance(content, list) else ()):
        if part.get("type") not in PARTS.get(role, ("text",)):
            return f"Invalid value: '{part.get('type')}'. (messages[{number}].content[{index}].type)"
    return None


def _said(message: Fields) -> Fields:
    blocks = message["content"]
    texts = [block["text"] for block in blocks if block["type"] == "text"]
    thoughts = [block["thinking"] for block in blocks if block["type"] == "thinking"]
    calls = [_call(block) for block in blocks if block["type"] == "tool_use"]
    said: Fields = {"role": "assistant", "content": "".join(texts) or None, "refusal": None}
    if explained := (message.get("stop_details") or {}).get("explanation"):
        said["refusal"] = explained
    return {
        **said,
        **({"reasoning_content": "".join(thoughts)} if thoughts else {}),
        **({"tool_calls": calls} if calls else {}),
    }


def _call(block: Fields) -> Fields:
    """Return a call. An input that is a text is sent as it is: a model may write what is not JSON."""
    given = block["input"]
    arguments = given if isinstance(given, str) else json.dumps(given)
    return {"id": block["id"], "type": "function", "function": {"name": block["name"], "arguments": arguments}}


def _finish_reason(message: Fields) -> str | None:
    stopped = message.get("stop_reason")
    return FINISH_REASONS.get(stopped, stopped) if stopped else None


def _usage(message: Fields) -> Fields | None:
    used = message.get("usage")
    if not used:
        return None
    cached = used.get("cache_read_input_tokens", 0)
    asked = used.get("input_tokens", 0) + cached + used.get("cache_creation_input_tokens", 0)
    answered = used.get("output_tokens", 0)
    return {
        "prompt_tokens": asked,
        "completion_tokens": answered,
        "total_tokens": asked + answered,
        "prompt_tokens_details": {"cached_tokens": cached},
        "completion_tokens_details": {"reasoning_tokens": 0},
    }


def _chunk(message: Fields, delta: Fields, finish_reason: str | None = None) -> Fields:
    return {
        "id": f"chatcmpl-{message['id']}",
        "object": "chat.completion.chunk",
        "created": 1_790_000_000,
        "model": message["model"],
        "choices": [{"index": 0, "delta": delta, "logprobs": None, "finish_reason": finish_reason}],
        "usage": None,
    }


def _pieces(whole: str) -> list[str]:
    size = max(1, -(-len(whole) // PIECES))
    return [whole[start : start + size] for start in range(0, len(whole), size)]
