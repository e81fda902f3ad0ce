"""Strict JSON: only values that PostgreSQL, every client and the sandbox can all represent.

Python's parser accepts more than JSON (NaN, Infinity, 1e999, lone surrogates, duplicate keys) and PostgreSQL's
`jsonb` accepts less (no U+0000). A value that is accepted here is accepted everywhere.

The texts of faults must not change, because the journals of running tasks contain hashes of them.
"""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from decimal import Decimal
from functools import cached_property
from itertools import chain
from typing import Any

from shared.contracts.json_shape import check_shape
from shared.errors import InvalidInput, TooLarge

MAX_DEPTH = 100
ABSENT = "absent"

JsonValue = Any
# The types that parsers return. Subclasses and tuples are accepted too, but checked one by one.
NOT_CONSTANT = frozenset({dict, list, str, int, float})
PLAIN = NOT_CONSTANT | {bool, type(None)}
END: tuple[Any, JsonValue] = (None, None)


@dataclass(frozen=True)
class Bounds:
    """Limits of a JSON value.

    Attributes:
        depth: levels of nesting.
        digits: digits of a number.
        values: number of values and keys, for text from a hostile writer: a short value takes up to a hundred bytes
            of memory. If it is set, the text is checked before it is parsed.
        unique_keys: if true, an object with a duplicate key is refused; otherwise the last value counts.
        storable: if false, values may be such that PostgreSQL cannot store, for example with U+0000. `check` must
            follow, and `values` must be set.
    """

    depth: int = MAX_DEPTH
    digits: int = 300
    values: int | None = None
    unique_keys: bool = True
    storable: bool = True

    @cached_property
    def beyond(self) -> int:
        """Return the smallest number with too many digits."""
        return int(10**self.digits)


STORABLE = Bounds()


def parse(
    text: bytes | str, *, what: str = "The body", limit: int | None = None, bounds: Bounds = STORABLE
) -> JsonValue:
    """Parse strict JSON.

    Args:
        text: the document, UTF-8 if bytes.
        what: its name in the error message.
        limit: the maximum size in bytes.
        bounds: limits of the value.

    Raises:
        TooLarge: the document is larger than `limit`, or has more values than `bounds` allow.
        InvalidInput: it is not strict JSON, or exceeds `bounds`.
    """
    raw = text.encode("utf-8", "surrogatepass") if isinstance(text, str) else text
    if limit is not None and len(raw) > limit:
        raise too_large(what, len(raw), limit)
    if bounds.values is not None:
        check_shape(raw, what=what, depth=bounds.depth, values=bounds.values)
    value = _decode(raw, what, bounds)
    if bounds.storable:
        _check(value, what, bounds)
    return value


def _decode(raw: bytes, what: str, bounds: Bounds) -> JsonValue:
    try:
        unique = _unique_keys if bounds.unique_keys else None
        return json.loads(raw.decode("utf-8"), parse_constant=_refuse_constant, object_pairs_hook=unique)
    except UnicodeDecodeError as error:
        raise InvalidInput(f"{what} is not UTF-8: byte {error.start} cannot be decoded.") from None
    except json.JSONDecodeError as error:
        raise InvalidInput(
            f"{what} is not valid JSON: {error.msg} at line {error.lineno} column {error.colno}."
        ) from None
    except RecursionError:
        raise InvalidInput(f"{what} is nested deeper than {bounds.depth} levels.") from None
    except ValueError as error:
        # Python refuses integers of more than 4,300 digits.
        fault = f"a number of more than {bounds.digits} digits." if "int_max_str_digits" in str(error) else error
        raise InvalidInput(f"{what} is not valid JSON: {fault}") from None


def check(value: JsonValue, *, what: str = "The value", limit: int | None = None) -> None:
    """Check that a Python value is strict JSON that the database can store.

    Raises:
        TooLarge: its JSON text is larger than `limit` bytes.
        InvalidInput: names the path and the rule.
    """
    _check(value, what, STORABLE)
    if limit is not None:
        check_size(value, what=what, limit=limit)


