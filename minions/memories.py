# Generated from minions/aio/memories.py by `make client`: change that file.
"""The memory of models, as methods of the client."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any
from uuid import UUID

from minions.transport import Transport
from minions.wire import PAGE, segment


class Memories:
    """The methods of `minions.Client` that are about stores of the memory tool."""

    _transport: Transport

    def memory_stores(
        self, *, namespace: str | None = None, tool: str | None = None, owner: str | None = None
    ) -> Iterator[dict[str, Any]]:
        """Yield the stores of memory, the oldest first.

        Args:
            tool: the memory tool.
            owner: the conversation, the tenant key, or the name of the agent.
        """
        filters = {"namespace": namespace, "tool": tool, "owner": owner}
        return self._transport.pages("/v1/memory", {**filters, "limit": PAGE})

    def memory_store(self, store: UUID | str) -> dict[str, Any]:
        """Return a store with its files and its last changes, the newest first.

        Raises:
            NotFound: there is no such store.
        """
        found: dict[str, Any] = self._transport.get(_path(store))
        return found

    def memory_file(self, store: UUID | str, path: str, *, change: int | None = None) -> str | None:
        """Return the text of a file as it is, or as a change left it; None if that change deleted or moved it.

        Raises:
            NotFound: there is no such store or file.
        """
        found = self._transport.get(f"{_path(store)}/file", params={"path": path, "change": change})
        content: str | None = found["content"]
        return content

    def delete_memory(self, store: UUID | str) -> None:
        """Delete a store with all versions of its files.

        Raises:
            NotFound: there is no such store.
        """
        self._transport.delete(_path(store))

    def delete_memory_file(self, store: UUID | str, path: str) -> list[str]:
        """Delete a file, or a directory with its files; return their paths. Earlier versions stay readable.

        Raises:
            NotFound: there is no such store.
            InvalidInput: there is no such path.
        """
        deleted: list[str] = self._transport.delete(f"{_path(store)}/file", params={"path": path})["deleted"]
        return deleted


def _path(store: UUID | str) -> str:
    return f"/v1/memory/{segment(store)}"
