"""Results of `tools/call` as results of a tool: a value, or content blocks for the model.

What a server sends is hostile. It can name no stored file and request no wait, and a block that a model cannot receive
becomes a line of text about it.
"""

from __future__ import annotations

import base64
import json
from typing import Any

from shared.contracts.content import CONTENT, Block, read_block
from shared.contracts.json_schema import validate
from shared.contracts.media import IMAGE_TYPES, PDF, TEXT
from shared.contracts.strict_json import JsonValue, are_sound, parse
from shared.errors import InvalidInput, InvalidOutput, TooLarge, ToolError
from shared.tasks.directives import is_result

MAX_ERROR = 10_000
"""Characters of an error that the model receives."""
MAX_BLOCKS = 200
MAX_NOTE = 2_000
MAX_TITLE = 500
"""Characters of a document's title that models accept. Addresses with a signature are longer."""
STRUCTURED = "structuredContent"
ALIASES = {"image/jpg": "image/jpeg"}


def output_of(result: dict[str, Any], output_schema: dict[str, Any] | None, *, name: str) -> JsonValue:
    """Return what a call returned: its structured content, its text, or `{"$content": [block, …]}`.

    Text that is a JSON object or array is returned as that: servers without structured content write it so.

    Args:
        result: with the `resultType` `complete`.
        output_schema: the schema of its structured content.
        name: the tool's, for messages.

    Raises:
        ToolError: the server says that the call failed; not retryable.
        InvalidOutput: the result is not what the protocol or the schema allows.
    """
    # Some servers write null for what is absent.
    blocks = [] if result.get("content") is None else result["content"]
    if output_schema is None and result.get(STRUCTURED) is None:
        result = {name: value for name, value in result.items() if name != STRUCTURED}
    if not isinstance(blocks, list):
        raise InvalidOutput(f"The result of tool {name!r} has no list of content.")
    if result.get("isError"):
        raise _error(name, blocks)
    if output_schema is not None:
        _check(result, output_schema, name)
    if any(_kind(block) != "text" for block in blocks):
        return {CONTENT: _content(blocks, result)}
    if STRUCTURED in result:
        return _harmless(result[STRUCTURED])
    return _value(_texts(blocks)) if blocks else None


def _check(result: dict[str, Any], schema: dict[str, Any], name: str) -> None:
    if STRUCTURED not in result:
        raise InvalidOutput(f"The tool {name!r} has an output schema, but its result has no {STRUCTURED}.")
    validate(schema, result[STRUCTURED], what=f"The output of tool {name!r}", error=InvalidOutput)


def _error(name: str, blocks: list[Any]) -> ToolError:
    said = _texts(blocks)[:MAX_ERROR] or "without a message"
    error = ToolError(f"The tool {name!r} failed: {said}")
    error.retryable = False
    return error


def _texts(blocks: list[Any]) -> str:
    return "\n\n".join(block["text"] for block in blocks if _kind(block) == "text")


def _value(text: str) -> JsonValue:
    try:
        value = parse(text)
    except InvalidInput:
        return text
    return _harmless(value) if isinstance(value, dict | list) else text


def _harmless(value: JsonValue) -> JsonValue:
    """Return a value as text if the worker would take it for a request of a wait, or for content with files."""
    try:
        obeyed = not is_result(value)
    except InvalidOutput:
        obeyed = True
    return json.dumps(value, ensure_ascii=False) if obeyed else value


def _content(blocks: list[Any], result: dict[str, Any]) -> list[Block]:
    found = [_block(block) for block in blocks[:MAX_BLOCKS]]
    if len(blocks) > MAX_BLOCKS:
        found.append(_note(f"[{len(blocks) - MAX_BLOCKS} more blocks are left out]"))
    if STRUCTURED in result and not any(_kind(block) == "text" for block in blocks):
        structured = _without(result[STRUCTURED], _data_of(blocks))
        found.append({"type": "text", "text": json.dumps(structured, ensure_ascii=False)})
    return found


