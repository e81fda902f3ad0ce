"""Accept tasks and decide where and when they run; never run an agent."""

import runpy
from pathlib import Path

runpy.run_path(str(Path(__file__).resolve().parent.parent / "shared" / "siblings.py"))
