"""A whole system for the suite: servers, loops, a worker, agents, and our MCP server at an address."""

from __future__ import annotations

import os
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import uvicorn
from starlette.types import ASGIApp, Receive, Scope, Send

from minions.testing import MessagesApi
from orchestrator.api.app import create_app, release
from orchestrator.api.server import listen, server_config
from orchestrator.mcp import site
from orchestrator.mcp.callers import Connect
from orchestrator.mcp.calls import Calls
from orchestrator.mcp.subscriptions import Subscriptions
from orchestrator.service import make_loops
from shared.database.connections import get_engine
from shared.settings import Settings, get_settings
from tests.mcp_conformance.agents import CAPABILITY, OFFERED, SCRIPT, definitions, store
from tests.mcp_conformance.fixture import ConformanceServer, add_completions
from tests.support.model_client import use_messages_api
from tests.support.private_servers import private_servers
from tests.support.processes import SHORT_LEASES, killed_on_exit, start_worker, wait_online

# Shorter than the product's, so that the suite's calls of one second become tasks, and report progress.
ANSWER_SECONDS, PROGRESS_SECONDS = 0.5, 0.2


@contextmanager
def running(folder: Path) -> Iterator[str]:
    """Run the system; the value is the address of the MCP server, which needs no key here: the suite sends none.

    Args:
        folder: for logs.
    """
    with private_servers() as (_, env):
        env.setenv("PYTHONPATH", os.pathsep.join([str(_offer(folder)), os.environ.get("PYTHONPATH", "")]).rstrip(":"))
        for name, value in SHORT_LEASES.items():
            env.setenv(name, value)
        get_settings.cache_clear()
        settings = get_settings()
        store(definitions())
        loops = make_loops(settings)
        for loop in loops:
            loop.start()
        with use_messages_api(MessagesApi(script=SCRIPT), env):
            worker = start_worker(folder, CAPABILITY, 4, fresh=True)
            with killed_on_exit(worker), _serving(settings) as port:
                wait_online(get_engine(), worker)
                yield f"http://127.0.0.1:{port}/mcp"
        for loop in loops:
            loop.stopping.set()
        for loop in loops:
            loop.stop()


def _offer(folder: Path) -> Path:
    """Return a folder for PYTHONPATH with a package that offers the tools."""
    about = folder / "offered" / "mcp_conformance_tools-1.0.dist-info"
    about.mkdir(parents=True)
    (about / "METADATA").write_text("Metadata-Version: 2.1\nName: mcp-conformance-tools\nVersion: 1.0\n")
    lines = [f"{name} = tests.mcp_conformance.tools:{name}\n" for name in OFFERED]
    (about / "entry_points.txt").write_text("".join(["[minions.tools]\n", *lines]))
    sys.path.insert(0, str(about.parent))
    return about.parent


def _make(connect: Connect, is_closing: site.IsClosing) -> ConformanceServer:
    calls = Calls(is_closing, ANSWER_SECONDS, PROGRESS_SECONDS)
    server = ConformanceServer(connect, calls, Subscriptions(is_closing, PROGRESS_SECONDS))
    add_completions(server)
    return server


@contextmanager
def _serving(settings: Settings) -> Iterator[int]:
    app = create_app(settings)
    site.add_to(app, _make)
    app.add_middleware(WithKey, key=settings.require_api_key())
    with listen(settings.model_copy(update={"api_port": 0})) as listener:
        server = uvicorn.Server(server_config(app, settings))
        thread = threading.Thread(target=server.run, kwargs={"sockets": [listener]}, daemon=True)
        thread.start()
        yield listener.getsockname()[1]
        release(app)
        server.should_exit = True
        thread.join(20)


class WithKey:
    """Middleware that adds the key to requests, because the suite cannot send one."""

    def __init__(self, app: ASGIApp, key: str) -> None:
        self.app = app
        self._header = (b"authorization", f"Bearer {key}".encode())

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass the request on."""
        if scope["type"] == "http" and all(name != b"authorization" for name, _ in scope["headers"]):
            scope = {**scope, "headers": [*scope["headers"], self._header]}
        await self.app(scope, receive, send)
