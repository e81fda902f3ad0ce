"""procrastinate's application."""

from __future__ import annotations

import os
from typing import Any

from procrastinate import App, PsycopgConnector, SyncPsycopgConnector


def make_app(address: str, *, sync: bool = False) -> tuple[App, Any]:
    """Return the application and its task; `sync` for a process that only submits."""
    connector = SyncPsycopgConnector(conninfo=address) if sync else PsycopgConnector(conninfo=address)
    app = App(connector=connector)

    @app.task(name="noop")
    async def noop(value: Any) -> Any:
        return value

    return app, noop


app, noop = make_app(os.environ.get("BENCH_DATABASE", ""))
