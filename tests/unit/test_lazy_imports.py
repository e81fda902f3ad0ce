"""The Anthropic SDK takes 40 MB: only processes that call a model, or whose forks do, load it.

The orchestrator loads it when there are calls in the batch lane.
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
NO_SERVER = {"DATABASE_URL": "postgresql://127.0.0.1:1/none", "REDIS_URL": "redis://127.0.0.1:1/0"}


@pytest.mark.parametrize("program", [ALL_OF.format("orchestrator"), ALL_OF.format("shared"), WORKER])
def test_process_without_model_calls_does_not_load_the_sdk(program: str) -> None:
    assert not loads_sdk(program, ANTHROPIC_API_KEY="test-key")


def loads_sdk(program: str, **environment: str) -> bool:
    """Run a program in a fresh interpreter."""
    ended = subprocess.run(
        [sys.executable, "-c", f"{program}\nimport sys\nprint('anthropic' in sys.modules)"],
        env={**os.environ, **NO_SERVER, **environment},
        stdout=subprocess.PIPE,
        text=True,
        check=True,
    )
    return ended.stdout.splitlines()[-1] == "True"
