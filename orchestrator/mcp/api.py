"""The HTTP API as the MCP server calls it: each act of a client is a request to an endpoint, with the client's key.

So rights, masking, limits and the audit log are those of the API, by construction, and the server over standard input
and output is the same one with the API at an address.
"""

from __future__ import annotations

from typing import Any
from uuid import uuid4

from minions import AsyncClient
from minions.aio.submissions import task_path
from minions.aio.task import AsyncTask
from minions.aio.transport import AsyncTransport
from minions.wire import to_json
from shared.contracts.visible_text import visible

SECONDS = 30.0


class Api(AsyncClient):
    """The API, for one caller.

    Attributes:
        namespace: that of the caller's agents; None: the key's, or `default`.
    """

    def __init__(self, transport: AsyncTransport, namespace: str | None = None) -> None:
        self._transport = transport
        self.namespace = namespace

    async def page(self, path: str, *, cursor: str | None = None, limit: int = 50, **params: Any) -> dict[str, Any]:
        """Return one page of a list: `items` and `next`."""
        found: dict[str, Any] = await self._transport.get(path, params={**params, "cursor": cursor, "limit": limit})
        return found

    async def call(
        self, agent: str, value: Any, *, idempotency_key: str | None, traceparent: str | None, wait: float
    ) -> AsyncTask:
        """Submit a task, and return it once it has ended, or after `wait` seconds.

        Args:
            idempotency_key: None: the call is a new one.

        Raises:
            MinionsError: the API refused it.
        """
        request = {
            "agent": agent,
            "input": value,
            # Also without the caller's: a request that was sent and not answered is repeated under it.
            "idempotency_key": str(uuid4()) if idempotency_key is None else idempotency_key,
            **({"traceparent": traceparent} if traceparent else {}),
            **({"namespace": self.namespace} if self.namespace else {}),
        }
        sent = to_json(request, what="The call")
        params = {"wait": wait or None}
        answer = await self._transport.post("/v1/tasks", sent, safe=True, params=params, extra_time=wait)
        return AsyncTask.of(answer, self)

    async def sentence(self, task: str) -> str:
        """Return why a task is in its state. Models choose parts of it, such as arguments: it hides no characters."""
        return visible(str((await self.why(task))["sentence"]))

    async def look(self, task: str, *, wait: float = 0.0) -> AsyncTask:
        """Return a task once it has ended, or after `wait` seconds.

        Raises:
            NotFound: there is none with that id, or the key does not reach it.
        """
        params = {"wait": wait or None}
        answer = await self._transport.get(task_path(task), params=params, extra_time=wait)
        return AsyncTask.of(answer, self)
