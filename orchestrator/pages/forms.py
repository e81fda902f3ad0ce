"""Fields of forms as the endpoints of the API take them, and the answers to forms."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any, TypeVar
from urllib.parse import urlencode

from fastapi import Request, Response
from pydantic import BaseModel, ValidationError

from orchestrator.api.login.pages import see_other
from orchestrator.api.parameters import NamespaceQuery, StrictQuery, Text
from orchestrator.pages.access import reader_of
from orchestrator.pages.rendering import render
from orchestrator.pages.rights import RULES
from shared.access.actors import Key
from shared.access.scope import LONGEST_NAME
from shared.contracts.strict_json import parse
from shared.contracts.strict_model import faults_of
from shared.errors import InvalidInput, MinionError, UnknownAgent

CORRECTABLE = (409, 422)
AMOUNT = re.compile(r"[0-9]{1,15}(\.[0-9]{1,6})?")
TEXTS = {"installation": "the whole installation", "key": "tenant key"}

Query = TypeVar("Query", bound=BaseModel)


@dataclass(frozen=True, slots=True)
class Typed:
    """The contents of a form of a page, which shows them again if they were refused.

    Attributes:
        form: which form of the page.
        problem: why it was refused.
        status: of the answer.
    """

    form: str = ""
    fields: Mapping[str, str] = field(default_factory=dict)
    problem: str | None = None
    status: int = 200


NOTHING = Typed()


class DoneQuery(StrictQuery):
    """The act that was just done."""

    done: Text = ""


class NamespaceDoneQuery(NamespaceQuery, DoneQuery):
    """The namespace, and the act that was just done."""


def show(request: Request, template: str, title: str, typed: Typed = NOTHING, **values: Any) -> Response:
    """Return a page that may have forms, from a template that extends `listing.html`.

    Args:
        values: for the template. `done` is a sentence about the last act; `next` is the query of the next page;
            `live` is the address of the stream.
    """
    reader = reader_of(request)
    if request.method == "POST":  # a live page asks for its parts at its address, and this one is that of the form
        values.pop("live", None)
    more = {"done": None, "next": None, "next_text": "More", "problem": typed.problem, **values}
    return render(
        request,
        template,
        typed.status,
        title=title,
        typed=typed,
        permits=lambda endpoint: reader is not None and RULES[endpoint].permits(reader),
        bound_to=reader.scope.namespace if reader is not None else None,
        **more,
    )


def corrected(
    form: str, fields: Mapping[str, str], act: Callable[[], Response], show: Callable[[Typed], Response]
) -> Response:
    """Do the act of a form. If it is refused for what was typed, show the page again, with the reason."""
    try:
        return act()
    except MinionError as error:
        if error.status not in CORRECTABLE and not isinstance(error, UnknownAgent):
            raise
        return show(Typed(form, fields, error.message, error.status))


def done(path: str, act: str, **more: str) -> Response:
    """Lead to a page, which says what was done."""
    return see_other(f"{path}?{urlencode({**more, 'done': act})}")


def given(fields: Mapping[str, str], *names: str) -> dict[str, Any]:
    """Return the fields of these names that are not empty."""
    stripped = {name: fields.get(name, "").strip() for name in names}
    return {name: value for name, value in stripped.items() if value}


def lines_of(fields: Mapping[str, str], name: str) -> list[str]:
    """Return the lines of a field that are not empty."""
    return [line.strip() for line in fields.get(name, "").splitlines() if line.strip()]


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


def as_amount(written: str, what: str) -> int | float:
    """Return the number in a field.

    Raises:
        InvalidInput: there is none.
    """
    if not AMOUNT.fullmatch(written.strip()):
        raise InvalidInput(f"{what} must be a number, such as 20 or 0.5.")
    return float(written) if "." in written else int(written)


def as_query(model: type[Query], asked: Mapping[str, Any]) -> Query:
    """Return query parameters of the API.

    Raises:
        InvalidInput: they are not valid.
    """
    try:
        return model.model_validate(dict(asked))
    except ValidationError as error:
        raise InvalidInput(f"The form is not valid: {'; '.join(faults_of(error))}.") from None


def namespace_of(fields: Mapping[str, str], key: Key) -> NamespaceQuery:
    """Return the namespace that a form names; without one, that of its reader, or `default`.

    Raises:
        Forbidden: the reader is bound to another one.
        InvalidInput: it cannot be the name of a namespace.
    """
    asked = fields.get("namespace", "").strip() or None
    if asked is not None and (len(asked) > LONGEST_NAME or "\x00" in asked):
        raise InvalidInput(f"The namespace must have at most {LONGEST_NAME} characters, without U+0000.")
    return NamespaceQuery(namespace=key.scope.namespace_of(asked))


def choices(values: Iterable[str]) -> list[tuple[str, str]]:
    """Return values to choose from, each with its text."""
    return [(value, TEXTS.get(value, value)) for value in values]
