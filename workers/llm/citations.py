"""Citations of a request's documents: the API takes all of them with citations, or none."""

from __future__ import annotations

from typing import Any

from shared.contracts.content import citable, is_cited, is_of_model

Block = dict[str, Any]


def with_one_setting(messages: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Return messages in which citations are enabled on all documents if they are on one of them, and on all search
    results likewise.

    Each task is checked when it is submitted. Settings get mixed over the tasks of a conversation, and by tools.
    """
    given = [each["content"] for each in messages if not is_of_model(each)]
    cited = {block["type"] for content in given for block in citable(content) if is_cited(block)}
    if not cited:
        return messages
    return [each if is_of_model(each) else {**each, "content": _cited(each["content"], cited)} for each in messages]


def _cited(content: Any, kinds: set[str]) -> Any:
    return [_cited_block(block, kinds) for block in content] if isinstance(content, list) else content


def _cited_block(block: Block, kinds: set[str]) -> Block:
    if block.get("type") == "tool_result":
        return {**block, "content": _cited(block.get("content"), kinds)}
    return {**block, "citations": {"enabled": True}} if block.get("type") in kinds else block
