"""Thoughts of models in the Chat Completions API, which itself has none: servers have them in their own fields.

They become blocks of type `thinking` that name their field, and go back in it.
"""

from __future__ import annotations

from typing import Any

from workers.llm.base import Block, join_surrogates

FIELD = "reasoning_content"
"""Field of a message that most servers have. A block names another one in `field`."""
FIELDS = (FIELD, "reasoning")
"""`reasoning` is that of OpenRouter, Groq, and later releases of vLLM and Ollama. Some servers send both."""
DETAILS = "reasoning_details"
"""OpenRouter's list of the same thoughts with their signatures."""
PARTS = "content"
"""Mistral's thoughts are parts of the content."""
GROWING = ("text", "summary", "data")


class Thoughts:
    """Thoughts under construction."""

    def __init__(self) -> None:
        self._texts: dict[str, list[str]] = {}
        self._details: list[dict[str, Any]] = []

    def add(self, part: dict[str, Any]) -> None:
        """Add those in the fields of a message or a delta."""
        for name in FIELDS:
            if isinstance(thought := part.get(name), str) and thought:
                self._texts.setdefault(name, []).append(thought)
                break
        details = part.get(DETAILS)
        for detail in details if isinstance(details, list) else ():
            if isinstance(detail, dict):
                self._add_detail(detail)

    def add_part(self, part: Any) -> bool:
        """Add a part of the content if it is thoughts; return whether it is."""
        if not isinstance(part, dict) or part.get("type") != "thinking":
            return False
        inner = part.get("thinking")
        for each in inner if isinstance(inner, list) else [inner]:
            text = each.get("text") if isinstance(each, dict) else each
            self._texts.setdefault(PARTS, []).append(text if isinstance(text, str) else "")
        return True

    def blocks(self) -> list[Block]:
        """Return the blocks; signatures go with the first one."""
        texts = {name: join_surrogates("".join(pieces)) for name, pieces in self._texts.items()}
        blocks: list[Block] = [
            {"type": "thinking", "thinking": text, **({} if name == FIELD else {"field": name})}
            for name, text in texts.items()
            if text
        ]
        if self._details:
            first = blocks[0] if blocks else {"type": "thinking", "thinking": "", "field": FIELDS[1]}
            blocks = [{**first, "details": self._details}, *blocks[1:]]
        return blocks

    def _add_detail(self, detail: dict[str, Any]) -> None:
        """Add a detail, or the next piece of the last one."""
        last = self._details[-1] if self._details else {}
        if detail.get("index") is None or any(detail.get(name) != last.get(name) for name in ("type", "index")):
            self._details.append(dict(detail))
            return
        for name, value in detail.items():
            if name in GROWING and isinstance(value, str) and isinstance(last.get(name), str):
                last[name] += value
            elif value is not None:
                last[name] = value


def returned(blocks: list[Block]) -> dict[str, Any]:
    """Return the fields of a message that give thoughts back to their server."""
    fields: dict[str, Any] = {}
    for block in blocks:
        name = block.get("field", FIELD)
        if name != PARTS and block["thinking"]:
            fields[name] = fields.get(name, "") + block["thinking"]
        if block.get("details"):
            fields[DETAILS] = [*fields.get(DETAILS, ()), *block["details"]]
    return fields


def returned_parts(blocks: list[Block]) -> list[dict[str, Any]]:
    """Return those that are parts of the content."""
    return [
        {"type": "thinking", "thinking": [{"type": "text", "text": block["thinking"]}]}
        for block in blocks
        if block.get("field") == PARTS
    ]
