"""The authorization server that a server names, for the person who writes its definition."""

from __future__ import annotations

import json
from typing import Any

import pytest

from shared.mcp.resource_metadata import authorization_servers
from shared.settings import Settings
from tests.support.authority import authority_server

SETTINGS = Settings(allow_private_addresses=["127.0.0.1"])
ISSUER = "https://login.example.com"


@pytest.mark.parametrize(
    "path",
    ["/.well-known/oauth-protected-resource/mcp", "/.well-known/oauth-protected-resource", "/elsewhere"],
)
def test_metadata_are_found_where_they_may_be(path: str) -> None:
    with authority_server() as server:
        url = f"{server.url}/mcp"
        found = {"resource": url, "authorization_servers": [ISSUER, "file:///x", 5]}
        server.answer = lambda asked: (200, found) if asked == path else (401, b"")
        server.headers = {"WWW-Authenticate": f'Bearer error="x", resource_metadata="{server.url}/elsewhere"'}
        assert authorization_servers(url, SETTINGS) == [ISSUER]
        # No credential is sent, whatever the server says.
        assert {basic for _, _, _, basic in server.asked} == {None}


@pytest.mark.parametrize(
    "found",
    [
        b"",
        b"<html>",
        [],
        {"authorization_servers": [ISSUER]},
        {"resource": "https://other.example/mcp", "authorization_servers": [ISSUER]},
        {"resource": "", "authorization_servers": ISSUER},
        b'{"resource": "' + b"x" * 100_000,
    ],
)
def test_metadata_about_something_else_are_ignored(found: Any) -> None:
    with authority_server() as server:
        if isinstance(found, dict) and found.get("resource") == "":
            found = {**found, "resource": f"{server.url}/mcp"}
        server.answer = lambda asked: (200, found)
        assert authorization_servers(f"{server.url}/mcp", SETTINGS) == []


@pytest.mark.parametrize(
    ("resource", "is_ours"),
    [("", True), ("/", True), ("/mcp/", True), ("/mcp/v1", False), ("/mc", False), ("1/", False)],
)
def test_metadata_may_be_about_the_whole_server(resource: str, is_ours: bool) -> None:
    with authority_server() as server:
        server.answer = lambda asked: (
            200,
            {"resource": server.url + resource, "authorization_servers": [ISSUER]},
        )
        assert authorization_servers(f"{server.url}/mcp", SETTINGS) == ([ISSUER] if is_ours else [])


def test_metadata_elsewhere_are_not_fetched() -> None:
    with authority_server() as server, authority_server() as internal:
        server.headers = {"WWW-Authenticate": f'Bearer resource_metadata="{internal.url}/x"'}
        server.answer = lambda asked: (401, b"")
        assert authorization_servers(f"{server.url}/mcp", SETTINGS) == []
        assert internal.asked == []


def test_metadata_at_a_private_address_are_not_fetched() -> None:
    with authority_server() as server:
        url = f"{server.url}/mcp"
        server.headers = {"WWW-Authenticate": 'Bearer resource_metadata="http://169.254.169.254/latest"'}
        server.answer = lambda asked: (401, json.dumps({}).encode())
        assert authorization_servers(url, SETTINGS) == []
