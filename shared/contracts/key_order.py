"""The order of an object's keys, stored beside `jsonb`, which sorts them by length.

Models write fields in the order of a schema, and read them in the order of a result, so an author's order must survive.
The order of a stored value is in a separate column:

    {"orders": [["reasoning", "verdict", "score"], …], "choices": [0, 1, …]}

Each of `orders` applies to every object with exactly these keys. If objects with the same keys have several orders,
`choices` has the number of the one that applies to each of them, from the outside in. Objects that are not listed, and
all objects if the column is NULL, are in the order of `jsonb`. The order of a part also describes a whole whose other
parts are in the order of `jsonb`, so the database can wrap a value without looking at its order.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from typing import Any

from shared.contracts.strict_json import JsonValue

KeyOrder = dict[str, Any]
Keys = tuple[str, ...]


def order_of(value: JsonValue) -> KeyOrder | None:
    """Return the order of the keys in a value, or None if it is the order of `jsonb`."""
    found = [keys for keys in _keys_in(value) if len(keys) > 1]
    orders: dict[Keys, dict[Keys, int]] = {}
    for keys in dict.fromkeys(found):
        alike = orders.setdefault(in_jsonb(keys), {})
        alike[keys] = len(alike)
    listed = {own: alike for own, alike in orders.items() if len(alike) > 1 or own not in alike}
    if not listed:
        return None
    several = {keys: number for alike in listed.values() if len(alike) > 1 for keys, number in alike.items()}
    return {
        "orders": [list(keys) for alike in listed.values() for keys in alike],
        "choices": [several[keys] for keys in found if keys in several],
    }


def ordered(value: JsonValue, order: KeyOrder | None) -> JsonValue:
    """Return a value from `jsonb` with its keys in their order. An order that does not fit changes nothing."""
    if not order:
        return value
    orders: dict[Keys, list[Keys]] = {}
    for keys in order["orders"]:
        orders.setdefault(in_jsonb(keys), []).append(tuple(keys))
    return _ordered(value, orders, iter(order["choices"]))


def with_order(fields: Mapping[str, Any], *names: str) -> dict[str, Any]:
    """Return the fields of a row with the order of each named value beside it, as `input_order` beside `input`."""
    orders = {f"{name}_order": order for name in names if (order := order_of(fields.get(name))) is not None}
    return {**fields, **orders}


def in_order(row: Mapping[Any, Any], *names: str) -> dict[str, Any]:
    """Return the fields of a row with the named values in their order and the orders removed: reverses `with_order`."""
    values = {name: ordered(row[name], row.get(f"{name}_order")) for name in names}
    orders = {f"{name}_order" for name in names}
    return {name: values.get(name, value) for name, value in row.items() if name not in orders}


def as_in_jsonb(value: JsonValue) -> JsonValue:
    """Return a value with its keys as `jsonb` sorts them."""
    if isinstance(value, dict):
        return {key: as_in_jsonb(value[key]) for key in in_jsonb(value)}
    return [as_in_jsonb(part) for part in value] if isinstance(value, list) else value


def in_jsonb(keys: Iterable[str]) -> Keys:
    """Return keys in the order of `jsonb`: the shorter first, then by their bytes."""
    return tuple(sorted(keys, key=lambda key: (len(encoded := key.encode("utf-8", "surrogatepass")), encoded)))


def _keys_in(value: JsonValue) -> Iterator[Keys]:
    """Yield the keys of every object in a value, outer objects first."""
    rest = [value]
    while rest:
        part = rest.pop()
        if isinstance(part, dict):
            yield tuple(part)
            rest += reversed(part.values())
        elif isinstance(part, list | tuple):
            rest += reversed(part)


def _ordered(value: JsonValue, orders: dict[Keys, list[Keys]], choices: Iterator[int]) -> JsonValue:
    if isinstance(value, dict):
        own = tuple(value)
        alike = orders.get(own, [own])
        keys = alike[next(choices, 0) % len(alike)] if len(alike) > 1 else alike[0]
        return {key: _ordered(value[key], orders, choices) for key in keys}
    if isinstance(value, list):
        return [_ordered(part, orders, choices) for part in value]
    return value
