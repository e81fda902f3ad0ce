"""The official conformance suite of the Model Context Protocol, as a command. Needs npx."""

from __future__ import annotations

import argparse
from pathlib import Path

SUITE = "@modelcontextprotocol/conformance@0.2.0-alpha.12"
# The suite needs a later Node than many machines have; the package `node` brings it.
RUN = ("npx", "--yes", "--package", "node@22", "--package", SUITE, "conformance")
REVISION = "2026-07-28"


def choice(description: str, *, expected_failures: Path) -> list[str]:
    """Return the arguments that choose scenarios, as this process was asked to: all required ones, or one in detail."""
    parser = argparse.ArgumentParser(description=description)
    parser.add_argument("--scenario", help="only this one, with all its checks")
    parser.add_argument("--output", type=Path, help="keep the checks of each scenario in this folder")
    options = parser.parse_args()
    chosen = ["--scenario", options.scenario, "--spec-version", REVISION, "--verbose"] if options.scenario else []
    chosen = chosen or ["--requirements", REVISION, "--expected-failures", str(expected_failures)]
    return chosen + (["--output-dir", str(options.output.resolve())] if options.output else [])
