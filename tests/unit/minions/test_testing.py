"""The local server that speaks the Messages API, started from the command line."""

from __future__ import annotations

import json
import socket
import urllib.request
from http.server import BaseHTTPRequestHandler
from pathlib import Path
from typing import Any
from urllib.error import HTTPError

import pytest

from minions import testing


def post(api: testing.MessagesApi, body: dict[str, Any]) -> tuple[int, dict[str, Any]]:
    """Return status and answer of a request for a message."""
    data = json.dumps({"model": "m", **body}).encode()
    request = urllib.request.Request(f"{api.url}/v1/messages", data, {"x-api-key": testing.KEY})
    try:
        with urllib.request.urlopen(request) as answer:
            return answer.status, json.load(answer)
    except HTTPError as refused:
        with refused:
            return refused.code, json.load(refused)


@pytest.mark.parametrize(
    ("script", "words"),
    [(None, "No such file"), ("[", "Expecting value"), ("{}", "a list of replies"), ('["x"]', "each an object")],
)
def test_invalid_script_is_refused_in_one_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], script: str | None, words: str
) -> None:
    file = tmp_path / "replies.json"
    if script is not None:
        file.write_text(script)
    monkeypatch.setattr("sys.argv", ["testing", str(file)])
    with pytest.raises(SystemExit) as ended:
        testing.main()
    assert ended.value.code == 2
    assert words in capsys.readouterr().err


def test_port_in_use_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "replies.json").write_text("[]")
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = str(taken.getsockname()[1])
        monkeypatch.setattr("sys.argv", ["testing", str(tmp_path / "replies.json"), "--port", port])
        with pytest.raises(SystemExit):
            testing.main()
    assert f"port {port} cannot be used" in capsys.readouterr().err


def test_unscripted_request_is_refused_permanently() -> None:
    """With a retryable error, the task would wait for hours for a script that is complete."""
    with testing.messages_api() as api:
        api.script = [{"if": "boats", **testing.text("Two.")}]
        status, answer = post(api, {"messages": [{"role": "user", "content": "ships"}]})
        assert status == 400
        assert "no reply to this request" in answer["error"]["message"]


def test_answers_on_a_kept_alive_connection_are_not_delayed(monkeypatch: pytest.MonkeyPatch) -> None:
    options: list[int] = []
    set_up = BaseHTTPRequestHandler.setup

    def recording_setup(handler: Any) -> None:
        set_up(handler)
        options.append(handler.connection.getsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY))

    monkeypatch.setattr(BaseHTTPRequestHandler, "setup", recording_setup)
    with testing.messages_api() as api:
        api.script = [testing.text("Hi.")]
        assert post(api, {"messages": HELLO})[0] == 200
    assert options
    assert all(options)


def test_request_without_messages_is_refused() -> None:
    with testing.messages_api() as api:
        status, answer = post(api, {"max_tokens": 10})
        assert (status, answer["error"]["message"]) == (400, "messages: Field required")


HELLO = [{"role": "user", "content": "Hello"}]
FAILED = {"type": "tool_result", "tool_use_id": "1", "is_error": True}
RULE = {"role": "system", "content": "Be brief."}
MARK = {"cache_control": {"type": "ephemeral"}}


@pytest.mark.parametrize(
    ("wrong", "said"),
    [
        ({"tools": [{}]}, "tools.0.custom.input_schema.type: Field required"),
        ({"tools": [{"$ref": "#/$defs/a"}]}, "tools.0.custom.input_schema.type: Field required"),
        (
            {"tools": [{"type": "object"}, {"type": "string"}]},
            "tools.1.custom.input_schema.type: Input should be 'object'",
        ),
        ({"tools": [{"type": ["object", "null"]}]}, "tools.0.custom.input_schema.type: Input should be 'object'"),
        ({"tools": [{"type": "object", "anyOf": []}]}, "does not support oneOf, allOf, or anyOf at the top level"),
        ({"tools": [{"type": "object", "properties": {"a b": {}}}]}, "Property keys should match pattern"),
        ({"messages": [*HELLO, {"role": "assistant", "content": ""}, *HELLO]}, "messages.1: "),
        ({"messages": [{"role": "user"}]}, "messages.0: "),
        ({"messages": [{"role": "user", "content": [{"type": "text", "text": ""}]}]}, "must be non-empty"),
        ({"messages": [{"role": "user", "content": [{"type": "text", "text": "\n"}]}]}, "non-whitespace text"),
        *(
            (
                {"messages": [*HELLO, {"role": "user", "content": [{**FAILED, "content": nothing}]}]},
                "messages.1.content.0.tool_result: content cannot be empty if `is_error` is true",
            )
            for nothing in ("", [], None)
        ),
        (
            {"messages": [{"role": "system", "content": "a"}, *HELLO]},
            "messages.0: use the top-level 'system' parameter",
        ),
        ({"messages": [*HELLO, {"role": "system", "content": "a"}, *HELLO]}, "messages.1: role 'system' must follow"),
        (
            {"model": "claude-sonnet-4-6", "messages": [*HELLO, {"role": "system", "content": "a"}]},
            "role 'system' is not supported on this model",
        ),
        (
            {"messages": [{"role": "user", "content": [{"type": "text", "text": "a", **MARK}] * 5}]},
            "A maximum of 4 blocks with cache_control may be provided. Found 5.",
        ),
        ({"system": [{"type": "text", "text": " "}]}, "system: text content blocks must contain non-whitespace text"),
    ],
)
def test_requests_that_the_api_refuses_are_refused(wrong: dict[str, Any], said: str) -> None:
    if "tools" in wrong:
        wrong = {"tools": [{"name": "act", "input_schema": schema} for schema in wrong["tools"]]}
    with testing.messages_api() as api:
        api.script = [testing.text("Hi.")]
        status, answer = post(api, {"messages": HELLO, **wrong})
        assert (status, answer["error"]["type"]) == (400, "invalid_request_error")
        assert said in answer["error"]["message"]
        assert len(api.requests) == len(api.headers) == 1
        tools = [
            {"name": "act", "input_schema": {"type": "object"}},
            {"type": "web_search_20260209", "name": "web_search"},
        ]
        called = [{"type": "tool_use", "id": "1", "name": "act", "input": {}}]
        messages = [*HELLO, RULE, {"role": "assistant", "content": called}]
        assert post(api, {"system": "Be brief.", "messages": messages, "tools": tools})[0] == 200
