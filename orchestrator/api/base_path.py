"""The path below which a proxy serves this installation: `/minions` for https://example.com/minions/tasks.

Whether the proxy removes it from the requests that it passes on does not matter. Inside, paths do not have it; `link`
adds it to an address that a browser or a caller sees.
"""

from __future__ import annotations

from collections.abc import Iterable
from contextvars import ContextVar
from typing import Any

from starlette.types import ASGIApp, Receive, Scope, Send

from shared.errors import NotConfigured

_base: ContextVar[str] = ContextVar("base", default="")


def link(path: str) -> str:
    """Return the address of a path of ours, for the answer to the current request."""
    return _base.get() + path


def check_base_path(base: str, routes: Iterable[Any]) -> None:
    """Refuse a base path that begins like an address of ours: behind a proxy that removes it, one is like the other.

    Raises:
        NotConfigured: it does.
    """
    first = base.split("/")[1:2]
    if first and first[0] in {route.path.split("/")[1] for route in routes}:
        raise NotConfigured(
            f"Invalid MINION_BASE_PATH: the installation itself has addresses that begin with /{first[0]}. Choose "
            "another path, such as /minions."
        )


class BasePath:
    """Middleware that removes the base path from requests, and notes it for `link`.

    Args:
        base: the path, without a slash at its end; empty if there is none.
    """

    def __init__(self, app: ASGIApp, base: str) -> None:
        self.app = app
        self._base = base

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass the request on."""
        if scope["type"] == "http":
            _base.set(self._base)
            path = scope["path"]
            if self._base and (path == self._base or path.startswith(f"{self._base}/")):
                scope = {**scope, "path": path.removeprefix(self._base) or "/"}
        await self.app(scope, receive, send)
