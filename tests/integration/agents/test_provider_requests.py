"""The requests that each provider receives: address, headers, body."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler
from typing import Any

import pytest
from sqlalchemy import Engine

from minions import testing
from minions.testing import KEY, MessagesApi
from shared.contracts.turn_settings import ToolChoice
from shared.errors import ModelError
from tests.support.http_server import answering
from tests.support.model_client import use_model_url
from tests.support.providers import MODELS, use_providers
from workers.llm import client_for
from workers.llm.base import ModelRequest, ToolSpec

SCHEMA = {"type": "object", "required": ["n"], "properties": {"n": {"type": "integer"}}}
OPTIONAL = {"type": "object", "properties": {"n": {"type": "integer"}}}
TOOL = ToolSpec("act", "Acts", SCHEMA)
PIXEL = {"type": "image", "source": {"type": "base64", "media_type": "image/png", "data": "iVBORw0="}}
LINKED = {"type": "image", "source": {"type": "url", "url": "https://example.com/a.png"}}
PDF = {
    "type": "document",
    "title": "a.pdf",
    "source": {"type": "base64", "media_type": "application/pdf", "data": "JVBERi0="},
}
CALLED = {"type": "tool_use", "id": "call_1", "name": "act", "input": {"n": 1}}

EVERY_SETTING = {
    "model": "gpt-5",
    "messages": [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "Hi"}],
    "max_completion_tokens": 100,
    "stream": True,
    "stream_options": {"include_usage": True},
    "temperature": 0.5,
    "top_p": 0.9,
    "presence_penalty": 1.0,
    "frequency_penalty": -1.0,
    "tools": [
        {
            "type": "function",
            "function": {
                "name": "act",
                "description": "Acts",
                "parameters": {**SCHEMA, "additionalProperties": False},
                "strict": True,
            },
        }
    ],
    "tool_choice": {"type": "function", "function": {"name": "act"}},
    "parallel_tool_calls": False,
    "stop": ["END"],
    "reasoning_effort": "low",
    "user": "a-tenant",
    "response_format": {
        "type": "json_schema",
        "json_schema": {"name": "answer", "schema": {**SCHEMA, "additionalProperties": False}, "strict": True},
    },
}


@dataclass
class Received:
    """Requests in the order of their arrival."""

    paths: list[str] = field(default_factory=list)
    headers: list[dict[str, str]] = field(default_factory=list)
    bodies: list[dict[str, Any]] = field(default_factory=list)


@contextmanager
def receiving(monkeypatch: pytest.MonkeyPatch, keys: dict[str, str] | None = None) -> Iterator[Received]:
    """A server of all providers, which answers 400 to every request."""
    received = Received()

    class Refusing(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            received.paths.append(self.path)
            received.headers.append({name.lower(): value for name, value in self.headers.items()})
            received.bodies.append(json.loads(self.rfile.read(int(self.headers["content-length"]))))
            self.send_response(400)
            self.send_header("content-length", "2")
            self.end_headers()
            self.wfile.write(b"{}")

        def log_message(self, format: str, *args: Any) -> None:
            pass

    with answering(Refusing) as port:
        url = f"http://127.0.0.1:{port}"
        with use_model_url(url, monkeypatch), use_providers(url, monkeypatch, keys):
            yield received


def send(provider: str, *messages: dict[str, Any], **fields: Any) -> None:
    """Send a request that is refused."""
    fields = {"system": "Be brief.", "tools": (), "max_tokens": 100, **fields}
    request = ModelRequest(MODELS[provider], messages=list(messages or [{"role": "user", "content": "Hi"}]), **fields)
    with pytest.raises(ModelError, match="answered 400"):
        client_for(MODELS[provider]).complete(request, print)


@pytest.mark.parametrize(
    ("provider", "path", "header", "model"),
    [
        ("anthropic", "/v1/messages", "authorization", "claude-sonnet-5-5"),
        ("gateway", "/v1/messages", "authorization", "claude-sonnet-5-5"),
        (
            "vertex",
            "/v1/projects/a-project/locations/global/publishers/anthropic/models/claude-sonnet-4-5@20250929:"
            "streamRawPredict",
            "authorization",
            None,
        ),
        ("bedrock", "/anthropic/v1/messages", "authorization", "anthropic.claude-sonnet-4-5"),
        ("foundry", "/anthropic/v1/messages", "x-api-key", "claude-sonnet-5-5"),
        ("openai", "/v1/chat/completions", "authorization", "gpt-5"),
        ("own", "/v1/chat/completions", "authorization", "qwen3:8b"),
    ],
)
def test_address_and_key_of_each_provider(
    database: Engine, monkeypatch: pytest.MonkeyPatch, provider: str, path: str, header: str, model: str | None
) -> None:
    with receiving(monkeypatch) as received:
        send(provider)
    assert received.paths[-1] == path
    assert received.headers[-1][header].removeprefix("Bearer ") == KEY
    assert received.bodies[-1].get("model") == model
    assert received.bodies[-1]["stream"] is True
    if provider == "vertex":
        assert received.bodies[-1]["anthropic_version"]


def test_bedrock_request_is_signed_without_a_key(database: Engine, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "AKIAEXAMPLE")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "secret-of-aws")
    monkeypatch.setenv("AWS_SESSION_TOKEN", "token-of-aws")
    with receiving(monkeypatch, keys={}) as received:
        send("bedrock")
    signed = received.headers[-1]["authorization"]
    assert signed.startswith("AWS4-HMAC-SHA256 Credential=AKIAEXAMPLE/")
    assert "/us-east-1/bedrock-mantle/aws4_request" in signed
    assert received.headers[-1]["x-amz-security-token"] == "token-of-aws"
    assert "secret-of-aws" not in json.dumps(received.headers)


def test_missing_credentials_of_a_platform_are_reported(database: Engine, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("boto3.Session.get_credentials", lambda session: None)
    monkeypatch.setenv("GOOGLE_APPLICATION_CREDENTIALS", "/nowhere.json")
    with receiving(monkeypatch, keys={}) as received:
        for provider in ("bedrock", "vertex"):
            request = ModelRequest(MODELS[provider], "", [{"role": "user", "content": "Hi"}], (), 100)
            with pytest.raises(ModelError, match=f"The provider '{provider}' needs credentials"):
                client_for(MODELS[provider]).complete(request, print)
    assert received.paths == []


def test_settings_reach_the_chat_completions_api(database: Engine, monkeypatch: pytest.MonkeyPatch) -> None:
    with receiving(monkeypatch) as received:
        send(
            "openai",
            tools=(ToolSpec("act", "Acts", {**SCHEMA, "additionalProperties": False}, strict=True),),
            sampling={"temperature": 0.5, "top_p": 0.9, "presence_penalty": 1.0, "frequency_penalty": -1.0},
            effort="low",
            tool_choice=ToolChoice(type="tool", name="act", parallel=False),
            stop_sequences=("END",),
            user_id="a-tenant",
            output_schema=SCHEMA,
            constrained=True,
        )
    assert received.bodies == [EVERY_SETTING]


def test_server_without_features_receives_what_all_know(database: Engine, monkeypatch: pytest.MonkeyPatch) -> None:
    messages = [
        {"role": "user", "content": "Hi"},
        {"role": "system", "content": "A rule"},
    ]
    with receiving(monkeypatch) as received:
        send("own", *messages, tools=(TOOL,), output_schema=SCHEMA, constrained=True)
    body = received.bodies[-1]
    assert "response_format" not in body
    assert (body["max_tokens"], "max_completion_tokens" in body) == (100, False)
    assert body["messages"][-1] == {"role": "user", "content": "<system-reminder>\nA rule\n</system-reminder>"}
    assert "strict" not in body["tools"][0]["function"]


def test_schema_with_optional_properties_is_a_hint(database: Engine, monkeypatch: pytest.MonkeyPatch) -> None:
    with receiving(monkeypatch) as received:
        send("openai", output_schema=OPTIONAL, constrained=True)
    assert received.bodies[-1]["response_format"]["json_schema"] == {
        "name": "answer",
        "schema": OPTIONAL,
        "strict": False,
    }


@pytest.mark.parametrize(
    ("choice", "sent"),
    [({"type": "auto"}, "auto"), ({"type": "any"}, "required"), ({"type": "none"}, "none")],
)
def test_choice_of_tools_is_translated(
    database: Engine, monkeypatch: pytest.MonkeyPatch, choice: dict[str, Any], sent: str
) -> None:
    with receiving(monkeypatch) as received:
        send("own", tools=(TOOL,), tool_choice=ToolChoice(**choice))
    assert received.bodies[-1]["tool_choice"] == sent
    assert "parallel_tool_calls" not in received.bodies[-1]


def test_blocks_are_translated_for_the_chat_completions_api(database: Engine, monkeypatch: pytest.MonkeyPatch) -> None:
    earlier = [
        {"role": "user", "content": [PIXEL, LINKED, {"type": "text", "text": "What is it?"}]},
        {"role": "assistant", "content": [{"type": "thinking", "thinking": "Hm."}, CALLED]},
        {"role": "user", "content": [{"type": "tool_result", "tool_use_id": "call_1", "content": '"a\\nb"'}]},
        {"role": "assistant", "content": [{"type": "text", "text": "A cat."}]},
        {"role": "user", "content": "And now?"},
        {"role": "assistant", "content": [{"type": "thinking", "thinking": "So.", "field": "reasoning"}, CALLED]},
        {
            "role": "user",
            "content": [{"type": "tool_result", "tool_use_id": "call_1", "content": "no", "is_error": True}],
        },
    ]
    with receiving(monkeypatch) as received:
        send("openai", *earlier)
    call = {"id": "call_1", "type": "function", "function": {"name": "act", "arguments": '{"n": 1}'}}
    assert received.bodies[-1]["messages"][1:] == [
        {
            "role": "user",
            "content": [
                {"type": "image_url", "image_url": {"url": "data:image/png;base64,iVBORw0="}},
                {"type": "image_url", "image_url": {"url": "https://example.com/a.png"}},
                {"type": "text", "text": "What is it?"},
            ],
        },
        {"role": "assistant", "content": None, "tool_calls": [call]},
        {"role": "tool", "tool_call_id": "call_1", "content": "a\nb"},
        {"role": "assistant", "content": "A cat."},
        {"role": "user", "content": "And now?"},
        {"role": "assistant", "content": None, "tool_calls": [call], "reasoning": "So."},
        {"role": "tool", "tool_call_id": "call_1", "content": "Error: no"},
    ]


def test_pdf_is_sent_as_a_file(database: Engine, monkeypatch: pytest.MonkeyPatch) -> None:
    with receiving(monkeypatch) as received:
        send("openai", {"role": "user", "content": [PDF, {"type": "text", "text": "Read it."}]})
    assert received.bodies[-1]["messages"][-1]["content"] == [
        {"type": "file", "file": {"filename": "a.pdf", "file_data": "data:application/pdf;base64,JVBERi0="}},
        {"type": "text", "text": "Read it."},
    ]


@pytest.mark.parametrize(
    ("provider", "message", "why"),
    [
        ("own", {"role": "user", "content": [PDF]}, "messages.0.content.0: the provider 'own' takes no PDFs"),
        (
            "openai",
            {"role": "user", "content": [{**PDF, "citations": {"enabled": True}}]},
            "no place for a block of type 'document' with citations or a context",
        ),
        ("own", {"role": "user", "content": [PIXEL]}, "messages.0.content.0: the provider 'own' takes no images"),
        (
            "openai",
            {"role": "user", "content": [{"type": "document", "source": {"type": "text", "data": "a"}}]},
            "messages.0.content.0: the Chat Completions API has no place for a block of type 'document'",
        ),
        (
            "openai",
            {"role": "user", "content": [{"type": "image", "source": {"type": "file", "file_id": "f"}}]},
            "a block of type 'image' whose source is of type 'file'",
        ),
        (
            "openai",
            {"role": "user", "content": [{"type": "tool_result", "tool_use_id": "c", "content": [PIXEL]}]},
            "messages.0.content.0.content.0: the Chat Completions API has no place for a block of type 'image' in the "
            "result of a tool",
        ),
        (
            "openai",
            {"role": "assistant", "content": [{"type": "server_tool_use", "id": "s", "name": "web_search"}]},
            "messages.0.content.0: the Chat Completions API has no place for a block of type 'server_tool_use'",
        ),
        (
            "vertex",
            {"role": "user", "content": [{"type": "document", "source": {"type": "file", "file_id": "f"}}]},
            "messages.0.content.0: the provider 'vertex' cannot read a document from the Files API",
        ),
    ],
)
def test_block_that_a_provider_cannot_take_is_refused(
    database: Engine, monkeypatch: pytest.MonkeyPatch, provider: str, message: dict[str, Any], why: str
) -> None:
    request = ModelRequest(MODELS[provider], "", [message], (), 100)
    with receiving(monkeypatch) as received, pytest.raises(ModelError) as refused:
        client_for(MODELS[provider]).complete(request, print)
    assert why in refused.value.message
    assert received.paths == []


def test_schema_that_a_server_refuses_is_sent_once(
    database: Engine, messages_api: MessagesApi, monkeypatch: pytest.MonkeyPatch
) -> None:
    refusal = testing.error(400, "invalid_request_error", "response_format: grammar is too large")
    messages_api.script = [refusal, testing.text('{"n": 1}')]
    request = ModelRequest(
        MODELS["openai"], "", [{"role": "user", "content": "Hi"}], (), 100, output_schema=SCHEMA, constrained=True
    )
    with use_providers(messages_api.url, monkeypatch):
        for _ in range(2):
            client_for(MODELS["openai"]).complete(request, lambda _: None)
    assert ["response_format" in body for body in messages_api.requests] == [True, False, False]
