"""The API as a real server on a loopback port, and agents to submit to."""

from __future__ import annotations

import re
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path
from typing import Any, NamedTuple
from uuid import uuid4

import httpx2
import pytest
import uvicorn
from fastapi import FastAPI
from sqlalchemy import Engine
from typer.main import get_command

from minions import Client
from orchestrator import cli
from orchestrator.api.app import create_app, release
from orchestrator.api.server import listen, server_config
from orchestrator.mcp import site as mcp_site
from shared.settings import Settings, get_settings
from tests.support.browser import TLS

SEARCH_INPUT = {
    "type": "object",
    "required": ["query"],
    "additionalProperties": False,
    "properties": {"query": {"type": "string", "minLength": 2}, "limit": {"type": "integer", "minimum": 1}},
}


WithKey = Callable[..., httpx2.Client]


class Done(NamedTuple):
    """Result of a command."""

    code: int
    out: str
    err: str

    @property
    def ids(self) -> list[str]:
        return re.findall(r"^[0-9a-f-]{36}", self.out, re.MULTILINE)

    @property
    def line(self) -> str:
        """Output and errors as one line."""
        return " ".join(f"{self.out} {self.err}".split())


Run = Callable[..., Done]


@dataclass(frozen=True)
class Api:
    """A running server."""

    app: FastAPI
    url: str
    port: int
    key: str

    def http(self, **options: Any) -> httpx2.Client:
        """An HTTP client with the key."""
        options = {"trust_env": False, "timeout": 60, "verify": TLS, **options}
        return httpx2.Client(base_url=self.url, headers={"Authorization": f"Bearer {self.key}"}, **options)


@contextmanager
def serving(app: FastAPI, port: int = 0) -> Iterator[int]:
    """Serves an app from a thread, as the orchestrator does; the value is its port, by default a free one."""
    settings = app.state.settings.model_copy(update={"api_port": port})
    with listen(settings) as listener:
        server = uvicorn.Server(server_config(app, settings))
        thread = threading.Thread(target=server.run, kwargs={"sockets": [listener]}, daemon=True)
        thread.start()
        while not server.started:
            assert thread.is_alive()
            time.sleep(0.01)
        try:
            yield listener.getsockname()[1]
        finally:
            release(app)
            server.should_exit = True
            thread.join(20)
            assert not thread.is_alive(), "the server does not stop"


@pytest.fixture(scope="package")
def http_api(settings: Settings) -> Iterator[Api]:
    """The API on the session's servers."""
    app = create_app(settings)
    mcp_site.add_to(app)
    with serving(app) as port:
        yield Api(app, f"http://127.0.0.1:{port}", port, settings.require_api_key())


@pytest.fixture
def http(http_api: Api, database: Engine) -> Iterator[httpx2.Client]:
    """HTTP with the key, on empty tables."""
    with http_api.http() as client:
        yield client


@pytest.fixture
def client(http_api: Api, database: Engine) -> Iterator[Client]:
    """The Python client, on empty tables."""
    with Client(http_api.url, http_api.key, retries=1) as client:
        yield client


@pytest.fixture
def with_key(http_api: Api, client: Client) -> Iterator[WithKey]:
    """HTTP with a new key: `with_key("viewer", namespace="ours")`."""
    with ExitStack() as stack:

        def make(role: str, **bounds: Any) -> httpx2.Client:
            key = client.create_api_key(f"{role}-{uuid4()}", role, **bounds)["key"]
            return stack.enter_context(replace(http_api, key=key).http())

        yield make


@pytest.fixture
def run_cli(
    http_api: Api, database: Engine, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> Iterator[Run]:
    """Runs a command as a process would: `run_cli("tasks", …)`."""
    monkeypatch.setenv("MINION_API_URL", http_api.url)
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path))
    get_settings.cache_clear()

    # Building all commands takes longer than running one.
    monkeypatch.setattr(cli, "app", all_commands())

    # It would last: the tests after these would log to a stream that is closed.
    monkeypatch.setattr("shared.telemetry.configure", lambda *_, **__: None)

    def run(*words: str) -> Done:
        monkeypatch.setattr(sys, "argv", ["minion", *words])
        capsys.readouterr()
        with pytest.raises(SystemExit) as ended:
            cli.main()
        return Done(int(ended.value.code or 0), *capsys.readouterr())

    yield run
    monkeypatch.undo()
    get_settings.cache_clear()


@cache
def all_commands() -> Any:
    """Return the commands as a process builds them at its start."""
    return get_command(cli.app)


@pytest.fixture
def agents(define: Any) -> None:
    """`Echo` takes anything and offers `echo`; `Search` has a schema and offers `search` and `filter`."""
    define(
        {"kind": "tool", "name": "noop", "type": "builtin", "builtin": "noop", "effect": "pure"},
        {
            "kind": "agent",
            "name": "Echo",
            "type": "function",
            "tool": "noop",
            "description": "Says what it hears",
            "config": {"capabilities": ["echo"]},
        },
        {
            "kind": "agent",
            "name": "Search",
            "type": "function",
            "tool": "noop",
            "input_schema": SEARCH_INPUT,
            "config": {"capabilities": ["search", "filter"]},
        },
    )
