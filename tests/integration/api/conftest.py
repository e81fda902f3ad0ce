"""The API as a real server on a loopback port, and agents to submit to."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import httpx2
import pytest
import uvicorn
from fastapi import FastAPI
from sqlalchemy import Engine

from minions import Client
from orchestrator.api.app import create_app, release
from orchestrator.api.server import listen, server_config
from shared.settings import Settings

SEARCH_INPUT = {
    "type": "object",
    "required": ["query"],
    "additionalProperties": False,
    "properties": {"query": {"type": "string", "minLength": 2}, "limit": {"type": "integer", "minimum": 1}},
}


@dataclass(frozen=True)
class Api:
    """A running server."""

    app: FastAPI
    url: str
    port: int
    key: str

    def http(self, **options: Any) -> httpx2.Client:
        """An HTTP client with the key."""
        return httpx2.Client(
            base_url=self.url, headers={"Authorization": f"Bearer {self.key}"}, trust_env=False, timeout=60, **options
        )


@contextmanager
def serving(app: FastAPI) -> Iterator[int]:
    """Serves an app from a thread, as the orchestrator does; the value is its port."""
    settings = app.state.settings.model_copy(update={"api_port": 0})
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
