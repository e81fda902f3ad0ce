"""Acts of the Messages API itself within a model call, for people: searches, pages, code and its files.

All of it is written by a model or by strangers on the web, and may have any shape.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

ACTS = {
    "web_search": "Searches the web",
    "web_fetch": "Fetches a page",
    "code_execution": "Runs code",
    "bash_code_execution": "Runs a command",
    "text_editor_code_execution": "Works on a file of its container",
    "tool_search_tool_bm25": "Searches for tools",
    "tool_search_tool_regex": "Searches for tools",
}
# The field of a call that says what is looked for, fetched or run.
ASKED = ("query", "url", "command", "code", "pattern")
RESULT = "_tool_result"
FILES = frozenset({"code_execution_output", "bash_code_execution_output"})


@dataclass(frozen=True, slots=True)
class Use:
    """One use of a tool.

    Attributes:
        act: what was done, in words.
        asked: the query, the address or the code.
        answer: what came back; None: nothing yet.
        failed: the answer is an error.
    """

    act: str
    asked: Any
    answer: Any = None
    failed: bool = False


def uses_in(content: Any) -> Iterator[Use]:
    """Yield the uses in the content of a reply, in order."""
    blocks = [block for block in content if isinstance(block, dict)] if isinstance(content, list) else []
    answers = {str(block.get("tool_use_id")): block for block in blocks if is_answer(block)}
    for block in blocks:
        if block.get("type") == "server_tool_use":
            found = answers.get(str(block.get("id")))
            answer, failed = (None, False) if found is None else answer_of(found)
            yield Use(act_of(block), asked_of(block), answer, failed)


def is_answer(block: dict[str, Any]) -> bool:
    """Return whether a block is what a tool of the API returned. (Those of our tools are `tool_result`.)"""
    return str(block.get("type")).endswith(RESULT)


def act_of(block: dict[str, Any]) -> str:
    """Return what a call does, in words."""
    name = str(block.get("name"))
    return ACTS.get(name, f"Calls {name}")


def asked_of(block: dict[str, Any]) -> Any:
    """Return the query, the address or the code of a call; all of its input if it has other fields too."""
    given = block.get("input")
    if isinstance(given, dict) and len(given) == 1 and (name := next(iter(given))) in ASKED:
        return given[name]
    return given


def answer_of(block: dict[str, Any]) -> tuple[Any, bool]:
    """Return what a tool returned, without what only the API can read; and whether that is an error."""
    content = block.get("content")
    if isinstance(content, list):
        return [_page(found) for found in content], False
    if not isinstance(content, dict):
        return content, False
    if "error_code" in content:
        return content["error_code"], True
    if "tool_references" in content and isinstance(content["tool_references"], list):
        return [each.get("tool_name") for each in content["tool_references"] if isinstance(each, dict)], False
    if content.get("type") == "web_fetch_result":
        return _document(content), False
    if "return_code" in content:
        return _run(content), bool(content["return_code"])
    return {name: value for name, value in content.items() if name != "type"}, False


def is_run(answer: Any) -> bool:
    """Return whether an answer is that of code or of a command that ran to its end."""
    return isinstance(answer, dict) and "exit code" in answer


def files_in(content: Any) -> list[str]:
    """Return the ids of the files that code left, of a whole reply or of one answer."""
    if isinstance(content, list):
        return [name for each in content for name in files_in(each)]
    if not isinstance(content, dict):
        return []
    if str(content.get("type")) in FILES:
        return [str(content.get("file_id"))]
    return files_in(content.get("content"))


def _page(found: Any) -> Any:
    return f"{found.get('title')}: {found.get('url')}" if isinstance(found, dict) and "url" in found else found


def _document(content: dict[str, Any]) -> Any:
    """Return the text of a fetched page; of another document its kind."""
    document = content.get("content")
    source = document.get("source") if isinstance(document, dict) else None
    if not isinstance(source, dict):
        return content.get("url")
    return source.get("data") if source.get("type") == "text" else f"({source.get('media_type')})"


def _run(content: dict[str, Any]) -> dict[str, Any]:
    said = {"output": content.get("stdout"), "errors": content.get("stderr"), "files": files_in(content)}
    return {"exit code": content["return_code"], **{name: value for name, value in said.items() if value}}
