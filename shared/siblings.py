"""Check that Python finds the packages beside this one and their client, and not others with the same names.

A user's own folder often has a `shared` or a `workers`, and `PYTHONPATH` or `python -m` may put it first.
`orchestrator` and `workers` run this file by its path, before they import anything, because `shared` itself may be the
foreign package.
"""

from __future__ import annotations

from importlib.util import find_spec
from pathlib import Path
from typing import NoReturn

PACKAGES = ("migrations", "orchestrator", "shared", "workers")
ROOT = Path(__file__).resolve().parent.parent


def folder_of(name: str) -> Path | None:
    """Return the folder that Python would import a package from; None if there is none."""
    spec = find_spec(name)
    return None if spec is None or spec.origin is None else Path(spec.origin).resolve().parent


def refuse(name: str, found: Path, ours: str) -> NoReturn:
    raise ImportError(
        f"Python finds a foreign package {name!r}, {found / '__init__.py'}, before {ours}. "
        "Remove its folder from PYTHONPATH, start the process in another folder, or rename the package."
    )


for name in PACKAGES:
    found = folder_of(name)
    if found is not None and found != ROOT / name:
        refuse(name, found, f"the package of Minions, {ROOT / name}")

# The client is a separate distribution, and may be installed in another place.
found = folder_of("minions")
if found is None:
    raise ImportError("The package minions-client is missing. Install it in the version of minions-server.")
if not (found / "operations.py").exists():
    refuse("minions", found, "the package of minions-client")
