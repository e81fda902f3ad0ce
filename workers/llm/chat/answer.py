"""Assembles an answer of the Chat Completions API, streamed or whole, to the blocks of the Messages API.

Servers differ in what they leave out: ids and indexes of tool calls, the usage, the reason for the end. An answer that
lacks more than these is Unreadable.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any
from uuid import uuid4

from shared.contracts.strict_json import parse
from shared.errors import MinionError
from workers.llm.base import INVALID_JSON, Block, join_surrogates
from workers.llm.chat.messages import THOUGHTS
from workers.llm.stream import Unreadable

OTHER_THOUGHTS = "reasoning"
"""The name of the same field in other servers: OpenRouter, later releases of vLLM."""
STOP_REASONS = {
    "stop": "end_turn",
    "length": "max_tokens",
    "tool_calls": "tool_use",
    "function_call": "tool_use",
    "content_filter": "refusal",
}
NO_REASON = "none"


@dataclass
class Call:
    """A tool call under construction."""

    id: str = ""
    name: str = ""
    arguments: str = ""


@dataclass
class Answer:
    """An answer under construction.

    Attributes:
        on_text: receives the text as it arrives.
        finish: the API's reason for the end; None before the end.
        usage: the last report of it.
    """

    on_text: Callable[[str], None]
    model: str = ""
    finish: str | None = None
    usage: dict[str, Any] = field(default_factory=dict)
    refusal: str = ""
    _text: list[str] = field(default_factory=list)
    _thoughts: dict[str, str] = field(default_factory=dict)
    _calls: list[Call] = field(default_factory=list)
    _by_index: dict[int, Call] = field(default_factory=dict)

    def add(self, received: Any) -> None:
        """Add a chunk of a stream, or a whole completion.

        Raises:
            Unreadable: it is none.
        """
        if not isinstance(received, dict):
            raise Unreadable(f"not an object: {json.dumps(received)[:200]}")
        self.model = self.model or str(received.get("model") or "")
        groq = received.get("x_groq")
        usage = received.get("usage") or (groq.get("usage") if isinstance(groq, dict) else None)
        if isinstance(usage, dict):
            self.usage = usage
        choices = received.get("choices") or []
        if not isinstance(choices, list) or not all(isinstance(choice, dict) for choice in choices):
            raise Unreadable(f"choices that are none: {json.dumps(choices)[:200]}")
        for choice in choices[:1]:
            self._add_part(choice.get("delta") or choice.get("message") or {})
            self.finish = choice.get("finish_reason") or self.finish

    def content(self) -> list[Block]:
        """Return the blocks: thoughts, text, calls.

        Raises:
            Unreadable: a call has no name.
        """
        thoughts = [
            {
                "type": "thinking",
                "thinking": join_surrogates(thought),
                **({} if name == THOUGHTS else {"field": name}),
            }
            for name, thought in self._thoughts.items()
            if thought
        ]
        text = join_surrogates("".join(self._text))
        return [*thoughts, *([{"type": "text", "text": text}] if text else []), *map(_block, self._calls)]

    def stop_reason(self) -> str:
        """Return the reason for the end in the words of the Messages API. Servers may call it `stop` after calls."""
        if self.refusal:
            return "refusal"
        if self._calls and self.finish == "stop":
            return "tool_use"
        return STOP_REASONS.get(self.finish or "", self.finish or NO_REASON)

    def stop_details(self) -> dict[str, Any] | None:
        """Return the model's explanation of a refusal, if there is one."""
        return {"type": "refusal", "explanation": self.refusal} if self.refusal else None

    def _add_part(self, part: dict[str, Any]) -> None:
        for name in (THOUGHTS, OTHER_THOUGHTS):
            if isinstance(thought := part.get(name), str):
                self._thoughts[name] = self._thoughts.get(name, "") + thought
                break  # Some servers send it under both names.
        self._add_content(part.get("content"))
        if isinstance(refused := part.get("refusal"), str):
            self.refusal += refused
        for delta in part.get("tool_calls") or []:
            self._add_call(delta)

    def _add_content(self, content: Any) -> None:
        """Add text, or a list of parts of it."""
        for piece in content if isinstance(content, list) else [content]:
            text = piece.get("text") if isinstance(piece, dict) else piece
            if text is None:
                continue
            if not isinstance(text, str):
                raise Unreadable(f"content that is no text: {json.dumps(piece)[:200]}")
            if text:
                self._text.append(text)
                self.on_text(text)

    def _add_call(self, delta: Any) -> None:
        function = delta.get("function") if isinstance(delta, dict) else None
        if not isinstance(function, dict):
            raise Unreadable(f"a tool call that is none: {json.dumps(delta)[:200]}")
        call = self._call_of(delta, str(function.get("name") or ""))
        call.id = call.id or str(delta.get("id") or "")
        call.name = call.name or str(function.get("name") or "")
        arguments = function.get("arguments")
        call.arguments += (
            arguments if isinstance(arguments, str) else "" if arguments is None else json.dumps(arguments)
        )

    def _call_of(self, delta: dict[str, Any], name: str) -> Call:
        """Return the call that a delta continues, or a new one. Some servers send no index, or the same for all."""
        index, call_id = delta.get("index"), str(delta.get("id") or "")
        if isinstance(index, int):
            known, name = self._by_index.get(index), ""
        else:
            known = self._calls[-1] if self._calls else None
        if known is not None and not _begins_another(known, call_id, name):
            return known
        call = Call()
        self._calls.append(call)
        if isinstance(index, int):
            self._by_index[index] = call
        return call


def _begins_another(known: Call, call_id: str, name: str) -> bool:
    """Return whether a delta begins another call than the known one.

    Args:
        name: empty if it says nothing about that.
    """
    if call_id and known.id:
        return call_id != known.id
    return bool(name and known.name)


def _block(call: Call) -> Block:
    if not call.name:
        raise Unreadable(f"a tool call without a name: {call.arguments[:200]}")
    # A result is sent back with the id of its call.
    return {
        "type": "tool_use",
        "id": call.id or f"call_{uuid4().hex}",
        "name": call.name,
        "input": _input_of(join_surrogates(call.arguments)),
    }


def _input_of(arguments: str) -> dict[str, Any]:
    """Return the input in a call's arguments. One that is no object becomes one that no tool accepts, so that the model
    gets an error.
    """
    if not arguments.strip():
        return {}
    try:
        found = parse(arguments, what="The input")
    except MinionError:
        return {INVALID_JSON: arguments}
    return found if isinstance(found, dict) else {INVALID_JSON: arguments}
