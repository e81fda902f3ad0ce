"""The modules that a function may import.

Everything named here is loaded by the zygote before it is confined: afterwards there is no file system to
load from. A module that another one imports late (`_strptime`, codecs, zone data) is listed in `HIDDEN`.
"""

from __future__ import annotations

DEFAULT_IMPORTS = frozenset({"json", "datetime", "math", "re", "collections", "itertools", "functools"})
"""What every function store has allowed since the first version."""

SAFE_IMPORTS = DEFAULT_IMPORTS | {
    # language support
    "__future__", "abc", "contextlib", "copy", "dataclasses", "enum", "numbers", "operator", "types",
    "typing",
    # numbers and chance
    "bisect", "cmath", "decimal", "fractions", "heapq", "random", "secrets", "statistics",
    # text
    "base64", "binascii", "csv", "difflib", "html", "io", "pprint", "shlex", "string", "textwrap",
    "unicodedata", "urllib.parse",
    # time
    "calendar", "time", "zoneinfo",
    # digests, packing, identifiers
    "colorsys", "hashlib", "hmac", "ipaddress", "struct", "uuid", "zlib",
    # order and concurrency
    "array", "asyncio", "contextvars", "graphlib", "queue", "weakref",
}  # fmt: skip
"""Modules that compute and do nothing else: the default of `Sandbox.call`."""

HIDDEN = (
    "_strptime",
    "collections.abc",
    "encodings.ascii",
    "encodings.cp1250",
    "encodings.cp1251",
    "encodings.cp1252",
    "encodings.cp437",
    "encodings.idna",
    "encodings.iso8859_1",
    "encodings.iso8859_15",
    "encodings.iso8859_2",
    "encodings.latin_1",
    "encodings.punycode",
    "encodings.raw_unicode_escape",
    "encodings.unicode_escape",
    "encodings.utf_16",
    "encodings.utf_16_be",
    "encodings.utf_16_le",
    "encodings.utf_32",
    "encodings.utf_32_be",
    "encodings.utf_32_le",
    "encodings.utf_7",
    "encodings.utf_8_sig",
    "html.entities",
    "html.parser",
    "inspect",
    "json.decoder",
    "linecache",
    "traceback",
)
"""Modules that the ones above import late, or that the child itself needs."""


def is_allowed(name: str, allowed: frozenset[str]) -> bool:
    """Whether a dotted module name, or a package above it, is in the list."""
    while name:
        if name in allowed:
            return True
        name = name.rpartition(".")[0]
    return False
