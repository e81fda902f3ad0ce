"""The `offline` model: a deterministic planner that needs neither network nor weights.

It is not a language model, and says so in everything it writes. It picks tools by matching the words of the request
against their names, descriptions and schemas, fills their arguments from equally named fields of the task's input
and of earlier results, calls each at most once, and then reports what came back.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Callable
from typing import Any

from shared.contracts.content import text_of
from shared.contracts.json_schema import violations
from shared.contracts.sampling import OFFLINE
from shared.contracts.strict_json import JsonValue, digest
from shared.errors import ModelError
from workers.llm.base import ModelReply, ModelRequest, ToolSpec

NOTICE = "[offline planner, not a language model]"
# A tool that matches less than half as well as the best one is not called.
NEAR_ENOUGH = 0.5
MAX_QUOTED = 4000
STOP_WORDS = frozenset(
    "a an and are as at be by can do for from has have i in is it its me my of on or our please that the their them "
    "then there these this to use using was we what when which who will with you your".split()
)


class OfflinePlanner:
    """Plans by words. The same request always gives the same reply."""

    def complete(self, request: ModelRequest, on_text: Callable[[str], None]) -> ModelReply:
        """Make one turn: the next tool call of the plan, or the final report. See `ModelClient`."""
        if defined := next((tool.name for tool in request.tools if tool.api_tool), None):
            raise ModelError(
                f"The offline planner cannot use {defined!r}, a tool that a model's API defines: give the agent a "
                "language model, or remove the tool."
            )
        results = _results(request.messages)
        facts = _merge(request.input, *results.values())
        call = _next_call(request, results, facts)
        if call is not None:
            return _reply([call], "tool_use")
        report = _report(request, results)
        on_text(report)
        return _reply([{"type": "text", "text": report}], "end_turn")

    def count_tokens(self, request: ModelRequest) -> int:
        """Return 0: the offline model has no cost."""
        return 0

    def batch_fault(self, namespace: str) -> str | None:
        """Return None: it answers at once, and batches would save nothing."""
        return None


def _next_call(
    request: ModelRequest, results: dict[str, JsonValue], facts: dict[str, JsonValue]
) -> dict[str, Any] | None:
    rules = [message["content"] for message in request.messages if message["role"] == "system"]
    text = "\n".join([request.system, *rules, _last_message(request.messages)])
    scored = [(_score(tool, text), tool) for tool in request.tools]
    best = max((score for score, _ in scored), default=0.0)
    for score, tool in sorted(scored, key=lambda pair: -pair[0]):
        if tool.name in results or score == 0 or score < best * NEAR_ENOUGH:
            continue
        arguments = _fill(tool, facts, _last_message(request.messages))
        if arguments is not None:
            identity = digest([tool.name, arguments])[:24]
            return {"type": "tool_use", "id": f"offline_{identity}", "name": tool.name, "input": arguments}
    return None


def _score(tool: ToolSpec, text: str) -> float:
    """The share of the tool's own words that the request mentions; its name counts twice."""
    asked = _words(text)
    named, described = _words(tool.name), _words(tool.description)
    described |= _words(" ".join(tool.input_schema.get("properties", {})))
    if not named and not described:
        return 0.0
    hits: float = 2 * len(named & asked) + len(described & asked)
    return hits / (2 * len(named) + math.sqrt(len(described)))


def _words(text: str) -> set[str]:
    parts = re.findall(r"[a-z0-9]+", re.sub(r"([a-z])([A-Z])", r"\1 \2", text).lower())
    return {_stem(part) for part in parts if part not in STOP_WORDS and len(part) > 1}


def _stem(word: str) -> str:
    """Stem enough English to match `searching` and `searches` with `search`."""
    for ending in ("ations", "ation", "ings", "ing", "ies", "es", "ed", "s"):
        if word.endswith(ending) and len(word) - len(ending) >= 3:
            return word[: -len(ending)]
    return word


def _fill(tool: ToolSpec, facts: dict[str, JsonValue], text: str) -> dict[str, JsonValue] | None:
    """Return arguments that match the tool's schema, or None if they are unknown."""
    properties: dict[str, Any] = tool.input_schema.get("properties", {})
    arguments = {
        name: facts[name] for name in properties if name in facts and not violations(properties[name], facts[name])
    }
    missing = [name for name in tool.input_schema.get("required", []) if name not in arguments]
    if len(missing) == 1 and properties.get(missing[0], {}).get("type") == "string":
        arguments[missing[0]] = _subject(text)
    return None if violations(tool.input_schema, arguments) else arguments


def _subject(text: str) -> str:
    """The subject of a request: `Search for red boats` is about `red boats`."""
    said = text.strip()
    match = re.match(r"(?i)^(?:please\s+)?\w+\s+(?:for|about|up|out)\s+(.+)$", said, re.DOTALL)
    return (match.group(1) if match else said).strip()


def _merge(*sources: JsonValue) -> dict[str, JsonValue]:
    """The named values of all objects among the sources; later ones win."""
    facts: dict[str, JsonValue] = {}
    for source in sources:
        if isinstance(source, dict):
            facts |= source
    return facts


def _results(messages: list[dict[str, Any]]) -> dict[str, JsonValue]:
    """The result of each tool so far, by name."""
    names: dict[str, str] = {}
    results: dict[str, JsonValue] = {}
    for message in messages:
        for block in message["content"] if isinstance(message["content"], list) else []:
            if block.get("type") == "tool_use":
                names[block["id"]] = block["name"]
            elif block.get("type") == "tool_result":
                results[names.get(block["tool_use_id"], "?")] = _value(block.get("content"))
    return results


def _last_message(messages: list[dict[str, Any]]) -> str:
    """The last message from a person."""
    texts = [text_of(message["content"]) for message in messages if message["role"] == "user"]
    return next(filter(None, reversed(texts)), "")


def _report(request: ModelRequest, results: dict[str, JsonValue]) -> str:
    text = _summary(results)
    if request.output_schema is None:
        return text
    for candidate in (*reversed(list(results.values())), _shape(request.output_schema, text, results)):
        if not violations(request.output_schema, candidate):
            return json.dumps(candidate, ensure_ascii=False)
    raise ModelError(
        f"{NOTICE} It cannot make up an answer that matches the agent's output schema: "
        "give the agent a tool that returns one, or a language model (set ANTHROPIC_API_KEY)."
    )


def _summary(results: dict[str, JsonValue]) -> str:
    if not results:
        return f"{NOTICE} No tool of this agent fits the request, so there is nothing to report."
    lines = [f"{name} returned {json.dumps(value, ensure_ascii=False)[:MAX_QUOTED]}" for name, value in results.items()]
    return f"{NOTICE} " + "\n".join(lines)


def _shape(schema: dict[str, Any], text: str, results: dict[str, JsonValue]) -> JsonValue:
    """Build the report in the requested shape: results of a fitting type, text, empty lists and objects; no numbers."""
    kind = schema.get("type")
    if kind == "string":
        return text
    if kind == "array":
        return next((value for value in results.values() if not violations(schema, value)), [])
    if kind != "object":
        return None
    facts = _merge(*results.values())
    properties: dict[str, Any] = schema.get("properties", {})
    wanted = schema.get("required") or list(properties)
    return {name: facts[name] if name in facts else _shape(properties.get(name, {}), text, results) for name in wanted}


def _value(content: Any) -> JsonValue:
    try:
        return json.loads(content)
    except (TypeError, ValueError):
        return content


def _reply(content: list[dict[str, Any]], stop_reason: str) -> ModelReply:
    return ModelReply(content, stop_reason, OFFLINE)
