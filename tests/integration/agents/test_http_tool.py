"""HTTP tools: the request, the response, and secrets that are never written."""

from __future__ import annotations

import json
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from urllib.parse import parse_qsl, urlsplit

import pytest
from cryptography.fernet import Fernet
from sqlalchemy import Engine

from minions import testing
from minions.testing import KEY, MessagesApi
from shared.contracts.media import PDF
from shared.database.connections import transaction
from shared.secret_store import SecretStore, list_secrets
from shared.settings import Settings, get_settings
from shared.trace_context import step_span
from tests.conftest import Define
from tests.integration.conftest import InlineWorker, Tasks, everything_written
from tests.support.media_files import b64, pdf, png
from tests.support.model_client import use_messages_api

SECRET = "t0p-s3cret-value"
MODEL = "claude-sonnet-5-5"
PHOTO, PAPER = png(padding=70_000), pdf("x") + b"%" * 70_000


class Server:
    """A server that answers from a script and keeps what it was asked."""

    def __init__(self) -> None:
        self.answers: list[tuple[int, dict[str, str], bytes]] = []
        self.asked: list[tuple[str, str, dict[str, str], bytes]] = []
        outer = self

        class Handler(BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                length = int(self.headers.get("Content-Length") or 0)
                outer.asked.append((self.command, self.path, dict(self.headers), self.rfile.read(length)))
                status, headers, body = outer.answers.pop(0) if outer.answers else (200, {}, b'{"ok": true}')
                self.send_response(status)
                for name, value in {"Content-Length": str(len(body)), **headers}.items():
                    self.send_header(name, value)
                self.end_headers()
                self.wfile.write(body)

            do_POST = do_PUT = do_PATCH = do_DELETE = do_GET

            def log_message(self, *_: Any) -> None:
                pass

        self.http = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self.http.server_address[1]}"
        threading.Thread(target=self.http.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True).start()


@pytest.fixture
def server() -> Iterator[Server]:
    running = Server()
    yield running
    running.http.shutdown()
    running.http.server_close()


@pytest.fixture
def configured(settings: Settings, monkeypatch: pytest.MonkeyPatch) -> Iterator[Settings]:
    """This machine's own addresses are allowed, and there is a key for secrets."""
    monkeypatch.setenv("MINION_ALLOW_PRIVATE_ADDRESSES", "127.0.0.1")
    monkeypatch.setenv("MINION_SECRET_KEY", Fernet.generate_key().decode())
    get_settings.cache_clear()
    yield get_settings()
    monkeypatch.undo()
    get_settings.cache_clear()


@pytest.fixture
def fetch(define: Define, tasks: Tasks, inline_worker: InlineWorker, configured: Settings) -> Any:
    """Runs an agent with this request: `fetch(arguments, url=…, …)` is the ended task."""

    def run(
        arguments: Any,
        *,
        effect: str | None = None,
        config: dict[str, Any] | None = None,
        tool: dict[str, Any] | None = None,
        traceparent: str | None = None,
        **http: Any,
    ) -> Any:
        tool = {"kind": "tool", "name": "fetch", "type": "http", "http": http, **(tool or {})}
        define(
            {**tool, **({"effect": effect} if effect else {})},
            {
                "kind": "agent",
                "name": "Fetch",
                "type": "function",
                "tool": "fetch",
                "config": {"capabilities": ["work"], "max_attempts": 2, "retry_backoff": 0.0, **(config or {})},
            },
        )
        task = tasks.submit("Fetch", arguments, traceparent=traceparent)
        inline_worker._round()
        inline_worker._round()
        return tasks.get(task)

    return run


def test_arguments_are_placed_as_defined(fetch: Any, server: Server) -> None:
    task = fetch({"city": "São Paulo/..", "units": "C", "n": 3}, url=server.url + "/v2/{city}/weather", query=["units"])
    assert task["output"] == {"ok": True}
    [(method, path, headers, body)] = server.asked
    assert (method, path, body) == ("GET", "/v2/S%C3%A3o%20Paulo%2F../weather?units=C&n=3", b"")
    assert len(headers["Idempotency-Key"]) == 64


