"""Decisions as forms: what a client asks its user, and what the answers mean to the API."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

from mcp_types import ElicitRequest, ElicitRequestFormParams, ElicitResult

from minions.errors import InvalidInput
from shared.contracts.strict_json import parse
from shared.contracts.visible_text import visible

SIMPLE = ("string", "integer", "number", "boolean")
COPIED = ("title", "description", "enum", "minimum", "maximum", "minLength", "maxLength")
"""Keywords of a property that forms know too."""
MOST_FIELDS = 12
LONGEST_VALUE = 20_000
"""Characters of JSON that a form shows."""
LONGEST_SHOWN = 2000
"""Characters of JSON that a message shows."""
MARK = "argument."
"""Prefix of the fields for arguments, so that none has the name of another field."""
VERDICTS = ("result", "again", "fail")

Decision = Mapping[str, Any]


def key_of(decision: Decision) -> str:
    """Return the key of a decision's form: another one for each proposal, and after each approval of several."""
    return f"{decision['step']}-{decision['proposal']}-{decision['approvals'] or 0}"


def same_decision(key: str, other: str) -> bool:
    """Return whether two keys are those of forms for one decision, before and after an approval of several."""
    return key.rpartition("-")[0] == other.rpartition("-")[0]


def form_of(decision: Decision, sentence: str) -> ElicitRequest:
    """Return the form for a decision.

    Args:
        sentence: says what the task waits for.
    """
    hint, properties, required = _questions(decision)
    schema = {"type": "object", "properties": properties, **({"required": required} if required else {})}
    # Models choose the arguments: no character of them may hide others.
    message = visible(f"{sentence} {hint}\n\n{_cut(_json(decision['value']))}")
    return ElicitRequest(params=ElicitRequestFormParams(message=message, requested_schema=schema))


def decided(decision: Decision, answer: ElicitResult) -> dict[str, Any] | None:
    """Return the arguments of the API's decision; None if the user has dismissed the form.

    Raises:
        InvalidInput: a field is not what the form asks for.
    """
    if answer.action == "cancel":
        return None
    names = {"step": decision["step"], "proposal": decision["proposal"]}
    content = answer.content or {}
    if answer.action == "accept":
        _check_fields(decision, content)
    if decision["kind"] == "approval":
        if answer.action == "decline":
            return {**names, "verdict": "reject", "reason": "Declined by the user of an MCP client"}
        return {**names, "verdict": "approve", **_changed(decision, content), **_reason(content)}
    if answer.action == "decline":
        return None
    outcome = content.get("outcome")
    if outcome not in VERDICTS:
        raise InvalidInput(f"The field `outcome` must be one of {', '.join(VERDICTS)}.")
    value = {"value": _result(decision, content)} if outcome == "result" else {}
    return {**names, "verdict": outcome, **value, **_reason(content)}


def _check_fields(decision: Decision, content: Mapping[str, Any]) -> None:
    """Refuse arguments and results that the form has no field for: the user has seen no such field. Other fields that
    were not asked for mean nothing, and some clients send them.
    """
    _, asked, _ = _questions(decision)
    for name in content:
        if name not in asked and (name in ("arguments", "result") or name.startswith(MARK)):
            raise InvalidInput(f"The form has no field {name[:100]!r}. Its fields are {', '.join(asked)}.")


def _questions(decision: Decision) -> tuple[str, dict[str, Any], list[str]]:
    """Return a hint, the fields of a form, and the names of the required ones."""
    return _approval(decision) if decision["kind"] == "approval" else _answer(decision)


def _approval(decision: Decision) -> tuple[str, dict[str, Any], list[str]]:
    fields = _fields(decision["schema"], decision["value"])
    text = visible(_json(decision["value"]))
    if not fields and decision["schema"] is not None and len(text) <= LONGEST_VALUE:
        what = "Answer" if decision["server"] else "Arguments"
        fields = {"arguments": {"type": "string", "title": f"{what}, as JSON", "default": text}}
    reason = {"reason": {"type": "string", "title": "Reason", "maxLength": 1000}}
    if decision["server"]:
        hint = "Accepting sends the answer in the form, or else this one. Declining declines the question."
    else:
        hint = "Accepting approves it with the arguments in the form, or else with these. Declining rejects it."
    return hint, {**fields, **reason}, []


