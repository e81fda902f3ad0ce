"""Check that Python finds the packages beside this one, and no others of their names.

A user's own folder often has a `shared` or a `workers`, and `PYTHONPATH` or `python -m` may put it first.
`orchestrator` and `workers` run this file before they import anything: by its path, because `shared` itself may be the
foreign one.
"""

from __future__ import annotations

from importlib.util import find_spec
from pathlib import Path

PACKAGES = ("migrations", "minions", "orchestrator", "shared", "workers")
ROOT = Path(__file__).resolve().parent.parent

for name in PACKAGES:
    spec = find_spec(name)
    if spec is not None and spec.origin is not None and Path(spec.origin).resolve().parent != ROOT / name:
        raise ImportError(
            f"Python finds a foreign package {name!r}, {spec.origin}, before the package of Minions, {ROOT / name}. "
            "Remove its folder from PYTHONPATH, start the process in another folder, or rename the package."
        )