@pytest.mark.parametrize(
    ("path", "arguments"),
    [
        ("/v2/{a}/weather", {"a": ".."}),
        ("/v2/{a}/weather", {"a": "."}),
        ("/v2/{a}/weather", {"a": ""}),
        ("/v2/weather/{a}", {"a": ".."}),
        ("/v2/.{a}?q={b}", {"a": ".", "b": 1}),
        ("/v2/{a}{b}/weather", {"a": ".", "b": "."}),
        ("/v2/{a}{b}/weather", {"a": "", "b": ""}),
    ],
)
def test_no_argument_moves_the_path(fetch: Any, server: Server, path: str, arguments: Any) -> None:
    task = fetch(arguments, url=server.url + path, method="POST", headers={"X-Api-Key": "known"})
    assert (task["state"], task["claim"], task["error"]["type"]) == ("failed", 1, "invalid_input")
    assert "must not be empty, `.` or `..`" in task["error"]["message"]
    assert server.asked == []


@pytest.mark.parametrize(
    ("path", "arguments", "asked"),
    [
        ("/v2/{a}", {"a": "..."}, "/v2/..."),
        ("/v2/{a}", {"a": "%2e%2e"}, "/v2/%252e%252e"),
        ("/v2/{a}/x", {"a": "../b"}, "/v2/..%2Fb/x"),
        ("/v2/x{a}.json", {"a": ""}, "/v2/x.json"),
        ("/v2/{a}/{a}", {"a": "{b}"}, "/v2/%7Bb%7D/%7Bb%7D"),
        ("/v2/x?a={a}&b={b}", {"a": "", "b": ".."}, "/v2/x?a=&b=.."),
        ("/v2//x/{a}", {"a": 1}, "/v2//x/1"),
    ],
)
def test_an_argument_fills_one_segment(fetch: Any, server: Server, path: str, arguments: Any, asked: str) -> None:
    assert fetch(arguments, url=server.url + path)["output"] == {"ok": True}
    assert [path for _, path, _, _ in server.asked] == [asked]


@pytest.mark.parametrize(
    ("path", "arguments", "http"),
    [
        ("/x?account=ours", {"account": "theirs"}, {}),
        ("/x?account=ours&q={q}", {"q": "1", "account": "theirs"}, {}),
        ("/x?account", {"account": "theirs"}, {}),
        ("/x?%61ccount=ours", {"account": "theirs"}, {}),
        ("/x?account=ours", {"account": "theirs"}, {"method": "POST", "query": ["account"]}),
        ("/x?account={q}", {"q": "1", "account": "theirs"}, {}),
        ("/x?account=ours", {"Account": "theirs"}, {}),
    ],
)
def test_no_argument_changes_a_parameter_of_the_address(
    fetch: Any, server: Server, path: str, arguments: Any, http: Any
) -> None:
    task = fetch(arguments, url=server.url + path, **http)
    assert (task["state"], task["claim"], task["error"]["type"]) == ("failed", 1, "invalid_input")
    assert "already has a parameter 'account', which no argument can change" in task["error"]["message"]
    assert server.asked == []


def test_an_argument_cannot_add_a_parameter_by_its_value(fetch: Any, server: Server) -> None:
    http = {"url": server.url + "/x?account=ours&q={q}", "query": ["more"]}
    assert fetch({"q": "1&account=theirs", "more": "2&account=theirs#"}, **http)["output"] == {"ok": True}
    [(_, path, _, _)] = server.asked
    assert parse_qsl(urlsplit(path).query) == [
        ("account", "ours"),
        ("q", "1&account=theirs"),
        ("more", "2&account=theirs#"),
    ]


def test_body_argument_does_not_replace_parameter_of_same_name(fetch: Any, server: Server) -> None:
    assert fetch({"account": 5}, url=server.url + "/x?account=ours", method="POST")["output"] == {"ok": True}
    [(_, path, _, body)] = server.asked
    assert (path, json.loads(body)) == ("/x?account=ours", {"account": 5})


CITY = {"type": "object", "properties": {"city": {"type": "string"}}}
REFERRING = {"$ref": "#/$defs/city", "$defs": {"city": CITY}}


@pytest.mark.parametrize("schema", [CITY, REFERRING, {"allOf": [CITY]}, {**CITY, "patternProperties": {"^x-": True}}])
def test_unknown_arguments_are_refused(fetch: Any, server: Server, schema: Any) -> None:
    http = {"tool": {"input_schema": schema}, "url": server.url + "/{id}", "query": ["units"]}
    named = {"city": "Rome", "id": 7, "units": "C"}
    assert fetch(named, **http)["output"] == {"ok": True}
    task = fetch({**named, "admin": True}, **http)
    assert (task["state"], task["claim"], task["error"]["type"]) == ("failed", 1, "invalid_input")
    assert "admin" in task["error"]["message"]
    assert len(server.asked) == 1


