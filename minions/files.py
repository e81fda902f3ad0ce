# Generated from minions/aio/files.py by `make client`: change that file.
"""Files, as methods of the client: images, PDF and texts that tasks refer to."""

from __future__ import annotations

from collections.abc import Iterator
from os import PathLike, fspath
from pathlib import Path
from typing import Any

from minions.transport import Transport
from minions.wire import PAGE, segment


class Files:
    """The methods of `minions.Client` that are about files."""

    _transport: Transport

    def upload(
        self,
        file: str | PathLike[str] | bytes,
        *,
        name: str | None = None,
        media_type: str | None = None,
        namespace: str | None = None,
    ) -> dict[str, Any]:
        """Upload a file, and return its facts: `id`, `media_type`, `bytes`, `pages`, `width`, `height`, …

        The same content is the same file, so an upload may be repeated. A message refers to it as
        `{"type": "document", "source": {"type": "file", "file_id": id}}`, an input as `{"$file": id}`.

        Args:
            file: its path, or its content.
            name: shown to people and models; by default that of the path.
            media_type: such as `application/pdf`; by default it is recognised.

        Raises:
            InvalidInput: its type is not accepted, or its content is of another type.
            TooLarge: it exceeds a limit.
        """
        content, known = _read(file)
        params = {"name": name or known, "namespace": namespace}
        content_type = media_type or "application/octet-stream"
        uploaded: dict[str, Any] = self._transport.send("/v1/files", content, content_type=content_type, params=params)
        return uploaded

    def files(self, *, namespace: str | None = None) -> Iterator[dict[str, Any]]:
        """Yield the files, the newest first; pages are loaded as they are read."""
        return self._transport.pages("/v1/files", {"namespace": namespace, "limit": PAGE})

    def file(self, file_id: str, *, namespace: str | None = None) -> dict[str, Any]:
        """Return the facts of a file.

        Raises:
            NotFound: there is no file with this id.
        """
        found: dict[str, Any] = self._transport.get(_path(file_id), params={"namespace": namespace})
        return found

    def download(self, file_id: str, *, namespace: str | None = None) -> bytes:
        """Return the content of a file.

        Raises:
            NotFound: there is no file with this id.
        """
        return self._transport.receive(f"{_path(file_id)}/content", params={"namespace": namespace})

    def delete_file(self, file_id: str, *, namespace: str | None = None) -> dict[str, Any]:
        """Delete a file, and return what it was.

        Raises:
            NotFound: there is no file with this id.
            Conflict: a task, a conversation or a schedule refers to it.
        """
        deleted: dict[str, Any] = self._transport.delete(_path(file_id), params={"namespace": namespace})
        return deleted


def _read(file: str | PathLike[str] | bytes) -> tuple[bytes, str | None]:
    """Return the content of a file, and the name of its path."""
    if isinstance(file, bytes):
        return file, None
    path = Path(fspath(file))
    return path.read_bytes(), path.name


def _path(file_id: str) -> str:
    return f"/v1/files/{segment(file_id)}"
