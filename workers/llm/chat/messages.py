"""Converts a request to the form of the Chat Completions API.

Agents and the journal have messages in the blocks of the Messages API. What this API cannot take is refused by its type
and place: nothing is left out silently.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from itertools import groupby
from typing import Any

from shared.contracts.turn_settings import ToolChoice
from shared.errors import ModelError
from shared.providers import Provider
from workers.llm.base import Block, ModelRequest, ToolSpec
from workers.llm.chat.structured import format_of, is_strict
from workers.llm.chat.thoughts import returned, returned_parts
from workers.llm.chat.usage import OPTIONS, options_of

Message = dict[str, Any]

ONLY_CLAUDE = (
    *("thinking", "service_tier", "betas", "speed", "context_management", "task_budget", "tool_search"),
    "container",
)
"""Settings of a request that this API does not have."""
HARMLESS = frozenset({"type", "text", "citations", "cache_control"})
"""Fields of a text block: marks for the cache and citations say nothing to this API."""


def body_of(request: ModelRequest, provider: Provider) -> dict[str, Any]:
    """Return the body of a streamed request.

    Raises:
        ModelError: it holds something that the API cannot take.
    """
    _refuse_settings(request, provider)
    most = "max_completion_tokens" if provider.has("max_completion_tokens") else "max_tokens"
    body: dict[str, Any] = {
        "model": request.model,
        "messages": [*_system(request), *_messages(request, provider)],
        most: request.max_tokens,
        "stream": True,
        **request.sampling,
    }
    if request.tools:
        body["tools"] = [_tool(tool, provider) for tool in request.tools]
    if request.tool_choice is not None:
        body |= _tool_choice(request.tool_choice)
    given = {
        OPTIONS: options_of(provider),
        "stop": list(request.stop_sequences),
        "reasoning_effort": request.effort,
        "user": request.user_id,
        "response_format": format_of(request, provider),
    }
    return {**body, **{name: value for name, value in given.items() if value}}


def _refuse_settings(request: ModelRequest, provider: Provider) -> None:
    """Refuse what only Claude has. `minion apply` does, unless `auto` selected the model."""
    chosen = [name for name in ONLY_CLAUDE if getattr(request, name)]
    chosen += [f"the tool {tool.name!r}" for tool in request.tools if tool.api_tool]
    if chosen:
        raise ModelError(
            f"The provider {provider.name!r} cannot honour {', '.join(chosen)}: remove that from the agent, or give it "
            "a model of Claude."
        )


def _system(request: ModelRequest) -> list[Message]:
    return [{"role": "system", "content": request.system}] if request.system else []


def _tool(tool: ToolSpec, provider: Provider) -> dict[str, Any]:
    function: dict[str, Any] = {
        "name": tool.name,
        "description": tool.description,
        "parameters": tool.input_schema,
    }
    if tool.strict and provider.has("json_schema") and is_strict(tool.input_schema):
        function["strict"] = True
    return {"type": "function", "function": function}


def _tool_choice(choice: ToolChoice) -> dict[str, Any]:
    chosen: Any = {"auto": "auto", "any": "required", "none": "none"}.get(choice.type)
    if chosen is None:
        chosen = {"type": "function", "function": {"name": choice.name}}
    return {"tool_choice": chosen, **({} if choice.parallel else {"parallel_tool_calls": False})}


def _messages(request: ModelRequest, provider: Provider) -> Iterator[Message]:
    """Yield the messages. Thoughts go back only within the turns after the user's last message."""
    since = _last_message_of_user(request.messages)
    for number, message in enumerate(request.messages):
        place = f"messages.{number}"
        match message["role"]:
            case "system":
                yield _later_rules(message["content"], provider)
            case "assistant":
                yield _of_assistant(message["content"], place, with_thoughts=number > since)
            case _:
                yield from _of_user(message["content"], place, provider, as_json=request.results_as_json)


def _last_message_of_user(messages: list[Message]) -> int:
    """Return the number of the user's last message that has more than results of tools; -1 if there is none."""
    spoken = (
        number
        for number, message in enumerate(messages)
        if message["role"] == "user"
        and (isinstance(message["content"], str) or any(each["type"] != "tool_result" for each in message["content"]))
    )
    return max(spoken, default=-1)


def _later_rules(rules: str, provider: Provider) -> Message:
    """Return a system message between others. Many templates of models take one at the beginning alone."""
    if provider.has("system_messages"):
        return {"role": "system", "content": rules}
    return {"role": "user", "content": f"<system-reminder>\n{rules}\n</system-reminder>"}


