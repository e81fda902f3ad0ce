"""Lanes that start immediately, as in `tests.crash_matrix.nursery`: forks of a process that waits in greenlets.

python -m tests.crash_matrix.lane_nursery SOCKET        (answers with pids)
"""

from __future__ import annotations

import gc
import json
import os
import signal
import socket
import sys
from importlib import import_module
from typing import Any

from gevent import monkey

monkey.patch_all()

IMPORTED = ("workers.lane.process", "workers.llm.anthropic", "genai_prices.data", "tests.crash_matrix.points")


def main() -> None:
    """Fork a lane for each message."""
    for name in IMPORTED:
        import_module(name)
    gc.collect()
    gc.freeze()
    # The kernel reaps ended children.
    monkey.get_original("signal", "signal")(signal.SIGCHLD, signal.SIG_IGN)
    # Forks must not share an event loop of greenlets, which this process never runs. In gevent, closing a descriptor
    # waits for that loop, unless it is a regular file.
    plain: Any = monkey.get_original("socket", "socket")
    close: Any = monkey.get_original("os", "close")
    with plain(socket.AF_UNIX, socket.SOCK_SEQPACKET) as listener:
        listener.bind(sys.argv[1])
        listener.listen(64)
        while True:
            line = plain(fileno=listener._accept()[0])
            message, descriptors, *_ = socket.recv_fds(line, 1 << 20, 8)
            if (pid := os.fork()) == 0:
                listener.close()
                line.close()
                _live(json.loads(message), descriptors)
            # Its worker would not notice the end of a lane whose socket is open here too.
            for descriptor in descriptors:
                close(descriptor)
            line.send(str(pid).encode())
            line.close()


def _live(birth: dict[str, Any], descriptors: list[int]) -> None:
    """Become the lane in the child, and never return."""
    link, pulse, output, errors = descriptors
    os.setsid()
    monkey.get_original("signal", "signal")(signal.SIGCHLD, signal.SIG_DFL)
    os.dup2(output, 1)
    os.dup2(errors, 2)
    os.environ.clear()
    os.environ.update(birth["env"])
    sys.argv = ["lane", str(link), str(pulse), birth["worker"]]
    from shared.settings import get_settings
    from tests.crash_matrix.points import watch
    from workers.lane.process import main as live

    get_settings.cache_clear()
    watch("worker")
    try:
        live()
    finally:
        os._exit(1)


if __name__ == "__main__":
    main()
