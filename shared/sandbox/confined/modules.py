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

ENCODINGS = (
    "ascii", "idna", "latin_1", "punycode", "raw_unicode_escape", "unicode_escape",
    "utf_16", "utf_16_be", "utf_16_le", "utf_32", "utf_32_be", "utf_32_le", "utf_7", "utf_8_sig",
    # files of Windows, DOS, Unix and the Macintosh
    "cp1250", "cp1251", "cp1252", "cp1253", "cp1254", "cp1255", "cp1256", "cp1257", "cp1258",
    "cp437", "cp850", "cp852", "cp866", "cp874", "koi8_r", "koi8_u", "mac_roman",
    "iso8859_1", "iso8859_2", "iso8859_3", "iso8859_4", "iso8859_5", "iso8859_6", "iso8859_7", "iso8859_8",
    "iso8859_9", "iso8859_10", "iso8859_11", "iso8859_13", "iso8859_14", "iso8859_15", "iso8859_16",
    # East Asia
    "big5", "cp932", "cp949", "cp950", "euc_jp", "euc_kr", "gb18030", "gb2312", "gbk", "iso2022_jp", "shift_jis",
)  # fmt: skip
"""What text may be encoded in, besides UTF-8."""

HIDDEN = (
    "_strptime",
    "collections.abc",
    *(f"encodings.{name}" for name in ENCODINGS),
    "html.entities",
    "html.parser",
    "inspect",
    "json.decoder",
    "linecache",
    "traceback",
)
"""Modules that the ones above import late, or that the child itself needs."""

WITHHELD = frozenset({
    # files, processes, signals, descriptors, threads
    "fcntl", "os", "os.path", "posix", "pwd", "resource", "select", "selectors", "shutil", "signal", "_signal",
    "socket", "_socket", "subprocess", "_posixsubprocess", "tempfile", "threading",
    # memory
    "ctypes", "ctypes._endian", "_ctypes", "gc", "mmap", "_mmap",
    # ways to load more
    "_frozen_importlib", "_frozen_importlib_external", "_imp", "importlib", "marshal", "zipimport",
})  # fmt: skip
"""Modules that the zygote or a safe module has loaded, and that functions do not import."""

_OWN = ("__main__", __package__)


def is_withheld(name: str) -> bool:
    """Whether a module of the standard library is kept from functions."""
    return is_allowed(name, WITHHELD) and not is_allowed(name, SAFE_IMPORTS)


def is_own(name: str) -> bool:
    """Whether a module belongs to the zygote itself."""
    return name.partition(".")[0] in _OWN


def is_allowed(name: str, allowed: frozenset[str]) -> bool:
    """Whether a dotted module name, or a package above it, is in the list."""
    while name:
        if name in allowed:
            return True
        name = name.rpartition(".")[0]
    return False