@pytest.mark.parametrize(
    "schema",
    [
        {"type": "object"},
        {**CITY, "additionalProperties": True},
        {**CITY, "unevaluatedProperties": True},
        {**CITY, "patternProperties": {"^adm": True}},
    ],
)
def test_a_schema_may_take_more_arguments_than_it_names(fetch: Any, server: Server, schema: Any) -> None:
    task = fetch({"city": "Rome", "admin": True}, tool={"input_schema": schema}, url=server.url + "/x")
    assert task["output"] == {"ok": True}


@pytest.mark.parametrize("path", ["/{long}", "/x?long={long}", "/x"])
def test_too_long_address_is_an_argument_error(fetch: Any, server: Server, path: str) -> None:
    http = {"url": server.url + path, "method": "POST", "query": ["long"]}
    task = fetch({"long": "a" * 70_000}, effect="unsafe", **http)
    assert (task["state"], task["claim"], task["error"]["type"]) == ("failed", 1, "invalid_input")
    assert "The address cannot be built from these arguments: URL" in task["error"]["message"]
    assert server.asked == []


@pytest.mark.parametrize(("data", "media_type", "kind"), [(PHOTO, "image/png", "image"), (PAPER, PDF, "document")])
def test_response_that_is_a_file_is_shown_to_the_model(
    define: Define,
    tasks: Tasks,
    inline_worker: InlineWorker,
    configured: Settings,
    messages_api: MessagesApi,
    server: Server,
    data: bytes,
    media_type: str,
    kind: str,
) -> None:
    server.answers = [(200, {"Content-Type": f"{media_type}; x=y"}, data), (200, {"Content-Type": "image/gif"}, data)]
    messages_api.script = [testing.tool_use(("fetch", {})), testing.tool_use(("fetch", {})), testing.text("Seen.")]
    http = {"url": server.url, "max_bytes": 1_000_000}
    define(
        {"kind": "tool", "name": "fetch", "type": "http", "http": http},
        {"kind": "agent", "name": "Viewer", "model": MODEL, "tools": ["fetch"], "config": {"capabilities": ["work"]}},
    )
    task = tasks.submit("Viewer", {})
    inline_worker.run_all()
    assert tasks.get(task)["state"] == "succeeded", tasks.get(task)["error"]
    shown, refused = (request["messages"][-1]["content"][0] for request in messages_api.requests[1:])
    source = {"type": "base64", "media_type": media_type, "data": b64(data)}
    assert shown["content"] == [{"type": kind, "source": source}]
    assert (refused["is_error"], "its media type is image/gif" in refused["content"]) == (True, True)
    assert b64(data) not in str(tasks.steps(task))


def test_a_body_and_a_part_of_the_response(fetch: Any, server: Server) -> None:
    server.answers = [(201, {}, b'{"data": {"items": [{"id": 7}]}}')]
    http = {"method": "POST", "url": server.url + "/orders", "query": ["dry"], "result": "data.items.0.id"}
    assert fetch({"sum": 5, "dry": "yes"}, **http)["output"] == 7
    [(method, path, headers, body)] = server.asked
    assert (method, path, json.loads(body)) == ("POST", "/orders?dry=yes", {"sum": 5})
    assert headers["Content-Type"] == "application/json"


@pytest.mark.parametrize(
    ("answer", "calls", "said"),
    [
        ((404, {}, b"no such city"), 1, "HTTP 404: no such city"),
        ((500, {}, b"sorry"), 2, "HTTP 500: sorry"),
        ((429, {"Retry-After": "0"}, b"slow down"), 2, "HTTP 429: slow down"),
        ((200, {}, b"x" * 2000), 1, "/x): the response has more than 1000 bytes"),
        ((200, {"Content-Encoding": "gzip"}, b"plain"), 2, "no answer: DecodingError"),
        ((302, {"Location": "/again"}, b""), 6, "more than 5 redirects"),
    ],
)
def test_answers_that_are_none(fetch: Any, server: Server, answer: Any, calls: int, said: str) -> None:
    server.answers = [answer] * 6
    task = fetch({}, url=server.url + "/x", max_bytes=1000)
    assert task["state"] == "failed"
    assert said in task["error"]["message"]
    assert task["error"]["message"].count("The tool") == 1
    assert len(server.asked) == calls


