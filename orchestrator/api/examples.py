"""Examples in the OpenAPI document: for every body, every answer and every parameter that names something."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from http import HTTPStatus
from typing import Any

from shared import __version__

TASK = "019ad1f2-6f3c-7d4e-9a51-3c2b7e8f1a90"
FILE = "file_9f86d081884c7d659a2feaa0c55ad015a3bf4f1b2b0b822cd15d6c15b0f00a08"
MOMENT = "2026-11-28T10:00:00Z"
TOMORROW = f"{datetime.now(UTC) + timedelta(days=1):%Y-%m-%dT%H:00:00Z}"
METHODS = frozenset({"get", "put", "post", "patch", "delete"})
SUBMITTED = {"agent": "triage", "input": {"text": "I was charged twice"}, "key": "acme", "labels": {"team": "support"}}
SCHEDULE = {"cron": "0 7 * * 1-5", "timezone": "Europe/Berlin", "request": {"agent": "triage", "input": {"text": "…"}}}

REQUESTS: dict[tuple[str, str], Any] = {
    ("post", "/v1/tasks"): SUBMITTED | {"idempotency_key": "ticket-4711"},
    ("post", "/v1/tasks/bulk"): {"tasks": [SUBMITTED, {"agent": "triage", "input": {"text": "It arrived broken"}}]},
    ("post", "/v1/tasks/wait"): {"ids": [TASK], "until": "all", "wait": 30},
    ("post", "/v1/tasks/{task_id}/cancel"): {"reason": "The customer has withdrawn it."},
    ("post", "/v1/tasks/{task_id}/replay"): {"pinned": True},
    ("post", "/v1/tasks/{task_id}/signals/{name}"): {"payload": {"amount": 25}},
    ("post", "/v1/tasks/{task_id}/decisions"): {"verdict": "approve", "step": 7, "reason": "Checked the order."},
    ("post", "/v1/tasks/{task_id}/budget"): {"add_dollars": 0.5},
    ("post", "/v1/replays"): {"agent": "triage", "states": ["failed"], "dry_run": True},
    ("post", "/v1/trials"): {
        "version": 4,
        "level": "replay",
        "recording": {"agent": "triage", "input": {"text": "I was charged twice"}, "output": {"queue": "billing"}},
    },
    ("post", "/v1/bulk-acts"): {"act": "replay", "query": "agent:triage state:failed since:1d", "dry_run": True},
    ("patch", "/v1/tasks/{task_id}/labels"): {"labels": {"team": "billing", "urgent": None}},
    ("post", "/v1/erasures"): {"tenant": "acme", "dry_run": True},
    ("post", "/v1/agents/{name}/rollback"): {"version": 3, "reason": "Version 4 answers in the wrong language."},
    ("put", "/v1/agents/{name}/canary"): {"version": 9, "share": "10%", "max_failures": 0.02},
    ("post", "/v1/evaluations"): {
        "agent": "triage",
        "evaluator": "judge",
        "since": "2026-11-29T00:00:00Z",
        "share": "10%",
        "dollars": 5,
    },
    ("put", "/v1/agents/{name}/status"): {"status": "disabled", "reason": "It answers in the wrong language."},
    ("post", "/v1/routes"): {"message": "I was charged twice"},
    ("put", "/v1/functions/{name}/status"): {"status": "quarantined", "reason": "It reads what it should not."},
    ("put", "/v1/errors/{fingerprint}"): {"state": "resolved", "reason": "Version 4 reads both formats."},
    ("put", "/v1/pauses/{scope}/{name}"): {"reason": "The provider is down."},
    ("put", "/v1/limits/{scope}/{name}"): {"max_running": 5, "rate": "100/m"},
    ("put", "/v1/budgets"): {"scope": "agent", "name": "triage", "period": "day", "dollars": 5},
    ("post", "/v1/silences"): {
        "agent": "triage",
        "until": TOMORROW,
        "reason": "The provider is being repaired.",
    },
    ("post", "/v1/stops"): {"scope": "agent", "name": "triage", "reason": "It answers in the wrong language."},
    ("post", "/v1/schedules"): {"name": "morning", **SCHEDULE},
    ("put", "/v1/schedules/{name}"): SCHEDULE,
    ("patch", "/v1/schedules/{name}"): {"enabled": False},
    ("post", "/v1/schedules/{name}/run"): {"idempotency_key": "by-hand-1"},
    ("post", "/v1/webhooks"): {"name": "tickets", "url": "https://example.com/hook", "states": ["failed"]},
    ("patch", "/v1/webhooks/{name}"): {"states": ["succeeded", "failed"]},
}
"""By method and path."""

VALUES: dict[str, Any] = {
    "agent": "triage",
    "agent_version": 3,
    "agents": ["triage"],
    "by_capability": {"support": {"pending": 2, "running": 1}},
    "by_state": {"pending": 2, "running": 1},
    "capabilities": ["support"],
    "capability": "support",
    "checksum": "9b0c7e3d5f1a",
    "claim": 1,
    "busy": 1,
    "cancel_requested": False,
    "cron": "0 7 * * 1-5",
    "definition": {"name": "triage", "type": "function", "function": "triage"},
    "description": "Sorts support tickets into billing or general.",
    "file_id": FILE,
    "facts": {"worker": "support-4711@host", "claim": 1},
    "finished_at": MOMENT,
    "fingerprint": "3f9d2c1b8a70",
    "host": "host",
    "input": {"text": "I was charged twice"},
    "key": "acme",
    "kind": "function_call",
    "labels": {"team": "support"},
    "model": "claude-sonnet-5-5",
    "name": "triage",
    "namespace": "default",
    "outcome": "succeeded",
    "output": {"queue": "billing"},
    "path": "/memories/notes.md",
    "pid": 4711,
    "pool": "prefork",
    "rate": 100,
    "reason": "running",
    "request": {"agent": "triage", "input": {"text": "…"}},
    "running": 1,
    "scope": "agent",
    "secret": "whsec_c2VjcmV0c2VjcmV0c2VjcmV0c2VjcmV0",
    "sentence": "It has been running on support-4711@host for 2 s, in step 1 (function_call triage).",
    "slots": 2,
    "state": "succeeded",
    "states": ["failed"],
    "status": "active",
    "submitted_by": "api",
    "timezone": "Europe/Berlin",
    "type": "function",
    "url": "https://example.com/hook",
    "user": "oidc:alice@example.com",
    "user_agent": "Mozilla/5.0",
    "version": 3,
    "worker": "support-4711@host",
    "workers": 1,
    "BulkAct.state": "running",
    "File.id": FILE,
    "File.media_type": "application/pdf",
    "File.name": "contract.pdf",
    "File.sha256": FILE.removeprefix("file_"),
    "Capability.name": "support",
    "Schedule.name": "morning",
    "Step.status": "finished",
    "Webhook.name": "tickets",
    "WebhookDelivery.state": "failed",
    "WebhookDelivery.status": "delivered",
    "WebhookWithSecret.name": "tickets",
    "Why.state": "running",
    "Worker.name": "support-4711@host",
    "Worker.status": "online",
    "Worker.version": __version__,
}
"""Values for a property (of one schema, or of any) or a path parameter, if its schema allows them."""

PROBLEM = {"title": "What kind of error it is", "detail": "What was wrong, where, and what to do now."}
CODES = {413: "too_large", 422: "invalid_input", 503: "unavailable"}
"""The most frequent code of a status, if it is not named like the status."""

STREAM = """id: 3
event: step.started
data: {"at": "2026-11-28T10:00:00+00:00", "step": 1, "kind": "model_call", "name": "claude-sonnet-5-5", "claim": 1}

