"""OAuth client credentials: tokens that are fetched once, replaced once, and repeated nowhere."""

from __future__ import annotations

import base64
import threading
import time
from collections.abc import Iterator
from typing import Any

import pytest

from shared.contracts.documents import parse_definition
from shared.errors import InvalidDefinition
from shared.mcp.authorization import SECONDS, ClientCredentials, Tokens, metadata_addresses
from shared.mcp.client import McpClient
from shared.mcp.eras import Era
from shared.mcp.faults import McpFault
from shared.mcp.http import HttpTransport
from shared.settings import Settings
from tests.support.authority import Authority, authority_server
from tests.support.mcp_server import RawServer, raw_server, text_result

SECRET = "s3cret+value/%"
SETTINGS = Settings(allow_private_addresses=["127.0.0.1"])


@pytest.fixture
def authority() -> Iterator[Authority]:
    with authority_server() as made:
        yield made


def client(raw: RawServer, tokens: Tokens, *, seconds: float = 10.0, **oauth: Any) -> McpClient:
    fields = {"client_id": "minions:x", "client_secret": "${secret:S}", **oauth}
    server = parse_definition({"kind": "mcp_server", "name": "shop", "url": raw.url, "oauth": fields})
    credentials = ClientCredentials(server.oauth, raw.url, SECRET, SETTINGS, {"X-Own": "1"}, (), tokens)  # type: ignore[union-attr,arg-type]
    transport = HttpTransport(raw.url, SETTINGS, seconds=seconds, max_bytes=1 << 20, authorization=credentials)
    return McpClient(transport, Era())


def call(made: McpClient) -> Any:
    return made.request("tools/call", {"name": "x", "arguments": {}}, name="x")


def test_token_is_fetched_once_for_many_calls(authority: Authority) -> None:
    tokens = Tokens()
    with raw_server() as raw:
        made = client(raw, tokens, token_url=f"{authority.url}/token", scope="a b")
        call(made)
        call(client(raw, tokens, token_url=f"{authority.url}/token", scope="a b"))
        [(method, path, sent, basic)] = authority.asked
        assert {headers["Authorization"] for headers, _ in raw.asked} == {"Bearer token-1"}
        assert raw.asked[0][0]["X-Own"] == "1"
        resource = raw.url
    assert (method, path) == ("POST", "/token")
    assert sent == {"grant_type": ["client_credentials"], "resource": [resource], "scope": ["a b"]}
    assert base64.b64decode(str(basic).removeprefix("Basic ")) == b"minions%3Ax:s3cret%2Bvalue%2F%25"


def test_secret_in_the_body_is_another_method(authority: Authority) -> None:
    with raw_server() as raw:
        call(client(raw, Tokens(), token_url=authority.url, method="client_secret_post"))
    [(_, _, sent, basic)] = authority.asked
    assert (sent["client_id"], sent["client_secret"], basic) == (["minions:x"], [SECRET], None)


def test_refused_token_is_replaced_once(authority: Authority) -> None:
    with raw_server((401, {}, b""), text_result("ok")) as raw:
        assert call(client(raw, Tokens(), token_url=authority.url))["content"][0]["text"] == "ok"
        assert [headers["Authorization"] for headers, _ in raw.asked[-2:]] == ["Bearer token-1", "Bearer token-2"]
    with raw_server((401, {}, b""), (401, {}, b"no token-4"), text_result("ok")) as raw:
        with pytest.raises(McpFault) as caught:
            call(client(raw, Tokens(), token_url=authority.url))
        assert caught.value.message == "HTTP 401: no ***"


def test_expired_token_is_replaced(authority: Authority) -> None:
    authority.answer = lambda path: (200, authority.token(expires_in=0))
    tokens = Tokens()
    with raw_server() as raw:
        made = client(raw, tokens, token_url=authority.url)
        call(made)
        call(made)
    assert len(authority.asked) == 3


def test_threads_fetch_one_token(authority: Authority) -> None:
    tokens = Tokens()
    with raw_server() as raw:
        threads = [
            threading.Thread(target=call, args=(client(raw, tokens, token_url=authority.url),)) for _ in range(5)
        ]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    assert len(authority.asked) == 1


