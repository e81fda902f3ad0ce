"""Source files that an author edits, and which of them have changed."""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator
from pathlib import Path

SUFFIXES = (".py", ".yaml", ".yml", ".json")
OF_TOOLS = frozenset({"__pycache__", "node_modules", "venv", "site-packages", "build", "dist"})
"""Folders that hold no sources. Hidden ones do not either."""


class Sources:
    """The source files below some folders. A folder may be a file.

    Attributes:
        without: a folder that is not looked into.
    """

    def __init__(self, folders: Iterable[Path], *, without: Path) -> None:
        self.folders = {*folders}
        self.without = str(without.resolve())
        self._known = self._look()

    def add(self, folders: Iterable[Path]) -> None:
        """Watch these too, from now on."""
        if new := {*folders} - self.folders:
            self.folders |= new
            self._known = {**self._look(), **self._known}

    def changed(self) -> set[Path]:
        """Return the files that were written, added or removed since the last call."""
        before, self._known = self._known, self._look()
        return {Path(file) for file, _ in before.items() ^ self._known.items()}

    def _look(self) -> dict[str, tuple[int, int]]:
        found = {}
        for file in self._files():
            try:
                state = os.stat(file)
            except OSError:
                continue  # it was removed in this moment, or is a broken link
            found[file] = (state.st_mtime_ns, state.st_size)
        return found

    def _files(self) -> Iterator[str]:
        for folder in self.folders:
            if folder.is_file():
                yield str(folder)
            for place, inside, files in os.walk(folder):
                inside[:] = [name for name in inside if self._is_looked_into(place, name)]
                yield from (os.path.join(place, name) for name in files if name.endswith(SUFFIXES))

    def _is_looked_into(self, place: str, name: str) -> bool:
        return not name.startswith(".") and name not in OF_TOOLS and os.path.join(place, name) != self.without
