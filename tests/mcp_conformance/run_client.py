"""Run the official conformance suite against our MCP client, and print its table. Needs npx.

    python -m tests.mcp_conformance.run_client [--scenario NAME] [--output FOLDER]

Exits with 1 if a scenario fails that must pass, or passes that is expected to fail. docs/mcp-client.md explains each.
"""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

from tests.mcp_conformance import suite

EXPECTED = Path(__file__).parent / "expected_client_failures.yaml"
COMMAND = f"{sys.executable} -m tests.mcp_conformance.client"
TIMEOUT_MS = "180000"
"""The suite starts all of its clients at the same time."""


def main() -> None:
    """Run the suite."""
    chosen = suite.choice("Run the conformance suite against our MCP client.", expected_failures=EXPECTED)
    root = {**os.environ, "PYTHONPATH": str(Path(__file__).parents[2])}
    arguments = ("client", "--command", COMMAND, "--timeout", TIMEOUT_MS, *chosen)
    sys.exit(subprocess.run([*suite.RUN, *arguments], check=False, env=root).returncode)


if __name__ == "__main__":
    main()
