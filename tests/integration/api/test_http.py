"""Properties of every route: the key, problems, methods, the OpenAPI document."""

from __future__ import annotations

import base64
import hashlib
import re
from typing import Any

import httpx2
import pytest
from jsonschema import Draft202012Validator

from orchestrator.api.quotas import Quotas
from orchestrator.local.embedded import EmbeddedServers

UPLOAD = "/v1/files"
SHOWN = {
    "/metrics": ["text/plain", "application/openmetrics-text"],
    "/v1/files/{file_id}/content": [
        "application/pdf",
        "image/gif",
        "image/jpeg",
        "image/png",
        "image/webp",
        "text/plain",
    ],
}
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
def test_every_route_below_v1_needs_the_key(http_api: Any, database: Any, header: str | None) -> None:
    # The other headers have used up what an address may fail in a minute.
    http_api.app.state.quotas = Quotas()
    with httpx2.Client(base_url=http_api.url, trust_env=False, timeout=60) as http:
        guarded = [(path, method) for path, method, _ in operations(http) if path not in PUBLIC]
        assert len(guarded) >= 15
        headers = {} if header is None else {"Authorization": header.format(key=http_api.key).encode("latin-1")}
        for path, method in guarded:
            response = http.request(method, re.sub(r"\{.*?\}", "x", path), headers=headers)
            assert response.status_code == 401, (method, path)
            assert response.headers["www-authenticate"] in ("Bearer", 'Bearer error="invalid_token"')
            assert response.json()["code"] == "unauthorized"
            assert http_api.key not in response.text


def test_the_scheme_is_written_in_any_case(http_api: Any, database: Any) -> None:
    with httpx2.Client(base_url=http_api.url, trust_env=False, timeout=60) as http:
        assert http.get("/v1/tasks", headers={"Authorization": f"bEARER {http_api.key}"}).status_code == 200


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
            shown = ["text/event-stream"] if path.endswith("/events") else SHOWN.get(path, ["application/json"])
            expected = shown if status.startswith("2") else ["application/problem+json"]
            assert sorted(response["content"]) == sorted(expected), (method, path, status)
        if path == UPLOAD and method == "post":
            assert "application/pdf" in operation["requestBody"]["content"]
        elif "requestBody" in operation:
            schema = operation["requestBody"]["content"]["application/json"]["schema"]
            assert list(schema) == ["$ref"], (method, path)
            Draft202012Validator.check_schema(document["components"]["schemas"][schema["$ref"].rpartition("/")[2]])


def test_refused_method_lists_allowed_methods(http: httpx2.Client) -> None:
    refused = http.request("OPTIONS", "/v1/schedules/x")
    assert (refused.status_code, refused.headers["allow"]) == (405, "DELETE, GET, PATCH, PUT")
    refused = http.request("PUT", "/v1/tasks/counts")
    assert (refused.status_code, refused.headers["allow"]) == (405, "GET")


@pytest.mark.parametrize("path", ["/", "/docs", "/redoc"])
def test_pages_need_no_key_and_load_nothing_external(http: httpx2.Client, path: str) -> None:
    page = http.get(path, headers={"Authorization": ""})
    assert page.status_code == 200
    assert not re.findall(r"(?:https?:)?//[a-z]", page.text)
    loaded = [*re.findall(r'(?:src|href)="(/[^"]+)"', page.text), *re.findall(r"url: '(/[^']+)'", page.text)]
    assert loaded
    for target in loaded:
        assert http.get(target, headers={"Authorization": ""}).status_code == 200, target
    policy = dict(part.strip().split(" ", 1) for part in page.headers["content-security-policy"].split(";"))
    assert policy["default-src"] == "'none'"
    scripts = re.findall(r"<script>(.*?)</script>", page.text, re.DOTALL)
    digests = [base64.b64encode(hashlib.sha256(script.encode()).digest()).decode() for script in scripts]
    assert policy["script-src"] == " ".join(["'self'", *(f"'sha256-{digest}'" for digest in digests)])
    assert policy["connect-src"] == "'self'"


def test_first_page_names_product_and_links(http: httpx2.Client) -> None:
    page = http.get("/", headers={"Authorization": ""})
    assert "This is the API of Minions" in page.text
    for place in ("/docs", "/redoc", "/openapi.json"):
        assert f'href="{place}"' in page.text


def validator(document: dict[str, Any], schema: dict[str, Any]) -> Draft202012Validator:
    return Draft202012Validator({**schema, "components": document["components"]})


def test_every_operation_has_examples_that_its_schemas_permit(http: httpx2.Client) -> None:
    document = http.get("/openapi.json").json()
    for path, method, operation in operations(http):
        for parameter in operation.get("parameters", ()):
            if parameter["in"] == "path":
                validator(document, parameter["schema"]).validate(parameter["example"])
        sent = operation.get("requestBody", {}).get("content", {}).get("application/json")
        if sent:
            validator(document, sent["schema"]).validate(sent["example"])
        assert not sent or sent["example"], (method, path)
        for response in operation["responses"].values():
            for content in response.get("content", {}).values():
                validator(document, content["schema"]).validate(content["example"])


def test_openapi_examples_are_accepted(http: httpx2.Client) -> None:
    """Nothing that they name exists here; nothing about their form is wrong."""
    for path, method, operation in reversed(operations(http)):
        given = [one for one in operation.get("parameters", ()) if "example" in one]
        values, query = (
            {one["name"]: one["example"] for one in given if one["in"] == kind} for kind in ("path", "query")
        )
        body = operation.get("requestBody", {}).get("content", {}).get("application/json", {}).get("example")
        sent = {"content": b"Any bytes."} if path == UPLOAD and method == "post" else {"json": body}
        answer = http.request(method, path.format(**values), params=query, **sent)
        assert answer.status_code in (200, 201, 204, 404), (method, path, answer.text)


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


def test_unexpected_error_shows_no_internals(http: httpx2.Client, http_api: Any) -> None:
    secret = "the password is hunter2"

    def fail() -> None:
        raise RuntimeError(secret)

    http_api.app.add_api_route("/fail", fail, include_in_schema=False)
    response = http.get("/fail")
    assert response.status_code == 500
    assert response.json()["code"] == "internal_error"
    assert response.json()["error_id"] in response.json()["detail"]
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
def test_values_are_not_converted(http: httpx2.Client, method: str, path: str, body: Any, member: str) -> None:
    refused = http.request(method, path, json=body)
    assert refused.status_code == 422
    assert member in refused.json()["detail"]