def _answer(decision: Decision) -> tuple[str, dict[str, Any], list[str]]:
    outcome = {
        "type": "string",
        "title": "Outcome",
        "description": "result: it happened, and returned what is below. again: make the call again. fail: it failed.",
        "enum": list(VERDICTS),
    }
    fields = _fields(decision["schema"], {}) or {
        "result": {"type": "string", "title": "Result, as JSON", "maxLength": LONGEST_VALUE}
    }
    reason = {"reason": {"type": "string", "title": "Reason", "maxLength": 1000}}
    return "Declining leaves it open. This was the request:", {"outcome": outcome, **fields, **reason}, ["outcome"]


def _fields(schema: Any, values: Any) -> dict[str, Any]:
    """Return a field for each property of a schema; none if there are many, or one is not simple, or hides text."""
    if not isinstance(schema, dict) or not isinstance(values, dict):
        return {}
    properties = schema.get("properties")
    if not isinstance(properties, dict) or not values.keys() <= properties.keys() or len(properties) > MOST_FIELDS:
        return {}
    if not all(_is_simple(part) for part in properties.values()):
        return {}
    if any(isinstance(value, str) and visible(value) != value for value in values.values()):
        return {}  # their JSON shows what they hide
    return {f"{MARK}{name}": _field(name, part, values) for name, part in properties.items()}


def _is_simple(part: Any) -> bool:
    if not isinstance(part, dict) or part.get("type") not in SIMPLE:
        return False
    # Forms have choices of text only.
    return "enum" not in part or all(isinstance(each, str) for each in part["enum"])


def _field(name: str, part: Mapping[str, Any], values: Mapping[str, Any]) -> dict[str, Any]:
    shown = {keyword: part[keyword] for keyword in COPIED if keyword in part}
    default = {"default": values[name]} if values.get(name) is not None else {}
    return {"type": part["type"], "title": name, **shown, **default}


def _changed(decision: Decision, content: Mapping[str, Any]) -> dict[str, Any]:
    """Return the arguments that replace the proposed ones, if the form has others."""
    if (written := content.get("arguments")) is not None:
        value = _parsed(written, "arguments")
    elif sent := _sent(content):
        proposed = decision["value"]
        value = {**(proposed if isinstance(proposed, dict) else {}), **sent}
    else:
        return {}
    return {} if value == decision["value"] else {"value": value}


def _result(decision: Decision, content: Mapping[str, Any]) -> Any:
    if (written := content.get("result")) is not None:
        return _parsed(written, "result")
    return _sent(content)


def _sent(content: Mapping[str, Any]) -> dict[str, Any]:
    return {
        name.removeprefix(MARK): value for name, value in content.items() if name.startswith(MARK) and value is not None
    }


def _json(value: Any) -> str:
    return json.dumps(value, ensure_ascii=False, indent=2)


def _cut(text: str) -> str:
    left = len(text) - LONGEST_SHOWN
    return text if left <= 0 else f"{text[:LONGEST_SHOWN]}… ({left:,} more characters)"


def _parsed(text: Any, field: str) -> Any:
    if not isinstance(text, str):
        raise InvalidInput(f"The field `{field}` must be text: JSON.")
    try:
        return parse(text)
    except InvalidInput as error:
        raise InvalidInput(f"The field `{field}` must be JSON: {error.message}") from None


def _reason(content: Mapping[str, Any]) -> dict[str, Any]:
    reason = content.get("reason")
    if reason is not None and not isinstance(reason, str):
        raise InvalidInput("The field `reason` must be text.")
    return {"reason": reason} if reason else {}
