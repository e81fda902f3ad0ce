"""Standard-library classes and functions that take a path or a file object, as functions see them.

A path is refused with a clear error, before the kernel refuses it.
"""

from __future__ import annotations

import email.utils
import gzip
import logging
import os
import sys
import xml.etree.ElementTree as ET
import zipfile
from typing import IO, Any, NoReturn

NO_FILES = "there are no files in the sandbox: pass a file object, such as io.BytesIO(content) or io.StringIO(text)"
MAX_FRAMES = 10_000
"""Python frames that a function may request: more could overflow the C stack."""


def _refuse_path(given: object) -> None:
    if isinstance(given, str | bytes | os.PathLike | int):
        raise ValueError(NO_FILES)


class GzipFile(gzip.GzipFile):
    """`gzip.GzipFile` over a file object."""

    def __init__(
        self,
        filename: str | None = None,
        mode: str | None = None,
        compresslevel: int = 9,
        fileobj: IO[bytes] | None = None,
        mtime: float | None = None,
    ) -> None:
        if fileobj is None:
            raise ValueError(NO_FILES)
        super().__init__(filename, mode, compresslevel, fileobj, mtime)


def open_gzip(filename: Any, *arguments: Any, **options: Any) -> Any:
    """`gzip.open` for a file object."""
    _refuse_path(filename)
    return gzip.open(filename, *arguments, **options)


class ZipFile(zipfile.ZipFile):
    """`zipfile.ZipFile` over a file object."""

    def __init__(self, file: Any, *arguments: Any, **options: Any) -> None:
        _refuse_path(file)
        super().__init__(file, *arguments, **options)

    def _no_files(self, *_: Any, **__: Any) -> NoReturn:
        raise ValueError("there are no files in the sandbox: use `read` and `writestr`")

    write = extract = extractall = _no_files


def is_zipfile(filename: Any) -> bool:
    """`zipfile.is_zipfile` for a file object."""
    _refuse_path(filename)
    return zipfile.is_zipfile(filename)


class ElementTree(ET.ElementTree):
    """`ElementTree` that reads from file objects and writes to them."""

    def __init__(self, element: Any = None, file: Any = None) -> None:
        _refuse_path(file)
        super().__init__(element, file)

    def parse(self, source: Any, parser: Any = None) -> Any:
        """Read the document from a file object."""
        _refuse_path(source)
        return super().parse(source, parser)

    def write(self, file_or_filename: Any, *arguments: Any, **options: Any) -> None:
        """Write the document to a file object."""
        _refuse_path(file_or_filename)
        super().write(file_or_filename, *arguments, **options)


def parse_xml(source: Any, parser: Any = None) -> ElementTree:
    """`ElementTree.parse` for a file object."""
    tree = ElementTree()
    tree.parse(source, parser)
    return tree


def iterparse(source: Any, *arguments: Any, **options: Any) -> Any:
    """`ElementTree.iterparse` for a file object."""
    _refuse_path(source)
    return ET.iterparse(source, *arguments, **options)  # noqa: S314 that is what a confined process is for


def canonicalize(xml_data: Any = None, *, out: Any = None, from_file: Any = None, **options: Any) -> Any:
    """`ElementTree.canonicalize` for a text or a file object."""
    _refuse_path(from_file)
    return ET.canonicalize(xml_data, out=out, from_file=from_file, **options)


def configure_logging(**options: Any) -> None:
    """`logging.basicConfig` without files: log output is part of the function's printed output."""
    if options.get("filename") is not None:
        raise ValueError("there are no files in the sandbox: leave out `filename`, and the log is printed")
    logging.basicConfig(**options)


def make_msgid(idstring: str | None = None, domain: str = "localhost") -> str:
    """`email.utils.make_msgid` without the name of this machine."""
    return email.utils.make_msgid(idstring, domain)


def limit_recursion(limit: int) -> None:
    """`sys.setrecursionlimit`, up to what the stack allows."""
    sys.setrecursionlimit(min(limit, MAX_FRAMES))


REPLACED: dict[str, dict[str, Any]] = {
    "email.utils": {"make_msgid": make_msgid},
    "gzip": {"GzipFile": GzipFile, "open": open_gzip},
    "logging": {"basicConfig": configure_logging},
    "sys": {"setrecursionlimit": limit_recursion},
    "xml.etree.ElementTree": {
        "ElementTree": ElementTree,
        "canonicalize": canonicalize,
        "iterparse": iterparse,
        "parse": parse_xml,
    },
    "zipfile": {"ZipFile": ZipFile, "is_zipfile": is_zipfile},
}
"""Names that are replaced for functions, by module."""
