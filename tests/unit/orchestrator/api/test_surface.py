"""The API is stable: docs/openapi.json is current, and no change of it breaks a client."""

from __future__ import annotations

import copy
import json
from functools import cache
from typing import Any

import pytest

from tests.support.api_surface import FILE, Document, as_text, breaking, current

SUBMIT = ("paths", "/v1/tasks", "post")
REQUEST = ("components", "schemas", "TaskRequest")
WAIT = ("components", "schemas", "WaitRequest", "properties")
QUERY = ("paths", "/v1/tasks", "get", "parameters")
TASK = ("components", "schemas", "Task")


@cache
def document() -> Document:
    return current()


def at(changed: Any, *path: str) -> Any:
    for name in path:
        changed = changed[name]
    return changed


def parameter(changed: Document, name: str) -> Any:
    return next(each for each in at(changed, *QUERY) if each["name"] == name)


def test_document_is_current() -> None:
    assert FILE.read_text() == as_text(document()), "run `make api`, and commit docs/openapi.json"


def test_no_change_breaks_clients() -> None:
    assert breaking(json.loads(FILE.read_text()), document()) == []


def rename(new: Document, old_name: str, new_name: str) -> None:
    references = json.dumps(new).replace(f'schemas/{old_name}"', f'schemas/{new_name}"')
    new.update(json.loads(references))
    at(new, "components", "schemas")[new_name] = at(new, "components", "schemas").pop(old_name)


BREAKING: dict[str, Any] = {
    "POST /v1/tasks is removed.": lambda new: at(new, "paths", "/v1/tasks").pop("post"),
    "GET /v1/stats is removed.": lambda new: at(new, "paths").pop("/v1/stats"),
    "GET /v1/stats: the operation is no longer show_stats.": lambda new: at(new, "paths", "/v1/stats", "get").update(
        operationId="get_stats"
    ),
    "The schema Why is removed.": lambda new: rename(new, "Why", "Explanation"),
    "GET /v1/tasks: parameter agent is removed.": lambda new: at(new, *QUERY).remove(parameter(new, "agent")),
    "GET /v1/tasks: parameter agent is required.": lambda new: parameter(new, "agent").update(required=True),
    "GET /v1/tasks: parameter state must not be repeated any more.": lambda new: parameter(new, "state").update(
        schema={"type": "string"}
    ),
    "POST /v1/tasks: body.priority is removed.": lambda new: at(new, *REQUEST, "properties").pop("priority"),
    "POST /v1/tasks: body.agent is required.": lambda new: at(new, *REQUEST).update(required=["agent"]),
    "POST /v1/tasks/wait: body.until must not be any any more.": lambda new: at(new, *WAIT, "until").update(
        enum=["all"]
    ),
    "POST /v1/tasks/wait: body.wait has a narrower maximum: 30.": lambda new: at(new, *WAIT, "wait").update(maximum=30),
    "POST /v1/tasks/wait: body.wait must not be of the type number any more.": lambda new: at(
        new, *WAIT, "wait"
    ).update(type="string"),
    "POST /v1/tasks: the answer 201 is removed.": lambda new: at(new, *SUBMIT, "responses").pop("201"),
    "GET /v1/tasks/{task_id}: answer 200.claim is removed.": lambda new: at(new, *TASK, "properties").pop("claim"),
    "GET /v1/tasks/{task_id}: answer 200.claim may be missing.": lambda new: at(new, *TASK, "required").remove("claim"),
    "GET /v1/tasks/{task_id}: answer 200.claim may be of the type null.": lambda new: at(
        new, *TASK, "properties", "claim"
    ).update(type=["integer", "null"]),
}


@pytest.mark.parametrize("sentence", BREAKING)
def test_breaking_change_is_named(sentence: str) -> None:
    changed = copy.deepcopy(document())
    BREAKING[sentence](changed)
    assert sentence in breaking(document(), changed)


def add_everything(new: Document) -> None:
    new["paths"]["/v1/new"] = new["paths"]["/v1/tasks"]
    at(new, *QUERY).append({"in": "query", "name": "new", "required": False, "schema": {"type": "string"}})
    agent = parameter(new, "agent")["schema"]
    parameter(new, "agent")["schema"] = {"type": "array", "items": agent["anyOf"][0]}
    at(new, *REQUEST, "properties")["new"] = {"type": "string"}
    at(new, *TASK, "properties")["new"] = {"type": "string"}
    at(new, *TASK, "required").append("new")
    at(new, *WAIT, "until")["enum"].append("most")
    at(new, *WAIT, "wait")["maximum"] = 120
    at(new, "components", "schemas", "State")["enum"].append("paused")


def test_additions_break_nothing() -> None:
    changed = copy.deepcopy(document())
    add_everything(changed)
    assert breaking(document(), changed) == []
    assert breaking(changed, document())
