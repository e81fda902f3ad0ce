"""Accepts tasks and decides where and when they run; never runs an agent."""

import runpy
from pathlib import Path

runpy.run_path(str(Path(__file__).resolve().parent.parent / "shared" / "siblings.py"))