def check_size(value: JsonValue, *, what: str, limit: int) -> None:
    """Check the size of a value that is strict JSON.

    Raises:
        TooLarge: its JSON text is larger than `limit` bytes.
    """
    if value is None:
        return
    size = len(json.dumps(value, ensure_ascii=False, separators=(",", ":")).encode())
    if size > limit:
        raise too_large(what, size, limit)


def are_sound(values: Sequence[JsonValue]) -> bool:
    """Return whether `check` certainly accepts each of the values, regardless of its size.

    It takes little longer for many values than for one.
    """
    return _are_sound(values, STORABLE)


def _check(value: JsonValue, what: str, bounds: Bounds) -> None:
    if found := _first_fault(value, bounds):
        path, fault = found
        raise InvalidInput(f"{what} cannot be stored: {fault} at {path}.", path=path)


def canonical(value: JsonValue) -> str:
    """Return the canonical JSON text of a value: sorted keys, no spaces, no NaN. Equal values have equal texts."""
    return json.dumps(value, sort_keys=True, ensure_ascii=False, separators=(",", ":"), allow_nan=False)


def digest(value: JsonValue) -> str:
    """Return the SHA-256 of the canonical text, in hexadecimal.

    A whole number has the same digest as float and as integer: PostgreSQL returns 1e16 as 10000000000000000.
    """
    return hashlib.sha256(canonical(stable(value)).encode("utf-8", "surrogatepass")).hexdigest()


def stable(value: JsonValue) -> JsonValue:
    """Return the value with sorted keys and whole numbers as integers, so that the order of keys does not matter."""
    return _arrange(value, by=sorted)


def whole(value: JsonValue) -> JsonValue:
    """Return the value with whole numbers as integers, as PostgreSQL returns it; the order of keys is kept."""
    return _arrange(value, by=iter)


def _arrange(value: JsonValue, *, by: Callable[[Iterable[str]], Iterable[str]]) -> JsonValue:
    """Return the value with the keys of each object in the order of `by`, and whole numbers as integers."""
    if isinstance(value, float) and value.is_integer():
        # From its decimal digits, as PostgreSQL reads it: 1e23 is 10**23, and int(1e23) is not.
        return int(value) if abs(value) < 2**53 else int(Decimal(repr(value)))
    if isinstance(value, dict):
        return {key: _arrange(value[key], by=by) for key in by(value)}
    if isinstance(value, list | tuple):
        return [_arrange(item, by=by) for item in value]
    return value


def first_difference(before: JsonValue, now: JsonValue, path: str = "$") -> str | None:
    """Return the path of the first difference of two values and a short description, or None if they are equal."""
    if isinstance(before, dict) and isinstance(now, dict):
        places = [(f"{path}.{key}", before.get(key, ABSENT), now.get(key, ABSENT)) for key in sorted({*before, *now})]
    elif isinstance(before, list) and isinstance(now, list) and len(before) == len(now):
        places = [(f"{path}[{index}]", *pair) for index, pair in enumerate(zip(before, now, strict=True))]
    elif canonical(stable(before)) == canonical(stable(now)):
        return None
    else:
        return f"{path} was {_short(before)} and is {_short(now)}"
    return next((found for at, old, new in places if (found := first_difference(old, new, at))), None)


def _short(value: JsonValue) -> str:
    text = value if value is ABSENT else canonical(value)
    return text if len(text) <= 60 else f"{text[:60]}…"


def too_large(what: str, size: int, limit: int) -> TooLarge:
    """Return the error for a document of `size` bytes if only `limit` are allowed."""
    return TooLarge(
        f"{what} is {size:,} bytes large; at most {limit:,} are accepted. "
        "Store large data elsewhere and pass a reference to it.",
        size=size,
        limit=limit,
    )


