"""What holds for every route: the key, problems, methods, the OpenAPI document."""

from __future__ import annotations

import json
import re
from typing import Any

import httpx2
import pytest
from jsonschema import Draft202012Validator

from shared.embedded import EmbeddedServers

PUBLIC = {"/healthz", "/readyz"}


def operations(http: httpx2.Client) -> list[tuple[str, str, dict[str, Any]]]:
    paths = http.get("/openapi.json").json()["paths"]
    return [(path, method, operation) for path, methods in paths.items() for method, operation in methods.items()]


@pytest.mark.parametrize(
    "header",
    [
        None,
        "",
        "Bearer",
        "Bearer wrong",
        "Basic {key}",
        "{key}",
        "Bearer {key}x",
        "Bearer {key} x",
        "Bearer \xe4\xff",
    ],
)
def test_every_route_below_v1_needs_the_key(api: Any, database: Any, header: str | None) -> None:
    with httpx2.Client(base_url=api.url, trust_env=False, timeout=60) as http:
        guarded = [(path, method) for path, method, _ in operations(http) if path not in PUBLIC]
        assert len(guarded) >= 15
        headers = {} if header is None else {"Authorization": header.format(key=api.key).encode("latin-1")}
        for path, method in guarded:
            response = http.request(method, re.sub(r"\{.*?\}", "x", path), headers=headers)
            assert response.status_code == 401, (method, path)
            assert response.headers["www-authenticate"] == "Bearer"
            assert response.json()["code"] == "unauthorized"
            assert api.key not in response.text


def test_the_scheme_is_written_in_any_case(api: Any, database: Any) -> None:
    with httpx2.Client(base_url=api.url, trust_env=False, timeout=60) as http:
        assert http.get("/v1/tasks", headers={"Authorization": f"bEARER {api.key}"}).status_code == 200


def test_every_operation_describes_its_problems(http: httpx2.Client) -> None:
    document = http.get("/openapi.json").json()
    assert document["components"]["schemas"]["Problem"]["required"] == ["type", "title", "status", "detail", "code"]
    for path, method, operation in operations(http):
        if path in PUBLIC:
            continue
        assert operation["security"], (method, path)
        assert {"401", "422", "503"} <= set(operation["responses"]), (method, path)
        for status, response in operation["responses"].items():
            if status == "204":
                assert "content" not in response, (method, path)
                continue
            shown = "text/event-stream" if path.endswith("/events") else "application/json"
            expected = shown if status.startswith("2") else "application/problem+json"
            assert list(response["content"]) == [expected], (method, path, status)
        if "requestBody" in operation:
            schema = operation["requestBody"]["content"]["application/json"]["schema"]
            Draft202012Validator.check_schema(schema)
            assert "$ref" not in json.dumps(schema), (method, path)  # it would count from the document's root


def test_a_refused_method_is_told_all_that_there_are(http: httpx2.Client) -> None:
    refused = http.request("OPTIONS", "/v1/schedules/x")
    assert (refused.status_code, refused.headers["allow"]) == (405, "DELETE, GET, PATCH, PUT")
    refused = http.request("PUT", "/v1/tasks/counts")
    assert (refused.status_code, refused.headers["allow"]) == (405, "GET")


def test_the_docs_are_open(http: httpx2.Client) -> None:
    assert "swagger" in http.get("/docs").text.lower()


def test_an_unknown_method_is_refused(http: httpx2.Client) -> None:
    for method, path in [("DELETE", "/v1/tasks"), ("OPTIONS", "/v1/tasks"), ("PUT", "/v1/agents/x"), ("BREW", "/docs")]:
        response = http.request(method, path)
        assert response.status_code == 405, (method, path)
        assert response.json()["code"] == "method_not_allowed"
        assert response.headers["allow"]


def test_head_answers_like_get_without_a_body(http: httpx2.Client) -> None:
    for path, status in [("/v1/tasks", 200), ("/healthz", 200), ("/v1/tasks/7", 422)]:
        response = http.head(path)
        assert (response.status_code, response.content) == (status, b"")
        assert response.headers["content-length"] == http.get(path).headers["content-length"]


def test_health(http: httpx2.Client) -> None:
    assert http.get("/healthz", headers={"Authorization": ""}).json() == {"status": "ok"}


def test_readiness(http: httpx2.Client, servers: EmbeddedServers) -> None:
    ok = {"status": "ready", "database": "ok", "migrations": "ok", "broker": "ok"}
    response = http.get("/readyz", headers={"Authorization": ""})
    assert (response.status_code, response.json()) == (200, ok)


def test_an_unplanned_error_shows_nothing_of_the_inside(http: httpx2.Client, api: Any) -> None:
    secret = "the password is hunter2"

    def fail() -> None:
        raise RuntimeError(secret)

    api.app.add_api_route("/fail", fail, include_in_schema=False)
    response = http.get("/fail")
    assert response.status_code == 500
    assert response.json()["code"] == "internal_error"
    assert "hunter2" not in response.text


@pytest.mark.parametrize(
    ("method", "path", "body", "member"),
    [
        ("POST", "/v1/replays", {"dry_run": "no"}, "dry_run"),
        ("POST", "/v1/replays", {"again": 1}, "again"),
        ("POST", "/v1/replays", {"limit": "5"}, "limit"),
        ("PUT", "/v1/limits/key/x", {"max_running": True}, "max_running"),
        ("PUT", "/v1/limits/key/x", {"max_running": "5"}, "max_running"),
    ],
)
def test_nothing_is_converted(http: httpx2.Client, method: str, path: str, body: Any, member: str) -> None:
    refused = http.request(method, path, json=body)
    assert refused.status_code == 422
    assert member in refused.json()["detail"]
