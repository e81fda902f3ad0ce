"""What people type into forms, as the endpoints of the API take it; and the answers to forms."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any
from urllib.parse import urlencode

from fastapi import Response

from orchestrator.api.login.pages import see_other
from shared.contracts.strict_json import parse
from shared.errors import InvalidInput


def done(path: str, act: str, **more: str) -> Response:
    """Lead to a page, which says what was done."""
    return see_other(f"{path}?{urlencode({**more, 'done': act})}")


def given(fields: Mapping[str, str], *names: str) -> dict[str, Any]:
    """Return the fields of these names that are not empty."""
    stripped = {name: fields.get(name, "").strip() for name in names}
    return {name: value for name, value in stripped.items() if value}


def as_body(asked: Mapping[str, Any]) -> bytes:
    """Return the body of a request to the API."""
    return json.dumps(asked, ensure_ascii=False, allow_nan=False).encode()


def as_json(written: str, what: str) -> Any:
    """Return the value of a field that holds JSON.

    Raises:
        InvalidInput: it does not.
    """
    try:
        return parse(written)
    except InvalidInput as error:
        raise InvalidInput(f'{what} must be JSON, like {{"name": "text"}} or "text". {error.message}') from None


def as_number(written: str, what: str, largest: int = 999_999_999) -> int:
    """Return the whole number in a field.

    Raises:
        InvalidInput: there is none.
    """
    if not (written.isascii() and written.isdecimal()) or len(written) > 19 or int(written) > largest:
        raise InvalidInput(f"{what} must be a number.")
    return int(written)
