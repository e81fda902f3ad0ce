"""Builtin tools of a module that is in no installed package, offered to the workers of `minion dev`.

Workers find all builtin tools by the entry points of installed packages. This is such a package: a folder on their
path, with a module that imports the author's one. The author's folder comes last on the path and hides no other module.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from importlib.metadata import entry_points
from importlib.util import find_spec
from pathlib import Path

GROUP = "minions.tools"
SHIM = """import sys
from importlib import import_module

sys.path.append({folder!r})
PLACES = {places!r}


def __getattr__(name):
    if name not in PLACES:
        raise AttributeError(name)
    module, _, attribute = PLACES[name].partition(":")
    return getattr(import_module(module), attribute)
"""


class OfferedTools:
    """A package of tools that changes while its author works on them."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._about = folder / "minions_development-0.dist-info"
        self._about.mkdir(parents=True, exist_ok=True)
        (self._about / "METADATA").write_text("Metadata-Version: 2.1\nName: minions-development\nVersion: 0\n")
        self.offer({}, Path())

    def environment(self) -> dict[str, str]:
        """Return the variables with which a worker finds the package."""
        paths = filter(None, (str(self.folder), os.environ.get("PYTHONPATH")))
        return {"PYTHONPATH": os.pathsep.join(paths)}

    def offer(self, places: Mapping[str, str], root: Path) -> None:
        """Offer these tools, other than those that an installed package offers.

        Args:
            places: `module:attribute` by the name of the tool.
            root: the folder from which the modules are imported.
        """
        missing = {name: place for name, place in places.items() if not entry_points(group=GROUP, name=name)}
        named = {f"tool_{number}": place for number, place in enumerate(missing.values())}
        lines = [f"{name} = minions_development:{shim}\n" for name, shim in zip(missing, named, strict=True)]
        (self.folder / "minions_development.py").write_text(SHIM.format(folder=str(root), places=named))
        (self._about / "entry_points.txt").write_text("".join([f"[{GROUP}]\n", *lines]))


def sources_of(names: list[str]) -> set[Path]:
    """Return the files and folders of installed packages that offer these tools and that an author edits."""
    roots = {entry.module.partition(".")[0] for name in names for entry in entry_points(group=GROUP, name=name)}
    specs = filter(None, map(find_spec, sorted(roots)))
    places = {Path(place) for spec in specs for place in (spec.submodule_search_locations or [spec.origin or ""])}
    return {place for place in places if place.exists() and "site-packages" not in place.parts}
