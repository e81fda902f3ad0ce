"""The memory of models, as methods of the client."""

from __future__ import annotations

from collections.abc import AsyncIterator
from typing import Any
from uuid import UUID

from minions.aio.transport import AsyncTransport
from minions.wire import PAGE, segment


class AsyncMemories:
    """The methods of `minions.AsyncClient` that are about stores of the memory tool."""

    _transport: AsyncTransport

    def memory_stores(
        self, *, namespace: str | None = None, tool: str | None = None, owner: str | None = None
    ) -> AsyncIterator[dict[str, Any]]:
        """Yield the stores of memory, the oldest first.

        Args:
            tool: the memory tool.
            owner: the conversation, the tenant key, or the name of the agent.
        """
        filters = {"namespace": namespace, "tool": tool, "owner": owner}
        return self._transport.pages("/v1/memory", {**filters, "limit": PAGE})

    async def memory_store(self, store: UUID | str) -> dict[str, Any]:
        """Return a store with its files and its last changes, the newest first.

        Raises:
            NotFound: there is no such store.
        """
        found: dict[str, Any] = await self._transport.get(_path(store))
        return found

    async def memory_file(self, store: UUID | str, path: str, *, change: int | None = None) -> str | None:
        """Return the text of a file as it is, or as a change left it; None if that change deleted or moved it.

        Raises:
            NotFound: there is no such store or file.
        """
        found = await self._transport.get(f"{_path(store)}/file", params={"path": path, "change": change})
        content: str | None = found["content"]
        return content

    async def delete_memory(self, store: UUID | str) -> None:
        """Delete a store with all versions of its files.

        Raises:
            NotFound: there is no such store.
        """
        await self._transport.delete(_path(store))

    async def delete_memory_file(self, store: UUID | str, path: str) -> list[str]:
        """Delete a file, or a directory with its files; return their paths. Earlier versions stay readable.

        Raises:
            NotFound: there is no such store.
            InvalidInput: there is no such path.
        """
        deleted: list[str] = (await self._transport.delete(f"{_path(store)}/file", params={"path": path}))["deleted"]
        return deleted


def _path(store: UUID | str) -> str:
    return f"/v1/memory/{segment(store)}"
