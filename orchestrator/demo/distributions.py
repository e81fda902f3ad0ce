"""Reads the distributions installed in this Python environment, tolerating broken metadata.

`importlib.metadata` finds the distributions, but trusts their files: a METADATA file that is missing or not UTF-8, a
RECORD with a wrong line, or an entry point without a value raises an error from its properties. Here each of those is
an empty field instead.
"""

from __future__ import annotations

import email.message
import email.parser
import re
from collections.abc import Callable
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path
from typing import Any, TypeVar

Value = TypeVar("Value")

# Versioned libraries have names such as libpq.so.5.
NATIVE_LIBRARY = re.compile(r"\.(so(\.[0-9.]+)?|pyd|dylib|dll|exe)$")
# Magic numbers of programs: ELF, and Mach-O for one processor or several.
PROGRAMS = (b"\x7fELF", b"\xcf\xfa\xed\xfe", b"\xca\xfe\xba\xbe")
LICENCE_FILE = re.compile(r"(^|/)(licen[cs]e|copying|unlicen[cs]e|copyright)[^/]*$", re.IGNORECASE)

# Limits of the contents of a task's record.
TEXTS, TEXT_LENGTH = 6, 4000
ITEMS, ITEM_LENGTH = 200, 300


@dataclass(frozen=True)
class Distribution:
    """One installed distribution."""

    name: str
    version: str
    source: metadata.Distribution

    @property
    def key(self) -> str:
        """The name in the form in which PEP 503 compares names."""
        return normalised(self.name)

    def inspect(self) -> dict[str, Any]:
        """Return the declared licence and the facts; every text is free of NUL and bounded in length."""
        fields = _metadata(self.source)
        files = _files(self.source)
        texts = _licence_texts(files)
        return {
            "name": self.name,
            "version": self.version,
            "licence_expression": _field(fields, "License-Expression"),
            "licence_field": _field(fields, "License", unless="UNKNOWN"),
            "licence_classifiers": [c for c in _fields(fields, "Classifier") if c.startswith("License ::")],
            "licence_texts": list(texts.values()),
            "facts": {
                "summary": _field(fields, "Summary", unless="UNKNOWN")[:ITEM_LENGTH],
                **_sizes(files),
                "requirements": _fields(fields, "Requires-Dist"),
                "entry_points": _entry_points(self.source),
                "licence_files": list(texts),
            },
        }


def installed() -> list[Distribution]:
    """Return every distribution of this environment once, sorted by name; of two copies, the one that import uses."""
    found: dict[str, Distribution] = {}
    for source in metadata.distributions():
        distribution = _identified(source)
        if distribution:
            found.setdefault(distribution.key, distribution)
    return [found[key] for key in sorted(found)]


def find(name: str) -> Distribution:
    """Return the installed distribution of a name in any spelling.

    Raises:
        LookupError: no such distribution is installed.
    """
    direct = _attempt(lambda: _identified(metadata.distribution(name)), None)
    if direct and direct.key == normalised(name):
        return direct
    # The folder's name does not match the name in the metadata: check all of them.
    for distribution in installed():
        if distribution.key == normalised(name):
            return distribution
    raise LookupError(f"No distribution called {name!r} is installed here.")


def normalised(name: str) -> str:
    """Return the name in the form in which PEP 503 compares names."""
    return re.sub(r"[-_.]+", "-", name).lower()


def _identified(source: metadata.Distribution) -> Distribution | None:
    """Return the distribution with its name and version, taken from its folder's name if the metadata lack them."""
    fields = _metadata(source)
    folder = _folder(source)
    folder_name, _, folder_version = (folder.stem if folder else "").partition("-")
    name = _field(fields, "Name")[:ITEM_LENGTH] or _clean(folder_name)
    version = _field(fields, "Version")[:ITEM_LENGTH] or _clean(folder_version)
    # pip leaves folders such as `~ip-23.0.dist-info` behind when it is interrupted: they are not installed.
    return Distribution(name, version, source) if re.match(r"[A-Za-z0-9]", name) else None


