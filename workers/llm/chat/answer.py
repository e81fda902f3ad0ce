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
from workers.llm.chat.thoughts import Thoughts
from workers.llm.chat.usage import usage_in
from workers.llm.stream import StreamError, Unreadable

STOP_REASONS = {
    "stop": "end_turn",
    "eos_token": "end_turn",
    "length": "max_tokens",
    "model_length": "max_tokens",
    "tool_calls": "tool_use",
    "function_call": "tool_use",
    "content_filter": "refusal",
}
"""By the API's reason; `eos_token` is TGI's, `model_length` is Mistral's."""
FAILURES = frozenset({"error", "abort", "insufficient_system_resource"})
"""Reasons of answers that the server itself broke off: OpenRouter, vLLM and SGLang, DeepSeek."""
NO_REASON = "none"


@dataclass
class Call:
    """A tool call under construction.

    Attributes:
        extra: what the server wants back with the call, such as Gemini's signature of a thought.
    """

    id: str = ""
    name: str = ""
    arguments: list[str] = field(default_factory=list)
    extra: Any = None

    def is_complete(self) -> bool:
        """Return whether its arguments are a whole object."""
        try:
            return isinstance(json.loads("".join(self.arguments)), dict)
        except ValueError:
            return False


@dataclass
class Answer:
    """An answer under construction.

    Attributes:
        on_text: receives the text as it arrives.
        finish: the API's reason for the end; None before the end.
        usage: all reports of it together.
    """

    on_text: Callable[[str], None]
    model: str = ""
    finish: str | None = None
    usage: dict[str, Any] = field(default_factory=dict)
    refusal: str = ""
    _text: list[str] = field(default_factory=list)
    _thoughts: Thoughts = field(default_factory=Thoughts)
    _calls: list[Call] = field(default_factory=list)
    _by_index: dict[int, Call] = field(default_factory=dict)

    def add(self, received: Any) -> None:
        """Add a chunk of a stream, or a whole completion.

        Raises:
            Unreadable: it is none.
            StreamError: the server broke off the answer.
        """
        if not isinstance(received, dict):
            raise Unreadable(f"not an object: {json.dumps(received)[:200]}")
        self.model = self.model or str(received.get("model") or "")
        choices = received.get("choices") or []
        if not isinstance(choices, list) or not all(isinstance(choice, dict) for choice in choices):
            raise Unreadable(f"choices that are none: {json.dumps(choices)[:200]}")
        self.usage |= usage_in(received)
        for choice in choices[:1]:
            self._add_part(choice.get("delta") or choice.get("message") or {})
            self._add_reason(choice.get("finish_reason"))

    def content(self) -> list[Block]:
        """Return the blocks: thoughts, text, calls.

        Raises:
            Unreadable: a call has no name.
        """
        text = join_surrogates("".join(self._text))
        # A result is sent back with the id of its call, so no two calls may have the same.
        ids: set[str] = set()
        calls = []
        for call in self._calls:
            calls.append(_block(call, new_id() if call.id in ids else call.id or new_id()))
            ids.add(call.id)
        return [*self._thoughts.blocks(), *([{"type": "text", "text": text}] if text else []), *calls]

    def stop_reason(self) -> str:
        """Return the reason for the end in the words of the Messages API. Servers may call it `stop` after calls."""
        if self.refusal:
            return "refusal"
        reason = STOP_REASONS.get(self.finish or "", self.finish or NO_REASON)
        return "tool_use" if self._calls and reason == "end_turn" else reason

    def stop_details(self) -> dict[str, Any] | None:
        """Return the model's explanation of a refusal, if there is one."""
        return {"type": "refusal", "explanation": self.refusal} if self.refusal else None

    def _add_reason(self, reason: Any) -> None:
        if reason in FAILURES:
            raise StreamError("server_error", f"the answer was broken off: its finish_reason is {reason!r}")
        self.finish = str(reason) if reason else self.finish

    def _add_part(self, part: dict[str, Any]) -> None:
        self._thoughts.add(part)
        self._add_content(part.get("content"))
        if isinstance(refused := part.get("refusal"), str):
            self.refusal += refused
        for delta in part.get("tool_calls") or []:
            self._add_call(delta)

    def _add_content(self, content: Any) -> None:
        """Add text, or a list of parts of it. Mistral has thoughts among them."""
        for piece in content if isinstance(content, list) else [content]:
            if self._thoughts.add_part(piece):
                continue
            text = piece.get("text") if isinstance(piece, dict) else piece
            if piece is None:
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
        arguments = function.get("arguments")
        if not isinstance(arguments, str):
            arguments = "" if arguments is None else json.dumps(arguments)
        call = self._call_of(delta, str(function.get("name") or ""), arguments)
        call.id = call.id or str(delta.get("id") or "")
        call.name = call.name or str(function.get("name") or "")
        call.extra = delta.get("extra_content") or call.extra
        call.arguments.append(arguments)

    def _call_of(self, delta: dict[str, Any], name: str, arguments: str) -> Call:
        """Return the call that a delta continues, or a new one. Some servers send no index, or the same for all."""
        index, call_id = delta.get("index"), str(delta.get("id") or "")
        index = index if isinstance(index, int) else None
        known = self._last(call_id) if index is None else self._by_index.get(index)
        if known is not None and not _begins_another(known, call_id, name, arguments, has_index=index is not None):
            return known
        call = Call()
        self._calls.append(call)
        if index is not None:
            self._by_index[index] = call
        return call

    def _last(self, call_id: str) -> Call | None:
        """Return the last call, or the last one of this id, if there is one."""
        same = (call for call in reversed(self._calls) if call_id and call.id == call_id)
        return next(same, self._calls[-1] if self._calls else None)


def new_id() -> str:
    """Return an id for a call without one. Mistral takes nine letters and digits, and other servers any text."""
    return uuid4().hex[:9]


def _begins_another(known: Call, call_id: str, name: str, arguments: str, *, has_index: bool) -> bool:
    """Return whether a delta begins another call than the known one."""
    if call_id and known.id and call_id != known.id:
        return True
    if not (name and known.name):
        return False
    if not has_index and not call_id:
        return True
    # The name in every delta says nothing, but a call whose arguments are whole has ended.
    return bool(arguments.strip()) and known.is_complete()


def _block(call: Call, id: str) -> Block:
    arguments = join_surrogates("".join(call.arguments))
    if not call.name:
        raise Unreadable(f"a tool call without a name: {arguments[:200]}")
    block = {"type": "tool_use", "id": id, "name": call.name, "input": _input_of(arguments)}
    return {**block, "extra_content": call.extra} if call.extra else block


def _input_of(arguments: str) -> dict[str, Any]:
    """Return the input in a call's arguments. One that is no object becomes one that no tool accepts, so that the model
    gets an error. Some servers write `null` for none.
    """
    if arguments.strip() in ("", "null"):
        return {}
    try:
        found = parse(arguments, what="The input")
    except MinionError:
        return {INVALID_JSON: arguments}
    return found if isinstance(found, dict) else {INVALID_JSON: arguments}
