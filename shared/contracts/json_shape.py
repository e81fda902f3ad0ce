"""The shape of a JSON text from a hostile writer, checked before it is parsed: depth, number of values, long numbers.

Each check walks the text in a loop and takes linear time; the recursive parser only sees shallow texts.
"""

from __future__ import annotations

import re
from array import array
from itertools import accumulate, islice

from shared.errors import InvalidInput, TooLarge

MAX_DIGITS = 4_300
"""Digits of an integer: Python's default limit, which applies here even if the process has lifted it."""

# An unterminated string matches up to the end: otherwise each of its quotes would start a scan of the rest.
_STRING = re.compile(rb'"[^"\\]*+(?:\\.[^"\\]*+)*+(?:"|\\?\Z)', re.DOTALL)
# Matches only from the first digit: a search from every digit of numbers just below the limit would take hours.
_LONG_NUMBER = re.compile(rb"(?<![0-9])[0-9]{%d}" % (MAX_DIGITS + 1))
_STEPS = bytes.maketrans(b"[{]}", bytes(array("b", [1, 1, -1, -1])))
_NO_BRACKETS = bytes(set(range(256)) - set(b"[{]}"))


def check_shape(body: bytes, *, what: str, depth: int, values: int) -> None:
    """Check the shape of a text, which need not be JSON.

    Args:
        body: the text in UTF-8.
        what: its name in the error message.
        depth: levels of nesting.
        values: number of values and keys. An empty list or object counts twice.

    Raises:
        TooLarge: it has more than `values`.
        InvalidInput: it is nested too deeply, or has a number of more than `MAX_DIGITS` digits.
    """
    if len(body) <= MAX_DIGITS and _brackets(body) <= depth and _values(body) <= values:
        return
    outside = _outside_strings(body, what, values)
    if _values(outside) > values:
        raise _too_many(what, values)
    if _depth(outside, what) > depth:
        raise InvalidInput(f"{what} is nested deeper than {depth} levels.", limit=depth)
    if _LONG_NUMBER.search(outside):
        raise InvalidInput(f"{what} is not valid JSON: a number of more than {MAX_DIGITS:,} digits.")


def _outside_strings(body: bytes, what: str, values: int) -> bytes:
    """Return the text without its strings. They are counted first: removing one takes a hundred bytes of memory."""
    if sum(1 for _ in islice(_STRING.finditer(body), values + 1)) > values:
        raise _too_many(what, values)
    return _STRING.sub(b"", body)


def _too_many(what: str, values: int) -> TooLarge:
    return TooLarge(f"{what} holds more than {values} values.", limit=values)


def _brackets(text: bytes) -> int:
    return text.count(b"[") + text.count(b"{")


def _values(text: bytes) -> int:
    """Return the number of values and keys in a text without strings; in a text with strings, an upper bound."""
    return 1 + _brackets(text) + text.count(b",") + text.count(b":")


def _depth(outside: bytes, what: str) -> int:
    steps = array("b", outside.translate(_STEPS, _NO_BRACKETS))
    if len(steps) > 2 * _brackets(outside):
        raise InvalidInput(f"{what} is not valid JSON: it closes more brackets than it opens.")
    return max(accumulate(steps), default=0)
