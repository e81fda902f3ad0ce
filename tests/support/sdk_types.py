"""Requests of the Messages API, checked against the types of the installed SDK: those of its beta resources.

Pydantic does not do it: it ignores fields that a `TypedDict` does not have, and does not look into an `Iterable`.
"""

from __future__ import annotations

import types
from collections.abc import Iterable, Iterator, Mapping
from functools import cache
from typing import Annotated, Any, Literal, NotRequired, Required, Union, get_args, get_origin, get_type_hints

from anthropic.types.beta.message_create_params import MessageCreateParamsNonStreaming, MessageCreateParamsStreaming
from typing_extensions import is_typeddict

OF_HEADERS = frozenset({"betas", "user_profile_id", "workspace_id"})
"""Arguments of the SDK's `create` that are no fields of the body."""
SAMPLING = frozenset({"temperature", "top_p", "top_k"})
"""Fields that the SDK no longer has, and older models do."""


def faults_of(body: Mapping[str, Any]) -> list[str]:
    """Return what the SDK would not send: places and what is wrong there."""
    kind = MessageCreateParamsStreaming if body.get("stream") else MessageCreateParamsNonStreaming
    typed = {name: value for name, value in body.items() if name not in SAMPLING}
    return [*_faults(kind, typed, "body"), *(f"body.{name}: is a header" for name in OF_HEADERS & body.keys())]


def _faults(kind: Any, value: Any, place: str) -> Iterator[str]:
    origin, arguments = get_origin(kind), get_args(kind)
    if origin in (Annotated, Required, NotRequired):
        yield from _faults(arguments[0], value, place)
    elif origin in (Union, types.UnionType):
        yield from _faults_of_union(arguments, value, place)
    elif origin is Literal:
        if value not in arguments:
            yield f"{place}: {value!r} is not one of {arguments}"
    elif is_typeddict(kind):
        yield from _faults_of_object(kind, value, place)
    elif origin is not None and issubclass(origin, Mapping):
        if not isinstance(value, dict):
            yield f"{place}: {value!r} is no object"
    elif origin is not None and issubclass(origin, Iterable):
        if isinstance(value, list):
            for number, each in enumerate(value):
                yield from _faults(arguments[0], each, f"{place}.{number}")
        else:
            yield f"{place}: {value!r} is no list"
    elif kind is not Any and kind is not object and not _is_plain(kind, value):
        yield f"{place}: {value!r} is no {kind}"


def _is_plain(kind: Any, value: Any) -> bool:
    if value is None or isinstance(value, bool):
        return kind is type(value)
    return isinstance(value, (int, float) if kind is float else kind if isinstance(kind, type) else str)


def _faults_of_union(kinds: tuple[Any, ...], value: Any, place: str) -> Iterator[str]:
    """Yield the faults of the member that the value's `type` names; of several or none, those with the fewest."""
    typed = [kind for kind in kinds if is_typeddict(kind)]
    tagged = [kind for kind in typed if isinstance(value, dict) and _is_named(kind, value)]
    tried = [[*_faults(kind, value, place)] for kind in kinds if kind in tagged or not (tagged and kind in typed)]
    yield from min(tried, key=len)


def _is_named(kind: Any, value: dict[str, Any]) -> bool:
    tag = _fields(kind).get("type")
    return tag is not None and not [*_faults(tag, value.get("type"), "")]


def _faults_of_object(kind: Any, value: Any, place: str) -> Iterator[str]:
    if not isinstance(value, dict):
        yield f"{place}: {value!r} is no object"
        return
    fields = _fields(kind)
    for name in kind.__required_keys__ - value.keys():
        yield f"{place}.{name}: is missing"
    for name, each in value.items():
        if name in fields:
            yield from _faults(fields[name], each, f"{place}.{name}")
        else:
            yield f"{place}.{name}: {kind.__name__} has no such field"


@cache
def _fields(kind: Any) -> dict[str, Any]:
    return get_type_hints(kind)
