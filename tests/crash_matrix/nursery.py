"""Processes of the product that start immediately: forks of one that has imported everything and started nothing.

    python -m tests.crash_matrix.nursery        (reads lines of JSON from standard input; answers with pids)

A matrix starts hundreds of workers and orchestrators, and most of a start is imports.
"""

from __future__ import annotations

import ctypes
import gc
import json
import math
import os
import signal
import sys
from importlib import import_module
from typing import Any

from tests.support.lanes import fork_lanes

PR_SET_PDEATHSIG = 1
# Without `workers.app` and `workers.heartbeat`, which create a worker's own objects at import.
IMPORTED = (
    "anthropic",
    "anyio._core._sockets",
    "anyio._core._streams",
    "billiard.heap",
    "billiard.popen_fork",
    "billiard.sharedctypes",
    "celery.app.routes",
    "celery.apps.worker",
    "celery.bin.celery",
    "celery.concurrency.prefork",
    "celery.worker.consumer",
    "cffi.cparser",
    "genai_prices.data",
    "kombu.matcher",
    "kombu.pidbox",
    "kombu.transport.redis",
    "orchestrator.cli",
    "orchestrator.service",
    "psycopg",
    "shared.sandbox.host",
    "shared.tasks.sql",
    "shared.telemetry",
    "tests.crash_matrix.points",
    "uvicorn.loops.auto",
    "uvicorn.protocols.http.auto",
    "workers.factory",
    "workers.minion",
    "workers.llm.anthropic",
)


def main() -> None:
    """Fork a process for each line."""
    for name in IMPORTED:
        import_module(name)
    # All forks share the objects that exist by now, and no garbage collection touches them again.
    gc.collect()
    gc.freeze()
    # The kernel reaps ended children.
    signal.signal(signal.SIGCHLD, signal.SIG_IGN)
    print("ready", flush=True)
    for line in sys.stdin:
        birth = json.loads(line)
        if (pid := os.fork()) == 0:
            _live(birth)
        print(pid, flush=True)


def _live(birth: dict[str, Any]) -> None:
    """Become the requested process in the child, and never return."""
    os.setsid()
    ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGKILL)
    signal.signal(signal.SIGCHLD, signal.SIG_DFL)
    log = os.open(birth["log"], os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)
    nothing = os.open(os.devnull, os.O_RDONLY)
    for source, target in ((nothing, 0), (log, 1), (log, 2)):
        os.dup2(source, target)
    os.environ.update(birth["env"])
    sys.argv = [sys.argv[0], *birth["argv"]]
    try:
        _begin(birth["role"])
    except SystemExit as ended:
        os._exit(ended.code if isinstance(ended.code, int) else 1)
    finally:
        sys.stderr.flush()
    os._exit(0)


def _begin(role: str) -> None:
    from shared.settings import get_settings
    from tests.crash_matrix.points import watch

    get_settings.cache_clear()
    watch(role)
    if role == "worker":
        from celery.bin.celery import main as celery

        from workers import pack, pack_request

        fork_lanes()
        # A task that waits at a point is not long, and the ends of a pack are one group.
        pack_request.STUCK_SECONDS = pack_request.LONG_SECONDS = pack.GROUP_SECONDS = math.inf
        celery()
    else:
        from orchestrator.commands.processes import orchestrator

        orchestrator()


if __name__ == "__main__":
    main()
