"""Paths of memory files. They name rows, not files of a system, and a path has one form."""

from __future__ import annotations

import re
import unicodedata

from shared.errors import InvalidInput

ROOT = "/memories"
MAX_LENGTH = 500
# Some servers decode such a text a second time.
ENCODED = re.compile(r"%(2e|2f|5c|00)", re.IGNORECASE)


def checked_path(path: str) -> str:
    """Return a path without a slash at its end, in the composed form of Unicode (NFC).

    Raises:
        InvalidInput: it is not below /memories, or has a part that no file may have.
    """
    path = unicodedata.normalize("NFC", path)
    parts = path.rstrip("/").split("/")
    if parts[:2] != ["", "memories"]:
        raise InvalidInput(f"Error: Invalid path {path[:MAX_LENGTH]}. It must start with {ROOT}.")
    if any(part in ("", ".", "..") for part in parts[2:]) or "\\" in path or ENCODED.search(path):
        raise InvalidInput(f"Error: Invalid path {path[:MAX_LENGTH]}. It must have no empty part, `.`, `..` or `\\`.")
    if len(path) > MAX_LENGTH or not path.isprintable():
        raise InvalidInput(f"Error: Invalid path. It must be printable, and have {MAX_LENGTH} characters at most.")
    return "/".join(parts)


def parent(path: str) -> str:
    """Return the directory of a path."""
    return path.rpartition("/")[0]


def is_below(path: str, directory: str) -> bool:
    """Return whether a path is in a directory, at any depth."""
    return path.startswith(f"{directory}/")