def _metadata(source: metadata.Distribution) -> email.message.Message:
    """Return the header fields; empty if there are none."""
    text = _attempt(lambda: source.read_text("METADATA") or source.read_text("PKG-INFO"), None)
    return email.parser.HeaderParser().parsestr(text or _raw_metadata(_folder(source)))


def _raw_metadata(folder: Path | None) -> str:
    """Return the metadata file with invalid UTF-8 replaced; empty if there is no such file."""
    if folder is None:
        return ""
    file = folder if folder.is_file() else folder / "METADATA"
    return _text(file)


def _folder(source: metadata.Distribution) -> Path | None:
    # Private, but the only access to a distribution whose metadata cannot be read.
    path = getattr(source, "_path", None)
    return path if isinstance(path, Path) else None


def _field(fields: email.message.Message, name: str, *, unless: str = "") -> str:
    """Return a field's text; empty if it is missing or is the placeholder that old tools wrote."""
    value = _clean(str(fields.get(name, "")))[:TEXT_LENGTH]
    return "" if value == unless else value


def _fields(fields: email.message.Message, name: str) -> list[str]:
    return [_clean(str(value))[:ITEM_LENGTH] for value in fields.get_all(name, [])][:ITEMS]


def _files(source: metadata.Distribution) -> list[tuple[str, Path]]:
    """Return each recorded file as (recorded path, path on disk); empty without a readable record."""
    recorded: list[metadata.PackagePath] = _attempt(lambda: list(source.files or []), [])
    return [(file.as_posix(), Path(str(source.locate_file(file)))) for file in recorded]


def _sizes(files: list[tuple[str, Path]]) -> dict[str, int]:
    """Return the number and bytes of the files on disk, and the number of recorded files that are missing."""
    counts = {"bytes": 0, "files": 0, "missing_files": 0, "native_files": 0}
    for name, path in files:
        status = _attempt(path.stat, None)
        if status is None:
            counts["missing_files"] += 1
        else:
            counts["files"] += 1
            counts["bytes"] += status.st_size
            counts["native_files"] += _is_native(name, path, executable=bool(status.st_mode & 0o111))
    return counts


def _is_native(name: str, path: Path, *, executable: bool) -> bool:
    """Return whether a file is machine code: a library by its name, a program by its first bytes."""
    if NATIVE_LIBRARY.search(name):
        return True
    return executable and not path.suffix and _attempt(lambda: _first_bytes(path), b"").startswith(PROGRAMS)


def _first_bytes(path: Path) -> bytes:
    with path.open("rb") as file:
        return file.read(4)


def _licence_texts(files: list[tuple[str, Path]]) -> dict[str, str]:
    """Return the beginning of each licence file, by recorded path."""
    inside = [(name, path) for name, path in files if re.search(r"\.(dist|egg)-info/", name)]
    licences = [(name, path) for name, path in inside if LICENCE_FILE.search(name)]
    texts = {_clean(name): _text(path)[:TEXT_LENGTH] for name, path in licences[:TEXTS]}
    return {name: text for name, text in texts.items() if text}


def _entry_points(source: metadata.Distribution) -> list[str]:
    """Return the entry points as `group: name`."""
    points: list[str] = _attempt(lambda: [f"{point.group}: {point.name}" for point in source.entry_points], [])
    return [_clean(point)[:ITEM_LENGTH] for point in sorted(points)][:ITEMS]


def _text(path: Path) -> str:
    """Return a file's text with invalid UTF-8 replaced; empty if it cannot be read."""
    return _clean(_attempt(lambda: path.read_text(encoding="utf-8", errors="replace"), ""))


def _clean(text: str) -> str:
    """Make a text valid for JSON and PostgreSQL: no NUL, no lone surrogates, no surrounding whitespace."""
    return text.encode("utf-8", "replace").decode().replace("\x00", "").strip()


def _attempt(read: Callable[[], Value], otherwise: Value) -> Value:
    """Return the value read, or the default if third-party files or parsers fail in any way."""
    try:
        return read()
    except Exception:
        return otherwise
