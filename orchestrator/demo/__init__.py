"""The demo: an audit of every Python distribution installed where the workers run, built from definitions."""

from pathlib import Path

HERE = Path(__file__).parent

# What `minion apply` is given before the audit, and what the demo applies after it.
AGENTS = HERE / "agents"
UPGRADE = HERE / "upgrade"

__all__ = ["AGENTS", "UPGRADE"]
