"""Tokens of images and documents, estimated from their contents: their base64 says nothing about them."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from shared.contracts.content import facts_of, is_of_model
from shared.contracts.media import MOST_IMAGE_TOKENS, PAGE_TOKENS, UNKNOWN_PAGES, Media
from shared.errors import MinionError

Block = dict[str, Any]


def without_media(
    messages: list[dict[str, Any]], known: Mapping[str, Media] | None = None
) -> tuple[list[dict[str, Any]], int]:
    """Return messages without the data of images and documents, and an estimate of the tokens of these.

    Args:
        known: the facts of stored files, by id.
    """
    tokens = 0

    def strip(content: Any) -> Any:
        return [strip_block(block) for block in content] if isinstance(content, list) else content

    def strip_block(block: Block) -> Block:
        nonlocal tokens
        if block.get("type") == "tool_result":
            return {**block, "content": strip(block.get("content"))}
        source = block.get("source")
        if block.get("type") not in ("image", "document") or not isinstance(source, dict):
            return block
        if source["type"] == "content":
            return {**block, "source": {**source, "content": strip(source["content"])}}
        if source["type"] == "text":
            return block
        tokens += _tokens(block["type"], source, known or {})
        return {**block, "source": source["type"]}

    stripped = [each if is_of_model(each) else {**each, "content": strip(each["content"])} for each in messages]
    return stripped, tokens


def _tokens(kind: str, source: Block, known: Mapping[str, Media]) -> int:
    """Return the tokens of a file; of one that the provider has, the most of an image, or those of a short document."""
    if (facts := known.get(str(source.get("file_id")))) is not None:
        return facts.tokens
    if source["type"] == "base64":
        try:
            return facts_of(source).tokens
        except MinionError:
            pass
    return MOST_IMAGE_TOKENS if kind == "image" else UNKNOWN_PAGES * PAGE_TOKENS
