"""Reads JSON from a hostile writer: no NaN, no infinity, no NUL, no half surrogates; bounded depth, bounded length.

Every test that walks the text does so in a loop; the recursive parser only sees what is known to be shallow.
"""

from __future__ import annotations

import json
import math
import re
from array import array
from itertools import accumulate, islice
from typing import Any, NoReturn

MAX_DIGITS = 4_300
"""Digits of an integer: Python's own default bound, kept even where a process has lifted it."""

# An unterminated string is matched to the end: otherwise each of its quotes would begin a scan of the rest.
_STRING = re.compile(rb'"[^"\\]*+(?:\\.[^"\\]*+)*+(?:"|\\?\Z)', re.DOTALL)
# Only from its first digit: a search from each of them would take hours for numbers that are just short enough.
_LONG_NUMBER = re.compile(rb"(?<![0-9])[0-9]{%d}" % (MAX_DIGITS + 1))
_STEPS = bytes.maketrans(b"[{]}", bytes(array("b", [1, 1, -1, -1])))
_NO_BRACKETS = bytes(set(range(256)) - set(b"[{]}"))
_SURROGATE_OR_NUL = re.compile("[\0\ud800-\udfff]")


class NotStrict(ValueError):
    """The bytes are not strict JSON; the text says why."""


class TooDeep(NotStrict):
    """The value is nested deeper than it may be."""


class TooMany(NotStrict):
    """There are more values than there may be."""


def parse(body: bytes, max_depth: int, max_values: int) -> Any:
    """The value of a JSON text.

    Args:
        body: the text in UTF-8.
        max_depth: levels of nesting.
        max_values: number of values and keys; each takes up to a hundred bytes of memory, however short it is. An empty
            list or object counts twice.

    Raises:
        NotStrict: it is not strict JSON, or goes beyond `max_depth` or `max_values`.
    """
    _check_shape(body, max_depth, max_values)
    try:
        value = _DECODER.decode(body.decode("utf-8"))
    except NotStrict:
        raise
    except (ValueError, RecursionError) as error:
        raise NotStrict(f"not JSON: {error}"[:200]) from None
    if b"\\u" in body:
        _check_text(value)
    return value


def _check_shape(body: bytes, max_depth: int, max_values: int) -> None:
    if len(body) <= MAX_DIGITS and _brackets(body) <= max_depth and _values(body) <= max_values:
        return
    outside = _outside_strings(body, max_values)
    if _values(outside) > max_values:
        raise TooMany(f"more than {max_values} values")
    if _depth(outside) > max_depth:
        raise TooDeep(f"nested more than {max_depth} levels deep")
    if _LONG_NUMBER.search(outside):
        raise NotStrict(f"a number has more than {MAX_DIGITS} digits")


def _outside_strings(body: bytes, max_strings: int) -> bytes:
    """The text without its strings. They are counted first, because removing one takes a hundred bytes of memory."""
    if sum(1 for _ in islice(_STRING.finditer(body), max_strings + 1)) > max_strings:
        raise TooMany(f"more than {max_strings} values")
    return _STRING.sub(b"", body)


def _brackets(text: bytes) -> int:
    return text.count(b"[") + text.count(b"{")


def _values(text: bytes) -> int:
    """Number of values and keys in a text without strings; in a text with strings, an upper bound."""
    return 1 + _brackets(text) + text.count(b",") + text.count(b":")


def _depth(outside: bytes) -> int:
    steps = array("b", outside.translate(_STEPS, _NO_BRACKETS))
    if len(steps) > 2 * _brackets(outside):
        raise NotStrict("not JSON: it closes more brackets than it opens")
    return max(accumulate(steps), default=0)


def _no_constant(name: str) -> NoReturn:
    raise NotStrict(f"{name} is not JSON")


def _finite(text: str) -> float:
    number = float(text)
    if not math.isfinite(number):
        raise NotStrict("a number is too large")
    return number


_DECODER = json.JSONDecoder(parse_constant=_no_constant, parse_float=_finite)


def _check_text(value: Any) -> None:
    """Refuse strings that neither UTF-8 nor a database can hold."""
    rest = [value]
    while rest:
        item = rest.pop()
        if isinstance(item, dict):
            rest += item.keys()
            rest += item.values()
        elif isinstance(item, list):
            rest += item
        elif isinstance(item, str) and _SURROGATE_OR_NUL.search(item):
            raise NotStrict("a string holds a NUL or half of a surrogate pair")
