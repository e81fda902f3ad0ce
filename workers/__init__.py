"""Claim a task, run its agent, journal every step and write the record."""

import runpy
from pathlib import Path

runpy.run_path(str(Path(__file__).resolve().parent.parent / "shared" / "siblings.py"))
