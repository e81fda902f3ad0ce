"""Claims a task, runs its agent, journals every step and writes the record."""

import runpy
from pathlib import Path

runpy.run_path(str(Path(__file__).resolve().parent.parent / "shared" / "siblings.py"))
