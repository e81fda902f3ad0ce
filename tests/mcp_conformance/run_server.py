"""Run the official conformance suite against our MCP server, and print its table. Needs npx.

    python -m tests.mcp_conformance.run_server [--scenario NAME] [--output FOLDER]

Exits with 1 if a scenario fails that must pass, or passes that is expected to fail. docs/mcp-server.md explains each.
"""

from __future__ import annotations

import signal
import subprocess
import sys
import tempfile
from pathlib import Path

from tests.mcp_conformance import suite
from tests.mcp_conformance.system import running

EXPECTED = Path(__file__).parent / "expected_server_failures.yaml"


def main() -> None:
    """Run the suite."""
    chosen = suite.choice("Run the conformance suite against our MCP server.", expected_failures=EXPECTED)
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
    with tempfile.TemporaryDirectory() as folder, running(Path(folder)) as url:
        ended = subprocess.run([*suite.RUN, "server", "--url", url, *chosen], check=False)
    sys.exit(ended.returncode)


if __name__ == "__main__":
    main()
