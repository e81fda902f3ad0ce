"""A DBOS process with a queue of no-op workflows.

python -m benchmarks.apps.dbos_app DATABASE NAME
"""

from __future__ import annotations

import signal
import sys
import threading
from typing import Any

from dbos import DBOS, DBOSConfig

from benchmarks.systems.system import WORKER_POLL_SECONDS


def _config(address: str, **more: Any) -> DBOSConfig:
    config: Any = {
        "name": "bench",
        "system_database_url": address,
        "application_version": "1",
        "log_level": "WARNING",
        **more,
    }
    return config


def migrate(address: str) -> None:
    """Create the tables and the queue."""
    DBOS(config=_config(address))
    DBOS.launch()
    DBOS.register_queue("bench", polling_interval_sec=WORKER_POLL_SECONDS)
    DBOS.destroy()


def main() -> None:
    """Run workflows until SIGTERM."""
    ended = threading.Event()
    signal.signal(signal.SIGTERM, lambda *_: ended.set())
    DBOS(config=_config(sys.argv[1], executor_id=sys.argv[2]))

    @DBOS.workflow(name="noop")
    def noop(value: Any) -> Any:
        return value

    DBOS.launch()
    DBOS.register_queue("bench", polling_interval_sec=WORKER_POLL_SECONDS)
    ended.wait()
    DBOS.destroy()


if __name__ == "__main__":
    main()
