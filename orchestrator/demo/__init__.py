"""The demo: an audit of every Python distribution installed where the workers run, built from definitions."""

from pathlib import Path

HERE = Path(__file__).parent

# Definitions that `minion apply` stores before the audit, and those that the demo applies after it.
AGENTS = HERE / "agents"
UPGRADE = HERE / "upgrade"

__all__ = ["AGENTS", "UPGRADE"]
