"""Celery messages in a Redis list, parsed without trusting them.

kombu trusts the content of its lists: an item without `properties` or with a hostile header ends the process that
reads it. Anyone with write access to Redis can put such items there, so this module reads them first.
"""

from __future__ import annotations

import binascii
import bz2
import json
import lzma
import zlib
from base64 import b64decode
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from shared.contracts.strict_json import too_large
from shared.errors import InvalidInput

PRIORITY_SEPARATOR = "\x06\x16"
PRIORITIES = (0, 3, 6, 9)
LZMA_MEMORY = 64 << 20
SMALL = 1 << 20
MAX_PARTS = 10_000
"""A large message is large because of its body, which is a single text: base64 has no commas."""

DECOMPRESSORS: dict[str, Callable[[], Any]] = {
    "application/x-gzip": zlib.decompressobj,
    "application/x-bz2": bz2.BZ2Decompressor,
    "application/x-lzma": lambda: lzma.LZMADecompressor(memlimit=LZMA_MEMORY),
}
"""Decompressors by their names in kombu; each has `decompress(data, max_length)` and `eof`."""


class Foreign(Exception):
    """An item that neither our publishers nor a Celery client wrote, and the reason."""


@dataclass(frozen=True, slots=True)
class Envelope:
    """A message of Celery's protocol 2. Only the types of its fields are checked, nothing else.

    Attributes:
        body: without the transport's encoding, but still compressed.
    """

    headers: dict[str, Any]
    properties: dict[str, Any]
    content_type: str
    body: bytes

    def unpack(self, *, limit: int) -> bytes:
        """Return the body, decompressed up to a limit of bytes.

        Raises:
            TooLarge: it is larger.
            InvalidInput: it does not match its `compression` header, or the compression is unknown.
        """
        compression = self.headers.get("compression")
        if not compression:
            return self.body
        make = DECOMPRESSORS.get(compression) if isinstance(compression, str) else None
        if make is None:
            raise InvalidInput(
                f"The message cannot be unpacked: its compression must be one of {', '.join(DECOMPRESSORS)}."
            )
        decompressor = make()
        try:
            # One byte more than the limit: if it arrives, the body is too large.
            body: bytes = decompressor.decompress(self.body, limit + 1)
        except (zlib.error, OSError, EOFError, lzma.LZMAError) as error:
            raise InvalidInput(f"The message cannot be unpacked: {type(error).__name__}.") from None
        if len(body) > limit:
            raise too_large("The message", len(body), limit)
        if not decompressor.eof:
            raise InvalidInput("The message cannot be unpacked: its end is missing.")
        return body


def queue_keys(queue: str) -> list[str]:
    """Return the Redis lists of a queue, one for each of kombu's priorities, the first served first."""
    return [f"{queue}{PRIORITY_SEPARATOR}{priority}" if priority else queue for priority in PRIORITIES]


def queue_of(key: str) -> str:
    """Return the queue that one of these lists belongs to."""
    return key.rpartition(PRIORITY_SEPARATOR)[0] or key


def open_envelope(raw: bytes, *, limit: int) -> Envelope:
    """Parse an item of a list.

    Args:
        limit: the largest size in bytes.

    Raises:
        Foreign: it is not a message.
    """
    if len(raw) > limit:
        raise Foreign(f"larger than {limit:,} bytes")
    if len(raw) > SMALL and raw.count(b",") > MAX_PARTS:
        raise Foreign(f"more than {MAX_PARTS:,} parts")
    try:
        item = json.loads(raw)
    except (ValueError, RecursionError):
        raise Foreign("not JSON") from None
    if not isinstance(item, dict):
        raise Foreign("not a JSON object")
    properties = _of_type(item, "properties", dict)
    return Envelope(
        headers=_of_type(item, "headers", dict),
        properties=properties,
        content_type=_of_type(item, "content-type", str),
        body=_decode(_of_type(item, "body", str), properties.get("body_encoding")),
    )


def _of_type(item: dict[str, Any], name: str, kind: type) -> Any:
    value = item.get(name)
    if not isinstance(value, kind):
        raise Foreign(f"`{name}` is missing or of the wrong type")
    return value


def _decode(body: str, encoding: Any) -> bytes:
    try:
        if encoding == "base64":
            return b64decode(body.encode("ascii"), validate=True)
        if encoding in (None, "utf-8"):
            return body.encode()
    except (binascii.Error, UnicodeEncodeError):
        raise Foreign("the body's encoding is broken") from None
    raise Foreign("the body's encoding is unknown")