def _of_assistant(content: str | list[Block], place: str, *, with_thoughts: bool) -> Message:
    if isinstance(content, str):
        return {"role": "assistant", "content": content}
    said: list[str] = []
    calls: list[dict[str, Any]] = []
    thoughts: list[Block] = []
    for index, block in enumerate(content):
        match block["type"]:
            case "text":
                said.append(block["text"])
            case "tool_use":
                calls.append(_call(block))
            case "thinking" if "signature" not in block:
                thoughts.append(block)
            case kind:
                raise _refusal(f"{place}.content.{index}", kind)
    text = "".join(said)
    message: Message = {"role": "assistant", "content": text or None}
    if calls:
        message["tool_calls"] = calls
    if not with_thoughts:
        return message
    if parts := returned_parts(thoughts):
        message["content"] = [*parts, *([{"type": "text", "text": text}] if text else [])]
    return {**message, **returned(thoughts)}


def _call(block: Block) -> dict[str, Any]:
    arguments = json.dumps(block["input"], ensure_ascii=False)
    extra = {"extra_content": block["extra_content"]} if "extra_content" in block else {}
    return {
        "id": block["id"],
        "type": "function",
        "function": {"name": block["name"], "arguments": arguments},
        **extra,
    }


def _of_user(content: str | list[Block], place: str, provider: Provider, *, as_json: bool) -> Iterator[Message]:
    """Yield a message for each result of a tool, and one for the blocks between results."""
    if isinstance(content, str):
        yield {"role": "user", "content": content}
        return
    numbered = list(enumerate(content))
    for is_result, group in groupby(numbered, key=lambda each: each[1]["type"] == "tool_result"):
        if is_result:
            yield from (_result(block, f"{place}.content.{index}", as_json=as_json) for index, block in group)
        else:
            yield {
                "role": "user",
                "content": [_part(block, f"{place}.content.{index}", provider) for index, block in group],
            }


def _result(block: Block, place: str, *, as_json: bool) -> Message:
    content = block.get("content") or ""
    text = content if isinstance(content, str) else "".join(_texts(content, place))
    if block.get("is_error"):
        text = f"Error: {text}" if text.strip() else "Error: the tool failed, and did not say why."
    elif text.startswith('"') and not as_json and isinstance(content, str):
        said = json.loads(text)
        text = said if said.strip() else text
    return {"role": "tool", "tool_call_id": block["tool_use_id"], "content": text}


def _texts(blocks: list[Block], place: str) -> Iterator[str]:
    for index, block in enumerate(blocks):
        if block["type"] != "text":
            raise _refusal(f"{place}.content.{index}", block["type"], "in the result of a tool")
        yield block["text"]


def _part(block: Block, place: str, provider: Provider) -> dict[str, Any]:
    match block:
        case {"type": "text", "text": text} if block.keys() <= HARMLESS:
            return {"type": "text", "text": text}
        case {"type": "image"} if not provider.has("images"):
            raise ModelError(
                f"{place}: the provider {provider.name!r} takes no images. If its models do, add `images` to its "
                "features in MINION_PROVIDERS."
            )
        case {"type": "image", "source": {"type": "base64", "media_type": media_type, "data": data}}:
            return {"type": "image_url", "image_url": {"url": f"data:{media_type};base64,{data}"}}
        case {"type": "image", "source": {"type": "url", "url": url}}:
            return {"type": "image_url", "image_url": {"url": url}}
        case {"type": "image", "source": {"type": source}}:
            raise _refusal(place, "image", f"whose source is of type {source!r}")
        case {"type": "document", "source": {"type": "base64", "media_type": "application/pdf", "data": data}}:
            return _pdf(block, data, place, provider)
    raise _refusal(place, block["type"])


def _pdf(block: Block, data: str, place: str, provider: Provider) -> dict[str, Any]:
    if not provider.has("documents"):
        raise ModelError(
            f"{place}: the provider {provider.name!r} takes no PDFs. If its models do, add `documents` to its features "
            "in MINION_PROVIDERS."
        )
    if (block.get("citations") or {}).get("enabled") or block.get("context"):
        raise _refusal(place, "document", "with citations or a context")
    name = block.get("title") or "document.pdf"
    return {"type": "file", "file": {"filename": name, "file_data": f"data:application/pdf;base64,{data}"}}


def _refusal(place: str, kind: str, where: str = "") -> ModelError:
    what = f"a block of type {kind[:100]!r}{' ' if where else ''}{where}"
    return ModelError(f"{place}: the Chat Completions API has no place for {what}. Use a model of Claude for it.")
