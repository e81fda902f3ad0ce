"""What `minion doctor` says about providers of models."""

from __future__ import annotations

import json
from http.server import BaseHTTPRequestHandler
from typing import Any

import pytest

from orchestrator.commands import provider_checks
from orchestrator.commands.findings import Finding
from shared.settings import get_settings
from tests.support.http_server import answering


@pytest.fixture
def check(monkeypatch: pytest.MonkeyPatch) -> Any:
    """Returns the finding for a provider `x`."""

    def find(fields: dict[str, Any], key: str | None = None) -> Finding:
        monkeypatch.setenv("MINION_PROVIDERS", json.dumps({"x": fields}))
        monkeypatch.setenv("MINION_PROVIDER_KEYS", json.dumps({"x": key} if key else {}))
        [found] = provider_checks.providers(get_settings.__wrapped__())
        return found

    return find


def test_provider_is_shown_without_its_key(check: Any) -> None:
    found = check({"kind": "openai"}, "sk-secret")
    assert (found.what, found.verdict) == ("provider x", "ok")
    assert found.found == "openai at https://api.openai.com/v1, with a key here"


@pytest.mark.parametrize(
    ("fields", "key", "advice"),
    [
        ({"kind": "openai", "url": "http://10.0.0.1/v1"}, "sk", "its key is sent in plain text"),
        ({"kind": "openai", "url": "http://10.0.0.1/v1"}, None, ""),
        ({"kind": "openai", "url": "http://127.0.0.1/v1"}, "sk", ""),
        ({"kind": "foundry", "resource": "r"}, None, "workers need its key in MINION_PROVIDER_KEYS"),
    ],
)
def test_weakness_of_a_provider_is_a_warning(check: Any, fields: dict[str, Any], key: str | None, advice: str) -> None:
    found = check(fields, key)
    assert (found.verdict, advice in found.advice) == ("warning" if advice else "ok", True)


@pytest.mark.parametrize(("kind", "package"), [("openai", "openai"), ("bedrock", "boto3"), ("vertex", "google.auth")])
def test_missing_package_is_named(check: Any, monkeypatch: pytest.MonkeyPatch, kind: str, package: str) -> None:
    monkeypatch.setattr(provider_checks, "find_spec", lambda name: None)
    fields = {"vertex": {"project": "p", "region": "eu"}, "bedrock": {"region": "us-east-1"}}.get(kind, {})
    assert check({"kind": kind, **fields}).advice == f"workers need `{package}`: install `minions-server[{kind}]`"


@pytest.mark.parametrize(
    ("status", "key", "advice"),
    [
        (200, "sk-secret", ""),
        (404, None, ""),
        (401, "sk-secret", "it refuses the key"),
        (403, None, "it needs a key"),
        (307, "sk-secret", "it redirects"),
    ],
)
def test_answer_of_a_provider_is_judged(
    monkeypatch: pytest.MonkeyPatch, status: int, key: str | None, advice: str
) -> None:
    seen = []

    class Answering(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            seen.append((self.path, self.headers.get("authorization")))
            self.send_response(status)
            self.send_header("location", "/elsewhere")
            self.end_headers()

        def log_message(self, format: str, *args: Any) -> None:
            pass

    with answering(Answering) as port:
        [found] = answers_of(monkeypatch, f"http://127.0.0.1:{port}/v1", key)
    assert (found.verdict, advice in found.advice) == ("warning" if advice else "ok", True)
    assert seen == [("/v1/models", f"Bearer {key}" if key else None)]
    assert "sk-secret" not in str(found)


def test_provider_that_does_not_answer_is_a_warning(monkeypatch: pytest.MonkeyPatch) -> None:
    [found] = answers_of(monkeypatch, "http://127.0.0.1:9/v1", "sk-secret")
    assert (found.verdict, found.found.startswith("none: ")) == ("warning", True)


def answers_of(monkeypatch: pytest.MonkeyPatch, url: str, key: str | None) -> list[Finding]:
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    monkeypatch.setenv("MINION_PROVIDERS", json.dumps({"x": {"kind": "openai", "url": url}}))
    monkeypatch.setenv("MINION_PROVIDER_KEYS", json.dumps({"x": key} if key else {}))
    return [*provider_checks.answers(get_settings.__wrapped__())]
