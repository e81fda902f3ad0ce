"""Replies in which the scripted Messages API runs tools itself, and requests about such tools that it refuses.

`minions.testing` offers the functions for replies.
"""

from __future__ import annotations

import itertools
import re
from collections.abc import Iterator
from typing import Any

Blocks = list[dict[str, Any]]

_numbers = itertools.count(1)
# The first model of each family that takes the tools, and that takes the versions which filter results by code.
FIRST = {"opus": (4, 0), "sonnet": (4, 0), "haiku": (4, 5), "fable": (0, 0), "mythos": (0, 0)}
FIRST_WITH_FILTER = (4, 6)
FIRST_WITH_TOOL_SEARCH = (4, 5)
MODEL = re.compile(r"claude-(opus|sonnet|haiku|fable|mythos)-(\d+)(?:[-.](\d{1,2}))?(?:[-@]\d{8})?")
# The name of each type, and the first models that take it.
TYPES: dict[str, tuple[str, tuple[int, int]]] = {
    "web_search_20250305": ("web_search", (0, 0)),
    "web_search_20260209": ("web_search", FIRST_WITH_FILTER),
    "web_search_20260318": ("web_search", FIRST_WITH_FILTER),
    "web_fetch_20250910": ("web_fetch", (0, 0)),
    "web_fetch_20260209": ("web_fetch", FIRST_WITH_FILTER),
    "web_fetch_20260309": ("web_fetch", FIRST_WITH_FILTER),
    "web_fetch_20260318": ("web_fetch", FIRST_WITH_FILTER),
    "code_execution_20250825": ("code_execution", (0, 0)),
    "code_execution_20260120": ("code_execution", (4, 5)),
    "code_execution_20260521": ("code_execution", (4, 5)),
    "memory_20250818": ("memory", (0, 0)),
    "tool_search_tool_regex_20251119": ("tool_search_tool_regex", FIRST_WITH_TOOL_SEARCH),
    "tool_search_tool_bm25_20251119": ("tool_search_tool_bm25", FIRST_WITH_TOOL_SEARCH),
}
COUNTED = {"web_search": "web_search_requests", "web_fetch": "web_fetch_requests"}
COUNTED |= dict.fromkeys(
    ("code_execution", "bash_code_execution", "text_editor_code_execution"), "code_execution_requests"
)


def web_search(query: str, *found: tuple[str, str], error: str | None = None) -> Blocks:
    """Return the blocks of a search and of what it found, given as titles and URLs, or of its error.

    Args:
        error: a code such as `max_uses_exceeded`, `too_many_requests` or `unavailable`.
    """
    results = [
        {
            "type": "web_search_result",
            "title": title,
            "url": url,
            "encrypted_content": f"encrypted {url}",
            "page_age": None,
        }
        for title, url in found
    ]
    content = results if error is None else {"type": "web_search_tool_result_error", "error_code": error}
    return _used("web_search", {"query": query}, content)


def web_fetch(url: str, page: str = "", *, title: str = "", error: str | None = None) -> Blocks:
    """Return the blocks of a fetch and of the page, or of its error, such as `url_not_accessible`."""
    document = {
        "type": "document",
        "title": title,
        "citations": None,
        "source": {"type": "text", "media_type": "text/plain", "data": page},
    }
    content = {"type": "web_fetch_result", "url": url, "retrieved_at": "2026-11-01T12:00:00Z", "content": document}
    if error is not None:
        content = {"type": "web_fetch_tool_result_error", "error_code": error}
    return _used("web_fetch", {"url": url}, content)


def code_execution(
    command: str, stdout: str = "", *, stderr: str = "", return_code: int = 0, files: tuple[str, ...] = ()
) -> Blocks:
    """Return the blocks of a shell command, of its output and of the files that it made, given as ids.

    The reply that has them should have a `container` too, such as `{"id": "container_1", "expires_at": "…"}`.
    """
    content = {
        "type": "bash_code_execution_result",
        "stdout": stdout,
        "stderr": stderr,
        "return_code": return_code,
        "content": [{"type": "bash_code_execution_output", "file_id": name} for name in files],
    }
    return _used("bash_code_execution", {"command": command}, content)


def tool_search(pattern: str, *found: str, by: str = "bm25", error: str | None = None) -> Blocks:
    """Return the blocks of a search for tools, and of the names that it found."""
    content: dict[str, Any] = {
        "type": "tool_search_tool_search_result",
        "tool_references": [{"type": "tool_reference", "tool_name": name} for name in found],
    }
    if error is not None:
        content = {"type": "tool_search_tool_result_error", "error_code": error, "error_message": error}
    asked = {"pattern" if by == "regex" else "query": pattern}
    return _used(f"tool_search_tool_{by}", asked, content, result="tool_search_tool_result")


def said(*parts: str | Blocks, stop_reason: str = "end_turn", **more: Any) -> dict[str, Any]:
    """Return a reply of texts and of the blocks that the functions above return, in this order.

    A reply with the stop reason `pause_turn` has its last search without a result: that is in the next reply.
    `more` is as for `MessagesApi.script`.
    """
    content: Blocks = []
    for part in parts:
        content += [{"type": "text", "text": part}] if isinstance(part, str) else part
    if any(block["type"] == "tool_use" for block in content) and stop_reason == "end_turn":
        stop_reason = "tool_use"
    return {"content": content, "stop_reason": stop_reason, **more}


