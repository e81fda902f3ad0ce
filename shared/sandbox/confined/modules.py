"""The modules that a function may import.

Everything named here is loaded by the zygote before it is confined: afterwards there is no file system to
load from. A module that another one imports late (`_strptime`, codecs, zone data) is listed in `HIDDEN`.
"""

from __future__ import annotations

from collections.abc import Collection

DEFAULT_IMPORTS = frozenset({"json", "datetime", "math", "re", "collections", "itertools", "functools"})
"""Modules that every function store has allowed since the first version."""

LANGUAGE_IMPORTS = frozenset({"__future__", "abc", "collections.abc", "dataclasses", "enum", "typing"})
"""Modules that every function may import, whatever its list says: parts of the language itself."""

SAFE_IMPORTS = DEFAULT_IMPORTS | LANGUAGE_IMPORTS | {
    # language support
    "ast", "contextlib", "copy", "logging", "numbers", "operator", "sys", "traceback", "types",
    # numbers and randomness
    "bisect", "cmath", "decimal", "fractions", "heapq", "random", "secrets", "statistics",
    # text
    "base64", "binascii", "csv", "difflib", "email", "html", "io", "mimetypes", "pathlib", "posixpath", "pprint",
    "shlex", "string", "textwrap", "tomllib", "unicodedata", "urllib.parse", "xml.etree.ElementTree",
    # time
    "calendar", "time", "zoneinfo",
    # digests, packing, identifiers
    "colorsys", "gzip", "hashlib", "hmac", "ipaddress", "struct", "uuid", "zipfile", "zlib",
    # order and concurrency
    "array", "asyncio", "contextvars", "graphlib", "queue", "weakref",
}  # fmt: skip
"""Modules that only compute: the default of `Sandbox.call`."""

_PATHS = {"basename", "commonpath", "commonprefix", "dirname", "isabs", "join", "normcase", "normpath", "split"}
_PATHS |= {"splitdrive", "splitext", "splitroot", "altsep", "curdir", "extsep", "pardir", "pathsep", "sep"}

PARTS = {
    "gzip": frozenset({"BadGzipFile", "GzipFile", "compress", "decompress", "open"}),
    "logging": frozenset({
        "CRITICAL", "DEBUG", "ERROR", "FATAL", "INFO", "NOTSET", "WARN", "WARNING",
        "BASIC_FORMAT", "BufferingFormatter", "Filter", "Filterer", "Formatter", "Handler", "LogRecord", "Logger",
        "LoggerAdapter", "NullHandler", "PercentStyle", "StrFormatStyle", "StreamHandler", "StringTemplateStyle",
        "addLevelName", "basicConfig", "critical", "debug", "disable", "error", "exception", "fatal", "getLevelName",
        "getLevelNamesMapping", "getLogger", "info", "lastResort", "log", "makeLogRecord", "raiseExceptions", "root",
        "warn", "warning",
    }),
    "mimetypes": frozenset({
        "add_type", "common_types", "encodings_map", "guess_all_extensions", "guess_extension", "guess_type",
        "suffix_map", "types_map",
    }),
    "pathlib": frozenset({"PurePath", "PurePosixPath", "PureWindowsPath"}),
    "posixpath": frozenset(_PATHS),
    "sys": frozenset({
        "byteorder", "exc_info", "exit", "float_info", "getdefaultencoding", "getrecursionlimit", "getsizeof",
        "hash_info", "hexversion", "int_info", "intern", "maxsize", "maxunicode", "platform", "setrecursionlimit",
        "stderr", "stdout", "version", "version_info",
    }),
    "traceback": frozenset({
        "FrameSummary", "TracebackException", "extract_tb", "format_exc", "format_exception", "format_exception_only",
        "format_list", "format_tb", "print_exc", "print_exception", "print_list", "print_tb",
    }),
    "xml.etree.ElementTree": frozenset({
        "C14NWriterTarget", "Comment", "Element", "ElementTree", "PI", "ParseError", "ProcessingInstruction", "QName",
        "SubElement", "TreeBuilder", "XML", "XMLID", "XMLParser", "XMLPullParser", "canonicalize", "dump", "fromstring",
        "fromstringlist", "indent", "iselement", "iterparse", "parse", "register_namespace", "tostring", "tostringlist",
    }),
    "zipfile": frozenset({
        "BadZipFile", "LargeZipFile", "ZIP_BZIP2", "ZIP_DEFLATED", "ZIP_LZMA", "ZIP_STORED", "ZipFile", "ZipInfo",
        "is_zipfile",
    }),
}  # fmt: skip
"""Modules of which a function sees these names only: pure computation, no files, no interpreter internals."""

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
"""Text encodings other than UTF-8."""

EMAIL = (
    "_header_value_parser", "base64mime", "charset", "contentmanager", "encoders", "errors", "feedparser", "generator",
    "header", "headerregistry", "iterators", "message", "mime.application", "mime.audio", "mime.image", "mime.message",
    "mime.multipart", "mime.text", "parser", "policy", "quoprimime", "utils",
)  # fmt: skip
"""The package's modules: it imports them late."""

HIDDEN = (
    "_strptime",
    *(f"email.{name}" for name in EMAIL),
    *(f"encodings.{name}" for name in ENCODINGS),
    "html.entities",
    "html.parser",
    "inspect",
    "json.decoder",
    "linecache",
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
    """Return whether a module of the standard library is withheld from functions."""
    return is_allowed(name, WITHHELD) and not is_allowed(name, SAFE_IMPORTS)


def is_own(name: str) -> bool:
    """Return whether a module belongs to the zygote itself."""
    return name.partition(".")[0] in _OWN


def is_allowed(name: str, allowed: Collection[str]) -> bool:
    """Return whether a dotted module name, or a package above it, is in the list."""
    if name in allowed:
        return True
    while name := name.rpartition(".")[0]:
        if name in allowed:
            return name not in PARTS
    return False
