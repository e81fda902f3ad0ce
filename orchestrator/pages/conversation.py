"""The turns of an agent with its model, from the steps of its journal."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Sequence
from typing import Any

from orchestrator import server_tools
from shared.contracts.content import OUR_FILE, describe
from shared.contracts.media import IMAGE_TYPES
from shared.tasks import attachments

WEB = re.compile(r"https?://")
THOUGHTS = ("thinking", "redacted_thinking")


def turns_of(steps: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """Return what was said, in order: `role`, `step` and `blocks`.

    Each block has a `kind` (text, thought, call, result, image, file, note), a `title` and a `value`. Texts have
    `citations`; images and files an `address`, or the id of a `file`.

    Each model call has only the messages that are new in it, so nothing is repeated.
    """
    return [turn for step in steps if step["kind"] == "model_call" for turn in _of_call(step)]


def _of_call(step: dict[str, Any]) -> Iterator[dict[str, Any]]:
    asked, reply = step["input"], step["output"]
    if not isinstance(asked, dict):
        yield _turn(step, "request", [_block("text", "", asked)])
        asked = {}
    messages = asked.get("messages")
    for message in messages if isinstance(messages, list) else ():
        if isinstance(message, dict):
            yield _turn(step, str(message.get("role")), list(_blocks(message.get("content"))))
    if reply is not None:
        content = reply.get("content") if isinstance(reply, dict) else reply
        yield _turn(step, "model", list(_blocks(content)))
    elif step["error"]:
        yield _turn(step, "error", [_block("text", "", step["error"])])


def _blocks(content: Any) -> Iterator[dict[str, Any]]:
    for block in content if isinstance(content, list) else [content]:
        kind = block.get("type") if isinstance(block, dict) else None
        if kind == "text" and isinstance(block.get("text"), str):
            yield _block("text", "", block["text"]) | {"citations": _citations(block)}
        elif kind in ("image", "document") and isinstance(block.get("source"), dict):
            yield _file(block)
        elif kind in THOUGHTS:
            yield _block("thought", "Thinking", block.get("thinking") or block.get("data") or "")
        elif kind == "compaction":
            yield _block("thought", "Summary of the conversation", block.get("content") or "")
        elif kind == "tool_use":
            yield _block("call", f"Calls {block.get('name')}", block.get("input"))
        elif kind == "tool_result" and isinstance(block.get("content"), list):
            yield _block("note", "Error of the call" if block.get("is_error") else "Result", "")
            yield from _blocks(block["content"])
        elif kind == "tool_result":
            yield _block("result", "Error of the call" if block.get("is_error") else "Result", _result(block))
        elif kind == "server_tool_use":
            yield _block("call", server_tools.act_of(block), server_tools.asked_of(block))
        elif isinstance(block, dict) and server_tools.is_answer(block):
            yield from _answer(block)
        else:
            yield _block("text", "", block)


def _answer(block: dict[str, Any]) -> Iterator[dict[str, Any]]:
    """Yield what a tool of the API returned: of code that ran, each thing that it left, so that its lines are lines."""
    answer, failed = server_tools.answer_of(block)
    if not server_tools.is_run(answer):
        yield _block("result", "Error of the API" if failed else "Result", answer)
        return
    yield _block("note", f"Exit code {answer['exit code']}", "")
    for name in ("output", "errors", "files"):
        if name in answer:
            yield _block("result", name.capitalize(), answer[name])


def _file(block: dict[str, Any]) -> dict[str, Any]:
    """Return an image that a browser may show, or a line about a file, with its id if it is stored here."""
    source = block["source"]
    data = source.get("data")
    is_shown = source.get("type") == "base64" and isinstance(data, str) and len(data) < attachments.LARGE
    if block["type"] == "image" and is_shown and source.get("media_type") in IMAGE_TYPES:
        return _block("image", "Image", "") | {"address": f"data:{source['media_type']};base64,{data}"}
    ours = source.get("type") == "file" and OUR_FILE.fullmatch(str(source.get("file_id")))
    if not ours:
        return _block("text", "", describe(block))
    kind, name = ("image", "Image") if block["type"] == "image" else ("file", block.get("title") or "Document")
    return _block(kind, str(name), "") | {"file": source["file_id"]}


def _citations(block: dict[str, Any]) -> list[dict[str, Any]]:
    """Return what a text cites: the `title`, the `place` in it, the `address` if it is on the web, and the `text`."""
    found = block.get("citations")
    return [_citation(each) for each in (found if isinstance(found, list) else ()) if isinstance(each, dict)]


def _citation(cited: dict[str, Any]) -> dict[str, Any]:
    title = cited.get("document_title") or cited.get("title") or f"Document {cited.get('document_index', 0)}"
    first, end = cited.get("start_page_number"), cited.get("end_page_number")  # the end is the page after the last one
    place = f"page {first}" if first is not None else str(cited.get("url") or cited.get("source") or "")
    if isinstance(first, int) and isinstance(end, int) and end - 1 > first:
        place = f"pages {first} to {end - 1}"
    address = place if WEB.match(place) else None
    return {"title": str(title), "place": place, "address": address, "text": str(cited.get("cited_text") or "")}


def _result(block: dict[str, Any]) -> Any:
    """Return the result of a tool: the journal has its JSON as text."""
    content = block.get("content")
    if not isinstance(content, str):
        return content
    try:
        return json.loads(content)
    except ValueError:
        return content


def _turn(step: dict[str, Any], role: str, blocks: list[dict[str, Any]]) -> dict[str, Any]:
    return {"step": step["number"], "role": role, "blocks": blocks}


def _block(kind: str, title: str, value: Any) -> dict[str, Any]:
    return {"kind": kind, "title": title, "value": value, "citations": [], "address": None, "file": None}
