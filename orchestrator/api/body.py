"""Request bodies: strict JSON objects, counted while they arrive, so that no caller can fill the memory."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import Annotated, Any, TypeVar

from fastapi import Depends, HTTPException, Request
from pydantic import BaseModel, ValidationError

from shared import json_values
from shared.errors import InvalidInput, TooLarge
from shared.settings import Settings

# JSON's escapes make a text up to six times as large as what is stored of it.
ESCAPED = 6
ENVELOPE_BYTES = 64 * 1024
EXAMPLE = 'send a JSON object, such as {"agent": "NAME", "input": {}}'

Reader = Callable[[Request], Awaitable[bytes]]
Model = TypeVar("Model", bound=BaseModel)


def one_task(settings: Settings) -> int:
    """The most bytes that a request about one task may have."""
    return min(settings.max_body_bytes, ESCAPED * settings.max_input_bytes + ENVELOPE_BYTES)


def small(settings: Settings) -> int:
    """The most bytes that a request about anything else may have."""
    return min(settings.max_body_bytes, ENVELOPE_BYTES)


def many_tasks(settings: Settings) -> int:
    """The most bytes that a bulk request may have."""
    return settings.max_body_bytes


def reader(limit_of: Callable[[Settings], int]) -> Reader:
    """A dependency that reads a body of at most so many bytes."""

    async def read(request: Request) -> bytes:
        limit = limit_of(request.app.state.settings)
        _check_announced(request, limit)
        chunks, size = [], 0
        async for chunk in request.stream():
            size += len(chunk)
            if size > limit:
                raise _too_large(limit)
            chunks.append(chunk)
        body = b"".join(chunks)
        if body:
            _check_type(request)
        return body

    return read


TaskBody = Annotated[bytes, Depends(reader(one_task))]
BulkBody = Annotated[bytes, Depends(reader(many_tasks))]
SmallBody = Annotated[bytes, Depends(reader(small))]


def parse_object(body: bytes, *, required: bool = True) -> dict[str, Any]:
    """The JSON object in a body; an empty body is an empty object where the body is not `required`.

    Raises:
        InvalidInput: it is empty, not strict JSON, or no object.
    """
    if not body:
        if required:
            raise InvalidInput(f"The body is empty: {EXAMPLE}.")
        return {}
    value = json_values.parse(body)
    if not isinstance(value, dict):
        raise InvalidInput(f"The body is not a JSON object: {EXAMPLE}.")
    return value


def parse_model(model: type[Model], body: bytes, *, required: bool = True) -> Model:
    """The object in a body, checked.

    Raises:
        InvalidInput: names each wrong member, and repeats none: it may be a secret.
    """
    try:
        return model.model_validate(parse_object(body, required=required))
    except ValidationError as error:
        found = error.errors(include_url=False, include_input=False)
        faults = [f"{'.'.join(map(str, fault['loc']))}: {fault['msg']}" for fault in found]
        raise InvalidInput("The request is not valid: " + "; ".join(faults) + ".", faults=faults) from None


def documented(schema: dict[str, Any], *, required: bool = True) -> dict[str, Any]:
    """The OpenAPI description of a body, which the framework does not see because it does not parse it."""
    return {"requestBody": {"required": required, "content": {"application/json": {"schema": _complete(schema, {})}}}}


def _complete(schema: Any, parts: dict[str, Any]) -> Any:
    """The schema with its `$defs` in their places: a reference counts from the root of the whole OpenAPI document."""
    if isinstance(schema, list):
        return [_complete(item, parts) for item in schema]
    if not isinstance(schema, dict):
        return schema
    parts = parts | schema.get("$defs", {})
    rest = {key: _complete(value, parts) for key, value in schema.items() if key not in ("$defs", "$ref")}
    if "$ref" not in schema:
        return rest
    return _complete(parts[schema["$ref"].removeprefix("#/$defs/")], parts) | rest


def _check_announced(request: Request, limit: int) -> None:
    """A body that says it is too large is refused before it is read; one that lies is counted."""
    announced = request.headers.get("content-length", "")
    if announced.isdecimal() and (len(announced) > 18 or int(announced) > limit):
        raise _too_large(limit)


def _check_type(request: Request) -> None:
    media_type = request.headers.get("content-type", "").partition(";")[0].strip().lower()
    if media_type != "application/json" and not (
        media_type.startswith("application/") and media_type.endswith("+json")
    ):
        raise HTTPException(415, f"The body must be JSON: send `Content-Type: application/json`, not {media_type!r}.")
    if request.headers.get("content-encoding", "identity").lower() != "identity":
        raise HTTPException(415, "The body must not be compressed: leave the header Content-Encoding out.")


def _too_large(limit: int) -> TooLarge:
    return TooLarge(
        f"The body is larger than {limit:,} bytes, the most that is accepted here. "
        "Store large data elsewhere and pass a reference to it.",
        limit=limit,
    )