def test_addresses_that_are_not_public_are_refused(
    fetch: Any, server: Server, monkeypatch: pytest.MonkeyPatch, configured: Settings
) -> None:
    server.answers = [(302, {"Location": "http://169.254.169.254/latest/meta-data"}, b"")]
    task = fetch({}, url=server.url + "/x")
    assert "169.254.169.254 is not a public address" in task["error"]["message"]
    task = fetch({}, url=server.url.replace("127.0.0.1", "127.0.0.2") + "/x")
    assert "is not a public address" in task["error"]["message"]


def test_unsafe_request_without_answer_waits_for_decision(fetch: Any, server: Server) -> None:
    server.answers = [(200, {"Content-Length": "100"}, b"cut off")]
    task = fetch({}, url=server.url + "/charge", method="POST")
    assert (task["state"], task["wait_reason"]) == ("waiting", "answer")
    assert len(server.asked) == 1


def test_unsent_unsafe_request_needs_no_decision(fetch: Any, server: Server) -> None:
    task = fetch({}, url=server.url + "/charge", method="POST", headers={"Transfer-Encoding": "gzip"})
    assert (task["state"], server.asked) == ("failed", [])
    assert "no answer: LocalProtocolError" in task["error"]["message"]


def test_headers_stay_with_their_host(fetch: Any, server: Server, configured: Settings) -> None:
    other = Server()
    with transaction() as connection:
        SecretStore(configured).set(connection, "api", SECRET)
    server.answers = [(302, {"Location": other.url + "/elsewhere"}, b"")]
    assert fetch({}, url=server.url + "/x", headers={"X-Api-Key": "${secret:api}"})["output"] == {"ok": True}
    assert server.asked[0][2]["X-Api-Key"] == SECRET
    assert SECRET not in str(other.asked)
    other.http.shutdown()
    other.http.server_close()


def test_cached_result_is_not_used_after_a_secret_was_set(fetch: Any, server: Server, configured: Settings) -> None:
    def ask() -> int:
        headers = {"X-Api-Key": "${secret:api}"}
        assert fetch({}, url=server.url + "/x", headers=headers, effect="pure", tool={"cache": "1h"})["output"]
        return len(server.asked)

    with transaction() as connection:
        SecretStore(configured).set(connection, "api", SECRET)
    assert [ask(), ask()] == [1, 1]
    with transaction() as connection:
        SecretStore(configured).set(connection, "api", f"{SECRET}-2")
    assert [ask(), ask()] == [2, 2]


@pytest.mark.parametrize("status", [200, 400])
def test_a_secret_is_written_nowhere(
    fetch: Any, server: Server, configured: Settings, database: Engine, capsys: Any, status: int
) -> None:
    with transaction() as connection:
        SecretStore(configured).set(connection, "api", SECRET)
        assert [secret["name"] for secret in list_secrets(connection)] == ["api"]
    server.answers = [(status, {}, json.dumps({"you said": f"Bearer {SECRET}"}).encode())]
    task = fetch({}, url=server.url + "/x", headers={"Authorization": "Bearer ${secret:api}"})
    assert server.asked[0][2]["Authorization"] == f"Bearer {SECRET}"
    assert "***" in str(task["output"] or task["error"])
    written = everything_written(database, capsys)
    assert "Fetch" in written
    assert SECRET not in written


# As PHP, .NET and Go write JSON.
@pytest.mark.parametrize("echo", [r"t0p\/s3cr\"t+", r"t0p/s3cr\u0022t\u002B", r"t\u0030p\/s3cr\"t\u002b"])
@pytest.mark.parametrize("status", [200, 400])
def test_escaped_secret_in_response_is_masked(
    fetch: Any, server: Server, configured: Settings, echo: str, status: int
) -> None:
    with transaction() as connection:
        SecretStore(configured).set(connection, "api", 't0p/s3cr"t+')
    server.answers = [(status, {}, b'{"you said": "' + echo.encode() + rb'", "path": "a\\b"}')]
    task = fetch({}, url=server.url + "/x", headers={"X-Api-Key": "${secret:api}"})
    if status == 200:
        assert task["output"] == {"you said": "***", "path": "a\\b"}
    else:
        assert '"you said": "***"' in task["error"]["message"]