def _data_of(blocks: list[Any]) -> set[str]:
    """Return the base64 data of all blocks."""
    parts = [part for block in blocks if isinstance(block, dict) for part in (block, block.get("resource"))]
    found = [part.get(name) for part in parts if isinstance(part, dict) for name in ("data", "blob")]
    return {data for data in found if isinstance(data, str) and data}


def _without(value: Any, repeated: set[str]) -> Any:
    """Return structured content without the data that blocks hold already: as text, a model could not see it."""
    if isinstance(value, str):
        return "[see above]" if value in repeated else value
    if isinstance(value, list):
        return [_without(part, repeated) for part in value]
    if isinstance(value, dict):
        return {name: _without(part, repeated) for name, part in value.items()}
    return value


def _kind(block: Any) -> str:
    """Return the type of a block; empty if it is none."""
    if not isinstance(block, dict) or not isinstance(kind := block.get("type"), str):
        return ""
    return "" if kind == "text" and not isinstance(block.get("text"), str) else kind


def _block(block: Any) -> Block:
    """Return a block as a model receives it."""
    match _kind(block):
        case "text":
            return {"type": "text", "text": block["text"]}
        case "image":
            return _media(block.get("mimeType"), block.get("data"), "image")
        case "audio":
            return _note(f"[audio: {_about(block.get('mimeType'), block.get('data'))}; models receive no audio]")
        case "resource_link":
            return _note(f"[resource {_named(block)}]")
        case "resource" if isinstance(resource := block.get("resource"), dict):
            return _resource(resource)
    return _note(f"[block of an unknown kind: {json.dumps(block, ensure_ascii=False)}]")


def _resource(resource: dict[str, Any]) -> Block:
    text = _text_of(resource)
    if text.strip():
        source = {"type": "text", "media_type": TEXT, "data": text}
        title = _named({"uri": resource.get("uri")})[:MAX_TITLE]
        return {"type": "document", "source": source, **({"title": title} if title else {})}
    if "blob" in resource:
        return _media(resource.get("mimeType"), resource["blob"], f"resource {_named(resource)}")
    return _note(f"[resource {_named(resource)}]")


def _text_of(resource: dict[str, Any]) -> str:
    """Return the text of a resource, which some servers send in base64; empty: it has none."""
    if isinstance(text := resource.get("text"), str):
        return text
    if not str(resource.get("mimeType")).startswith("text/"):
        return ""
    try:
        text = base64.b64decode(resource.get("blob", ""), validate=True).decode("utf-8")
    except (TypeError, ValueError):
        return ""
    return text if are_sound([text]) else ""


def _media(media_type: Any, data: Any, what: str) -> Block:
    """Return an image or a PDF as a block. Others, and those that are not valid, become a line of text."""
    media_type = ALIASES.get(media_type, media_type) if isinstance(media_type, str) else None
    if media_type not in (*IMAGE_TYPES, PDF):
        return _note(f"[{what}: {_about(media_type, data)}; models do not receive this type]")
    kind = "document" if media_type == PDF else "image"
    block = {"type": kind, "source": {"type": "base64", "media_type": media_type, "data": data}}
    try:
        return read_block(block, (kind,), where=what)
    except (InvalidInput, TooLarge) as error:
        return _note(f"[{what}: {_about(media_type, data)}; not passed on: {error.message}]")


def _about(media_type: Any, data: Any) -> str:
    size = f"{len(data) * 3 // 4:,} bytes" if isinstance(data, str) else "without data"
    return f"{str(media_type)[:100]}, {size}"


def _named(resource: dict[str, Any]) -> str:
    facts = [resource.get(name) for name in ("name", "uri", "mimeType", "description")]
    return ", ".join(fact for fact in facts if isinstance(fact, str) and fact)


def _note(text: str) -> Block:
    return {"type": "text", "text": text if len(text) <= MAX_NOTE else text[:MAX_NOTE] + " …]"}
