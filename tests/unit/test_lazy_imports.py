"""Processes start without the libraries that they may not need: a start is mostly imports.

The Anthropic SDK takes 40 MB and half a second: only processes that call a model, or whose forks do, load it. The
orchestrator loads it when there are calls in the batch lane.
"""

from __future__ import annotations

import os
import subprocess
import sys

import pytest

ALL_OF = """
import pkgutil, importlib, {0}
for module in pkgutil.walk_packages({0}.__path__, "{0}."):
    if module.name != "orchestrator.batches.api":
        importlib.import_module(module.name)
"""
WORKER = """
import workers.app
from workers.shared_memory import share_memory
share_memory()
"""
COMMAND = """
from orchestrator.cli import app
app(["submit", "--help"], standalone_mode=False)
"""
SDK = {"anthropic"}
OF_MIGRATIONS_AND_SENTRY = {"alembic", "mako", "sentry_sdk"}
OF_SERVERS = {"celery", "jsonschema", "kombu", "psycopg", "redis", "sqlalchemy"}
NO_SERVER = {"DATABASE_URL": "postgresql://127.0.0.1:1/none", "REDIS_URL": "redis://127.0.0.1:1/0"}


@pytest.mark.parametrize(
    ("program", "unneeded"),
    [
        (ALL_OF.format("orchestrator"), SDK),
        (ALL_OF.format("shared"), SDK),
        ("import orchestrator.service", SDK | OF_MIGRATIONS_AND_SENTRY),
        (WORKER, SDK | OF_MIGRATIONS_AND_SENTRY),
        (COMMAND, SDK | OF_MIGRATIONS_AND_SENTRY | OF_SERVERS),
        ("import orchestrator.mcp.stdio", SDK | OF_MIGRATIONS_AND_SENTRY | OF_SERVERS | {"fastapi"}),
    ],
    ids=["all of the orchestrator", "all of shared", "orchestrator", "worker", "command", "MCP over stdio"],
)
def test_process_starts_without_libraries_that_it_may_not_need(program: str, unneeded: set[str]) -> None:
    ended = subprocess.run(
        [sys.executable, "-c", f"{program}\nimport sys\nprint(*sys.modules)"],
        env={**os.environ, **NO_SERVER, "ANTHROPIC_API_KEY": "test-key"},
        stdout=subprocess.PIPE,
        text=True,
        check=True,
    )
    assert unneeded & set(ended.stdout.splitlines()[-1].split()) == set()