@pytest.mark.parametrize("secret", [f"{SECRET}\nline two", f"{SECRET}-ключ", f"{SECRET}\r", f"{SECRET} "])
def test_a_secret_that_no_header_can_hold_is_not_quoted(
    fetch: Any, server: Server, configured: Settings, database: Engine, capsys: Any, secret: str
) -> None:
    with transaction() as connection:
        SecretStore(configured).set(connection, "api", secret)
    task = fetch({}, url=server.url + "/x", headers={"X-Api-Key": "Bearer ${secret:api}"})
    assert (task["state"], task["claim"]) == ("failed", 1)
    assert "The header X-Api-Key cannot carry its secret" in task["error"]["message"]
    assert server.asked == []
    assert SECRET not in everything_written(database, capsys)


def test_model_agent_writes_no_secret_and_no_api_key(
    define: Define,
    tasks: Tasks,
    inline_worker: InlineWorker,
    server: Server,
    configured: Settings,
    database: Engine,
    capsys: Any,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Not in prompts either. Server and gateway are careless: they repeat what they were sent."""
    with transaction() as connection:
        SecretStore(configured).set(connection, "api", SECRET)
    http = {"url": server.url + "/x", "headers": {"Authorization": "Bearer ${secret:api}"}}
    server.answers = [(200, {}, json.dumps({"you said": f"Bearer {SECRET}"}).encode()), (400, {}, SECRET.encode())]
    define(
        {"kind": "tool", "name": "fetch", "type": "http", "http": http},
        {"kind": "agent", "name": "Reader", "model": MODEL, "tools": ["fetch"], "config": {"capabilities": ["work"]}},
    )
    limited = {"anthropic-ratelimit-requests-limit": "50", "anthropic-ratelimit-requests-remaining": "49"}
    with use_messages_api(MessagesApi(), monkeypatch) as messages_api:
        messages_api.script = [
            testing.tool_use(("fetch", {}), headers=limited),
            testing.tool_use(("fetch", {})),
            testing.error(400, "invalid_request_error", f"the key {KEY} may not do this"),
        ]
        task = tasks.submit("Reader", "Go on")
        inline_worker.run_all()
    assert len(messages_api.requests) == 3
    assert len(server.asked) == 2
    assert "the key *** may not do this" in tasks.get(task)["error"]["message"]
    written = everything_written(database, capsys)
    assert MODEL in written
    assert SECRET not in written + json.dumps(messages_api.requests)
    assert KEY not in written + json.dumps(messages_api.requests)


# ------------------------------------------------------------------------------------------------------------- traces

CALLER = f"00-{'a' * 32}-{'b' * 16}"


@pytest.fixture
def traces_are_on(configured: Settings, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OTEL_EXPORTER_OTLP_ENDPOINT", "http://127.0.0.1:4318")
    get_settings.cache_clear()


def sent_traceparent(server: Server) -> str | None:
    [(_, _, headers, _)] = server.asked
    return {name.lower(): value for name, value in headers.items()}.get("traceparent")


@pytest.mark.usefixtures("traces_are_on")
def test_server_receives_the_span_of_the_calling_step(fetch: Any, server: Server) -> None:
    task = fetch({}, url=server.url)
    assert sent_traceparent(server) == f"00-{task['id'].hex}-{step_span(task['id'], 1).hex()}-01"


@pytest.mark.usefixtures("traces_are_on")
@pytest.mark.parametrize("flags", ["00", "01"])
def test_server_continues_the_trace_of_the_caller(fetch: Any, server: Server, flags: str) -> None:
    """A trace that its caller does not record has no span of ours."""
    task = fetch({}, url=server.url, traceparent=f"{CALLER}-{flags}")
    span = step_span(task["id"], 1).hex() if flags == "01" else "b" * 16
    assert sent_traceparent(server) == f"00-{'a' * 32}-{span}-{flags}"


@pytest.mark.parametrize("traceparent", [None, f"{CALLER}-01"])
def test_server_receives_the_span_of_the_caller_while_traces_are_off(
    fetch: Any, server: Server, traceparent: str | None
) -> None:
    fetch({}, url=server.url, traceparent=traceparent)
    assert sent_traceparent(server) == traceparent


@pytest.mark.usefixtures("traces_are_on")
def test_header_of_the_definition_takes_precedence(fetch: Any, server: Server) -> None:
    fetch({}, url=server.url, headers={"TraceParent": "mine"})
    assert sent_traceparent(server) == "mine"
