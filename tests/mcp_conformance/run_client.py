"""Run the official conformance suite against our MCP client, and print its table. Needs npx.

    python -m tests.mcp_conformance.run_client [--scenario NAME] [--output FOLDER]

Exits with 1 if a scenario fails that must pass, or passes that is expected to fail. docs/mcp-client.md explains each.
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
from pathlib import Path

SUITE = "@modelcontextprotocol/conformance@0.2.0-alpha.12"
# The suite needs a later Node than many machines have; the package `node` brings it.
RUN = ("npx", "--yes", "--package", "node@22", "--package", SUITE, "conformance")
REVISION = "2026-07-28"
EXPECTED = Path(__file__).parent / "expected_client_failures.yaml"
MODULE = "tests.mcp_conformance.client"
TIMEOUT_MS = "180000"
"""The suite starts all of its clients at the same time."""


def main() -> None:
    """Run the suite."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--scenario", help="only this one, with all its checks")
    parser.add_argument("--output", type=Path, help="keep the checks of each scenario in this folder")
    options = parser.parse_args()
    chosen = ["--scenario", options.scenario, "--spec-version", REVISION, "--verbose"] if options.scenario else []
    chosen = chosen or ["--requirements", REVISION, "--expected-failures", str(EXPECTED)]
    kept = ["--output-dir", str(options.output.resolve())] if options.output else []
    client = f"{sys.executable} -m {MODULE}"
    root = {**os.environ, "PYTHONPATH": str(Path(__file__).parents[2])}
    ended = subprocess.run(
        [*RUN, "client", "--command", client, "--timeout", TIMEOUT_MS, *chosen, *kept], check=False, env=root
    )
    sys.exit(ended.returncode)


if __name__ == "__main__":
    main()