"""
KINDS: dict[str, tuple[type, ...]] = {
    "string": (str,),
    "integer": (int,),
    "number": (int, float),
    "object": (dict,),
    "array": (list,),
    "boolean": (bool,),
    "null": (type(None),),
}


def add_to(document: dict[str, Any]) -> dict[str, Any]:
    """Add examples to all operations of an OpenAPI document."""
    schemas = document["components"]["schemas"]
    for path, item in document["paths"].items():
        for method in METHODS & item.keys():
            operation = item[method]
            for parameter in operation.get("parameters", ()):
                # The query of a removal may name what is removed.
                if parameter.get("required") or (method == "delete" and parameter["in"] == "query"):
                    parameter["example"] = _example(parameter["schema"], parameter["name"], schemas)
            if content := operation.get("requestBody", {}).get("content", {}).get("application/json"):
                content["example"] = REQUESTS.get((method, path)) or _example(content["schema"], "", schemas)
            for status, response in operation["responses"].items():
                for media_type, content in response.get("content", {}).items():
                    content["example"] = _answer(media_type, int(status), content["schema"], schemas)
    return document


def _answer(media_type: str, status: int, schema: dict[str, Any], schemas: dict[str, Any]) -> Any:
    match media_type:
        case "text/event-stream":
            return STREAM
        case "application/problem+json":
            code = CODES.get(status) or HTTPStatus(status).phrase.lower().replace(" ", "_")
            return PROBLEM | {"type": f"/problems/{code}", "status": status, "code": code}
    return _example(schema, "", schemas)


def _example(schema: dict[str, Any], name: str, schemas: dict[str, Any]) -> Any:
    """Return a value that a schema allows: the example of that name if there is one, else the simplest value."""
    if "$ref" in schema:
        return _example(schemas[schema["$ref"].rpartition("/")[2]], name, schemas)
    if "const" in schema or "examples" in schema:
        return schema["const"] if "const" in schema else schema["examples"][0]
    if "enum" in schema:
        return VALUES[name] if VALUES.get(name) in schema["enum"] else schema["enum"][0]
    options = schema.get("anyOf") or schema.get("oneOf") or [schema]
    for option in options:
        if name in VALUES and isinstance(VALUES[name], KINDS.get(option.get("type"), (object,))):
            return VALUES[name]
    return None if {"type": "null"} in options else _simplest(options[0], schemas)


def _simplest(schema: dict[str, Any], schemas: dict[str, Any]) -> Any:
    match schema.get("type"):
        case "object":
            parts = schema.get("properties", {})
            special = {name: f"{schema.get('title')}.{name}" for name in parts}
            return {
                name: _example(part, special[name] if special[name] in VALUES else name, schemas)
                for name, part in parts.items()
            }
        case "array":
            return [_example(schema["items"], "", schemas)] if schema.get("items") else []
        case "integer" | "number":
            return schema.get("minimum", 0)
        case "boolean":
            return True
        case "string":
            return {"uuid": TASK, "date-time": MOMENT}.get(schema.get("format", ""), "text")
    return None
