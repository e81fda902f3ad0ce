"""Run the official conformance suite against our MCP server, and print its table. Needs npx.

    python -m tests.mcp_conformance.run_server [--scenario NAME] [--output FOLDER]

Exits with 1 if a scenario fails that must pass, or passes that is expected to fail. docs/mcp-server.md explains each.
"""

from __future__ import annotations

import argparse
import signal
import subprocess
import sys
import tempfile
from pathlib import Path

from tests.mcp_conformance.system import running

SUITE = "@modelcontextprotocol/conformance@0.2.0-alpha.12"
# The suite needs a later Node than many machines have; the package `node` brings it.
RUN = ("npx", "--yes", "--package", "node@22", "--package", SUITE, "conformance")
REVISION = "2026-07-28"
EXPECTED = Path(__file__).parent / "expected_server_failures.yaml"


def main() -> None:
    """Run the suite."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--scenario", help="only this one, with all its checks")
    parser.add_argument("--output", type=Path, help="keep the checks of each scenario in this folder")
    options = parser.parse_args()
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
    chosen = ["--scenario", options.scenario, "--spec-version", REVISION, "--verbose"] if options.scenario else []
    chosen = chosen or ["--requirements", REVISION, "--expected-failures", str(EXPECTED)]
    kept = ["--output-dir", str(options.output.resolve())] if options.output else []
    with tempfile.TemporaryDirectory() as folder, running(Path(folder)) as url:
        ended = subprocess.run([*RUN, "server", "--url", url, *chosen, *kept], check=False)
    sys.exit(ended.returncode)


if __name__ == "__main__":
    main()