def uses_of(content: Blocks) -> dict[str, int]:
    """Return the number of uses of each tool as `usage.server_tool_use` has them: those that ran without an error."""
    failed = {block["tool_use_id"] for block in content if _is_error(block.get("content"))}
    uses = dict.fromkeys(COUNTED.values(), 0)
    for block in content:
        if block["type"] == "server_tool_use" and block["name"] in COUNTED and block["id"] not in failed:
            uses[COUNTED[block["name"]]] += 1
    return {name: count for name, count in uses.items() if count}


def tool_fault(body: dict[str, Any]) -> str | None:
    """Return the API's error text for a request whose tools, or whose blocks about them, it refuses."""
    return next(itertools.chain(_faults_of_tools(body), _faults_of_blocks(body)), None)


def _used(name: str, asked: dict[str, Any], content: Any, result: str | None = None) -> Blocks:
    identity = f"srvtoolu_{next(_numbers)}"
    return [
        {"type": "server_tool_use", "id": identity, "name": name, "input": asked},
        {"type": result or f"{name}_tool_result", "tool_use_id": identity, "content": content},
    ]


def _is_error(content: Any) -> bool:
    return isinstance(content, dict) and "error_code" in content


def _faults_of_tools(body: dict[str, Any]) -> Iterator[str]:
    tools = body.get("tools", [])
    names = [tool.get("name") for tool in tools]
    if len({*names}) < len(names):
        yield "tools: Tool names must be unique."
    if tools and all(tool.get("defer_loading") for tool in tools):
        yield "At least one tool must have defer_loading=false. All tools cannot be deferred."
    for number, tool in enumerate(tools):
        kind = tool.get("type", "custom")
        if kind != "custom" and (fault := _type_fault(kind, tool, body.get("model", ""))):
            yield f"tools.{number}{fault}"
        if tool.get("defer_loading") and "cache_control" in tool:
            yield f"tools.{number}: cache_control cannot be set on a tool with defer_loading"
        cites = (tool.get("citations") or {}).get("enabled")
        if cites and (body.get("output_config") or {}).get("format"):
            yield "output_config.format: structured outputs cannot be used with citations"


def _type_fault(kind: str, tool: dict[str, Any], model: str) -> str | None:
    if kind not in TYPES:
        return f": Input tag '{kind}' found using 'type' does not match any of the expected tags"
    name, first = TYPES[kind]
    match = MODEL.fullmatch(model)
    version = (int(match[2]), int(match[3] or 0)) if match else None
    if match and version and version < max(first, FIRST[match[1]]):
        return f": '{model}' does not support tool types: {kind}"
    if tool.get("name") != name:
        return f".{kind}.name: Input should be '{name}'"
    if tool.keys() & {"input_schema", "description"}:
        return f".{kind}: Extra inputs are not permitted"
    if "max_uses" in tool and tool["max_uses"] < 1:
        return f".{kind}.max_uses: Input should be greater than 0"
    if tool.get("allowed_domains") and tool.get("blocked_domains"):
        return f".{kind}: allowed_domains and blocked_domains cannot both be specified"
    return None


def _faults_of_blocks(body: dict[str, Any]) -> Iterator[str]:
    names = {tool.get("name") for tool in body.get("tools", ())}
    messages = body.get("messages", [])
    said = [[block for block in message.get("content", ()) if isinstance(block, dict)] for message in messages]
    # The rest of a paused turn is in the next message.
    answered = {block.get("tool_use_id") for blocks in said for block in blocks}
    for number, blocks in enumerate(said):
        for index, block in enumerate(blocks):
            if fault := _block_fault(block, names):
                yield f"messages.{number}.content.{index}{fault}"
            # The last message may be a turn that was paused; a call beside ours gets its result later.
            open_call = block["type"] == "server_tool_use" and block["id"] not in answered
            ours = any(each["type"] == "tool_use" for each in blocks)
            if open_call and block["name"].startswith("web_") and not ours and number < len(messages) - 1:
                yield (
                    f"messages.{number}: `{block['name']}` tool use with id `{block['id']}` was found without a "
                    f"corresponding `{block['name']}_tool_result` block"
                )


def _block_fault(block: dict[str, Any], names: set[Any]) -> str | None:
    if block["type"] == "tool_result" and str(block.get("tool_use_id")).startswith("srvtoolu_"):
        return f": unexpected `tool_use_id` found in `tool_result` blocks: {block['tool_use_id']}"
    content = block.get("content")
    if block["type"] == "web_search_tool_result" and isinstance(content, list):
        for index, found in enumerate(content):
            if not found.get("encrypted_content"):
                return f".web_search_tool_result.content.{index}.encrypted_content: Field required"
    if block["type"] == "tool_search_tool_result" and isinstance(content, dict):
        for reference in content.get("tool_references", ()):
            if reference["tool_name"] not in names:
                return f": Tool reference '{reference['tool_name']}' not found in available tools"
    return None
