"""Request bodies: strict JSON objects, counted while they arrive, so that no caller can exhaust the memory."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import contextmanager
from typing import Annotated, Any, TypeVar

from fastapi import Depends, HTTPException, Request
from pydantic import BaseModel, ValidationError

from shared.contracts import strict_json
from shared.contracts.strict_model import faults_of
from shared.errors import InvalidInput, TooLarge, Unavailable
from shared.settings import Settings

# JSON's escapes make a text up to six times as large as its stored form.
ESCAPED = 6
ENVELOPE_BYTES = 64 * 1024
# Copies of a request's text (received, decoded, parts, for the database), and bytes per value that a character begins.
COPIES = 4
VALUE_BYTES = {b"{": 192, b"[": 64, b",": 48}
EXAMPLE = "send a JSON object; /docs has an example for each operation"

Reader = Callable[[Request], AsyncIterator[bytes]]
Model = TypeVar("Model", bound=BaseModel)


class BodyMemory:
    """The memory for all bodies that are currently received or handled. For one event loop.

    Attributes:
        limit: bytes.
        used: bytes that are currently reserved.
    """

    def __init__(self, limit: int) -> None:
        self.limit = limit
        self.used = 0

    @contextmanager
    def share(self) -> Iterator[Callable[[int], None]]:
        """Reserve memory for one body while the block runs. The yielded function reserves more bytes.

        It raises `TooLarge` if the body alone would not fit, and `Unavailable` if other bodies use the memory.
        """
        share = 0

        def reserve(more: int) -> None:
            nonlocal share
            if share + more > self.limit:
                raise TooLarge(
                    f"The body has too many values: parsed, it would take more than the {self.limit:,} bytes that the "
                    "API has for all bodies. Send fewer tasks in one request, or raise MINION_API_MEMORY_BYTES.",
                    limit=self.limit,
                )
            if self.used + more > self.limit:
                raise Unavailable(
                    "The API's memory for request bodies is full. Try again in a few seconds, or send fewer tasks in "
                    "one request."
                )
            share += more
            self.used += more

        try:
            yield reserve
        finally:
            self.used -= share


def one_task(settings: Settings) -> int:
    """Return the size limit of a request about one task, in bytes."""
    return min(settings.max_body_bytes, ESCAPED * settings.max_input_bytes + ENVELOPE_BYTES)


def small(settings: Settings) -> int:
    """Return the size limit of a request about anything else, in bytes."""
    return min(settings.max_body_bytes, ENVELOPE_BYTES)


def many_tasks(settings: Settings) -> int:
    """Return the size limit of a bulk request, in bytes."""
    return settings.max_body_bytes


def reader(limit_of: Callable[[Settings], int], *, of_json: bool = True) -> Reader:
    """Return a dependency that reads a body of up to that size. Its memory is reserved until the request is handled.

    Args:
        of_json: refuse a body of another type.
    """

    async def read(request: Request) -> AsyncIterator[bytes]:
        limit = limit_of(request.app.state.settings)
        _check_announced(request, limit)
        memory: BodyMemory = request.app.state.body_memory
        with memory.share() as reserve:
            yield await _read(request, limit, reserve, of_json=of_json)

    return read


async def _read(request: Request, limit: int, reserve: Callable[[int], None], *, of_json: bool) -> bytes:
    chunks, size = [], 0
    async for chunk in request.stream():
        size += len(chunk)
        if size > limit:
            raise _too_large(limit)
        # Small bodies do not count, so that ordinary calls are served while large ones fill the memory.
        if size > ENVELOPE_BYTES:
            reserve(_memory_of(chunk) if of_json else COPIES * len(chunk))
        chunks.append(chunk)
    if size:
        _check_type(request, of_json)
    return b"".join(chunks)


def _memory_of(chunk: bytes) -> int:
    """Estimate the memory of a part of a body while its request is handled: `[[],[],…]` takes 30 times its size."""
    return COPIES * len(chunk) + sum(chunk.count(mark) * size for mark, size in VALUE_BYTES.items())


TaskBody = Annotated[bytes, Depends(reader(one_task))]
BulkBody = Annotated[bytes, Depends(reader(many_tasks))]
SmallBody = Annotated[bytes, Depends(reader(small))]


def parse_object(body: bytes, *, required: bool = True) -> dict[str, Any]:
    """Return the JSON object in a body; an empty body is an empty object if the body is not `required`.

    Raises:
        InvalidInput: the body is empty, not strict JSON, or not an object.
    """
    if not body:
        if required:
            raise InvalidInput(f"The body is empty: {EXAMPLE}.")
        return {}
    value = strict_json.parse(body)
    if not isinstance(value, dict):
        raise InvalidInput(f"The body is not a JSON object: {EXAMPLE}.")
    return value


def parse_model(model: type[Model], body: bytes, *, required: bool = True) -> Model:
    """Return the object in a body, validated.

    Raises:
        InvalidInput: names each wrong member, without its value, which may be a secret.
    """
    try:
        return model.model_validate(parse_object(body, required=required))
    except ValidationError as error:
        faults = faults_of(error)
        raise InvalidInput("The request is not valid: " + "; ".join(faults) + ".", faults=faults) from None


def documented(schema: dict[str, Any], *, required: bool = True) -> dict[str, Any]:
    """Return the OpenAPI description of a body: the framework does not parse bodies, so it cannot generate one.

    `orchestrator.api.names` makes a component of the schema, which must have a title.
    """
    return {"requestBody": {"required": required, "content": {"application/json": {"schema": schema}}}}


def _check_announced(request: Request, limit: int) -> None:
    """Refuse a body whose announced length is too large before reading it; a false length is found by counting."""
    announced = request.headers.get("content-length", "")
    if announced.isdecimal() and (len(announced) > 18 or int(announced) > limit):
        raise _too_large(limit)


def _check_type(request: Request, of_json: bool) -> None:
    media_type = request.headers.get("content-type", "").partition(";")[0].strip().lower()
    if (
        of_json
        and media_type != "application/json"
        and not (media_type.startswith("application/") and media_type.endswith("+json"))
    ):
        raise HTTPException(415, f"The body must be JSON: send `Content-Type: application/json`, not {media_type!r}.")
    if request.headers.get("content-encoding", "identity").lower() != "identity":
        raise HTTPException(415, "The body must not be compressed: leave the header Content-Encoding out.")


def _too_large(limit: int) -> TooLarge:
    return TooLarge(
        f"The body is larger than the {limit:,} bytes that are accepted here. Store large data elsewhere and pass a "
        "reference to it.",
        limit=limit,
    )