def _first_fault(root: JsonValue, bounds: Bounds) -> tuple[str, str] | None:
    """Return the path of the first fault and its text. Deep or large values exhaust neither stack nor memory."""
    if _are_sound([root], bounds):
        return None
    way: list[str | int] = []
    entered: list[Iterator[tuple[Any, JsonValue]]] = []
    value = root
    while True:
        if fault := _fault_of(value, len(way), bounds):
            return _path(way), fault
        if isinstance(value, dict):
            entered.append(iter(value.items()))
            way.append("")
        elif isinstance(value, list | tuple):
            entered.append(iter(enumerate(value)))
            way.append(0)
        while entered and (following := next(entered[-1], END)) is END:
            entered.pop()
            way.pop()
        if not entered:
            return None
        way[-1], value = following


def _are_sound(level: Sequence[JsonValue], bounds: Bounds) -> bool:
    """Return whether values certainly have no faults, about as fast as they were parsed: by levels, mostly in C."""
    for _ in range(bounds.depth + 1):
        kinds = set(map(type, level))
        if not kinds <= PLAIN:
            return False
        held: dict[type, list[Any]] = {
            kind: [value for value in level if type(value) is kind] for kind in kinds & NOT_CONSTANT
        }
        keys = [*chain.from_iterable(held.get(dict, []))]
        numbers = chain(held.get(int, []), held.get(float, []))
        if not (
            set(map(type, keys)) <= {str}
            and _text_fault("".join(chain(keys, held.get(str, [])))) is None
            and all(-bounds.beyond < number < bounds.beyond for number in numbers)
        ):
            return False
        objects = (value.values() for value in held.get(dict, []))
        level = [*chain.from_iterable(held.get(list, [])), *chain.from_iterable(objects)]
        if not level:
            return True
    return False


def _path(way: list[str | int]) -> str:
    """Return the path as `$.orders[3].name`, shortened to its end if it is long."""
    shown = "".join(f"[{key}]" if isinstance(key, int) else f".{key[:50]}" for key in way[-10:])
    return f"${shown}" if len(way) <= 10 else f"$…{shown}"


def _fault_of(value: JsonValue, depth: int, bounds: Bounds) -> str | None:
    """Return the fault of a value itself, regardless of the values inside it."""
    if depth > bounds.depth:
        return f"nesting deeper than {bounds.depth} levels"
    if isinstance(value, dict):
        return next((fault for key in value if (fault := _key_fault(key))), None)
    return None if isinstance(value, list | tuple) else _scalar_fault(value, bounds)


def _key_fault(key: Any) -> str | None:
    if not isinstance(key, str):
        return f"a key that is not text ({type(key).__name__})"
    fault = _text_fault(key)
    return f"a key with {fault}" if fault else None


def _scalar_fault(value: JsonValue, bounds: Bounds) -> str | None:
    if value is None or isinstance(value, bool):
        return None
    if isinstance(value, str):
        return _text_fault(value)
    if isinstance(value, float) and not math.isfinite(value):
        return f"{value} is not a JSON number"
    if isinstance(value, int | float):
        return None if abs(value) < bounds.beyond else f"a number of more than {bounds.digits} digits"
    return f"a {type(value).__name__} is not a JSON value"


def _text_fault(text: str) -> str | None:
    if "\x00" in text:
        return "the character U+0000, which PostgreSQL cannot store,"
    if text.isascii():
        return None
    try:
        text.encode()
    except UnicodeEncodeError:
        return "a lone surrogate, which is not Unicode text,"
    return None


def _refuse_constant(name: str) -> None:
    raise ValueError(f"{name} is not a JSON number.")


def _unique_keys(pairs: list[tuple[str, JsonValue]]) -> dict[str, JsonValue]:
    result = dict(pairs)
    if len(result) != len(pairs):
        seen: set[str] = set()
        twice = next(key for key, _ in pairs if key in seen or seen.add(key))  # type: ignore[func-returns-value]
        # Journals of 0.2 hash this text, in requests that ask a model to repair its answer.
        raise ValueError(f"the key {twice[:50]!r} stands twice in one object.")
    return result