def test_hanging_authority_keeps_no_call_beyond_its_timeout(authority: Authority) -> None:
    released, faults = threading.Event(), []

    def hang(path: str) -> tuple[int, Any]:
        released.wait()
        return 404, b""

    def called() -> None:
        began = time.monotonic()
        with pytest.raises(McpFault) as caught:
            call(client(raw, tokens, seconds=0.5, issuer=authority.url))
        faults.append((caught.value.taken, caught.value.temporary, time.monotonic() - began < SECONDS))

    authority.answer, tokens = hang, Tokens()
    with raw_server() as raw:
        threads = [threading.Thread(target=called) for _ in range(4)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        released.set()
        assert raw.asked == []
    assert faults == [(False, True, True)] * 4


def test_issuer_is_found_by_its_metadata(authority: Authority) -> None:
    issuer = f"{authority.url}/tenant"

    def answer(path: str) -> tuple[int, Any]:
        if path == "/.well-known/openid-configuration/tenant":
            return 200, {"issuer": issuer, "token_endpoint": f"{authority.url}/t"}
        return (200, authority.token()) if path == "/t" else (404, b"")

    authority.answer = answer
    with raw_server() as raw:
        call(client(raw, Tokens(), issuer=issuer))
    assert [path for _, path, _, _ in authority.asked] == [
        "/.well-known/oauth-authorization-server/tenant",
        "/.well-known/openid-configuration/tenant",
        "/t",
    ]
    assert [*metadata_addresses("https://a.example")] == [
        "https://a.example/.well-known/oauth-authorization-server",
        "https://a.example/.well-known/openid-configuration",
    ]


@pytest.mark.parametrize(
    ("metadata", "message"),
    [
        ({"issuer": "https://honest.example"}, "those of another issuer"),
        ({"token_endpoint": "file:///etc/passwd"}, "without a valid token_endpoint"),
        ({"token_endpoint": None}, "without a valid token_endpoint"),
        ({"token_endpoint": "http://10.0.0.1/token"}, "is not a public address"),
        ([], "has no metadata"),
    ],
)
def test_metadata_that_lie_are_refused(authority: Authority, metadata: Any, message: str) -> None:
    found = metadata if isinstance(metadata, list) else {"issuer": authority.url, **metadata}
    authority.answer = lambda path: (200, found)
    with raw_server() as raw, pytest.raises(McpFault, match=message) as caught:
        call(client(raw, Tokens(), issuer=authority.url))
    assert caught.value.taken is False
    assert all(basic is None for _, _, _, basic in authority.asked)


@pytest.mark.parametrize(
    ("status", "answer", "message", "temporary"),
    [
        (
            401,
            {"error": "invalid_client", "error_description": f"not {SECRET}"},
            "HTTP 401: invalid_client: not \\*\\*\\*",
            False,
        ),
        (503, b"busy", "HTTP 503: no reason", True),
        (302, b"", "HTTP 302: no reason", False),
        (200, b"<html>", "no token that a header can carry", False),
        (200, {"access_token": "a\nb", "token_type": "bearer"}, "no token that a header can carry", False),
        (200, {"access_token": "ä", "token_type": "bearer"}, "no token that a header can carry", False),
        (200, {"access_token": "", "token_type": "bearer"}, "no token that a header can carry", False),
        (200, {"access_token": 5, "token_type": "bearer"}, "no token that a header can carry", False),
        (200, {"access_token": "a", "token_type": "mac"}, "of type 'mac'", False),
        (200, b"x" * 100_000, "no token that a header can carry", False),
    ],
)
def test_answers_without_a_token_are_faults(
    authority: Authority, status: int, answer: Any, message: str, temporary: bool
) -> None:
    authority.answer = lambda path: (status, answer)
    with raw_server() as raw:
        with pytest.raises(McpFault, match=message) as caught:
            call(client(raw, Tokens(), token_url=authority.url))
        assert raw.asked == []
    assert (caught.value.taken, caught.value.temporary) == (False, temporary)


@pytest.mark.parametrize("expires", [None, True, "soon", -5, 1e15])
def test_any_lifetime_is_bounded(authority: Authority, expires: Any) -> None:
    authority.answer = lambda path: (200, authority.token(expires_in=expires))
    with raw_server() as raw:
        assert call(client(raw, Tokens(), token_url=authority.url))


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({}, "`issuer` or `token_url`"),
        ({"issuer": "https://a.example", "token_url": "https://a.example"}, "`issuer` or `token_url`"),
        ({"token_url": "file:///x/y"}, "must begin with http"),
        ({"token_url": "https://${secret:S}.example"}, "must not contain secrets"),
        ({"token_url": "https://a.example", "client_secret": "plain"}, "client_secret"),
        ({"token_url": "https://a.example", "client_secret": "${secret:provider.openai}"}, "client_secret"),
        ({"token_url": "https://a.example", "scope": 'a"b'}, "scope"),
        ({"token_url": "https://a.example", "client_id": "ä"}, "client_id"),
    ],
)
def test_definitions_with_other_credentials_are_refused(fields: dict[str, Any], message: str) -> None:
    oauth = {"client_id": "x", "client_secret": "${secret:S}", **fields}
    with pytest.raises(InvalidDefinition, match=message):
        parse_definition({"kind": "mcp_server", "name": "shop", "url": "https://b.example/mcp", "oauth": oauth})
