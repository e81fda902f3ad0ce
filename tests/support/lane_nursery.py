"""Lanes that start immediately, as the processes of `tests.support.nursery`: forks of one that waits in greenlets.

    python -m tests.support.lane_nursery SOCKET [POINTS]        (answers with pids)

`POINTS` is a module whose `watch` each lane calls before it starts.
"""

from __future__ import annotations

import gc
import json
import os
import platform
import select
import signal
import socket
import sys
import time
import warnings
from contextlib import suppress
from importlib import import_module
from types import ModuleType
from typing import Any

from gevent import monkey

monkey.patch_all()

IMPORTED = ("workers.lane.process", "workers.llm.anthropic", "genai_prices.data")


def main() -> None:
    """Fork a lane for each message."""
    address, *points = sys.argv[1:]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        watched = [import_module(name) for name in (*IMPORTED, *points)][len(IMPORTED) :]
    # SDKs name it in headers. It asks a command for the processor, and a fork does not see the end of a command.
    platform.platform()
    gc.collect()
    gc.freeze()
    # The kernel reaps ended children.
    monkey.get_original("signal", "signal")(signal.SIGCHLD, signal.SIG_IGN)
    # Forks must not share an event loop of greenlets, which this process never runs. In gevent, closing a descriptor
    # waits for that loop, unless it is a regular file.
    plain: Any = monkey.get_original("socket", "socket")
    close: Any = monkey.get_original("os", "close")
    with plain(socket.AF_UNIX, socket.SOCK_SEQPACKET) as listener:
        listener.bind(address)
        listener.listen(64)
        while True:
            line = plain(fileno=listener._accept()[0])
            message, descriptors, *_ = socket.recv_fds(line, 1 << 20, 8)
            if (pid := os.fork()) == 0:
                listener.close()
                line.close()
                _live(json.loads(message), descriptors, watched)
            # Its worker would not notice the end of a lane whose socket is open here too.
            for descriptor in descriptors:
                close(descriptor)
            line.send(str(pid).encode())
            line.close()


def _live(birth: dict[str, Any], descriptors: list[int], watched: list[ModuleType]) -> None:
    """Become the lane in the child, and never return."""
    link, pulse, output, errors = descriptors
    os.setsid()
    monkey.get_original("_thread", "start_new_thread")(_end_with, (birth["parent"],))
    monkey.get_original("signal", "signal")(signal.SIGCHLD, signal.SIG_DFL)
    os.dup2(output, 1)
    os.dup2(errors, 2)
    os.environ.clear()
    os.environ.update(birth["env"])
    time.tzset()
    sys.path[:] = birth["path"]
    sys.argv = ["lane", str(link), str(pulse), str(os.getppid()), birth["worker"]]
    from shared.settings import get_settings
    from workers.lane.process import main as live

    get_settings.cache_clear()
    for points in watched:
        points.watch("worker")
    try:
        live()
    finally:
        os._exit(1)


def _end_with(worker: int) -> None:
    """End the lane with its worker, in a thread: for a lane whose parent is the worker, the kernel does that."""
    with suppress(ProcessLookupError):
        poll = monkey.get_original("select", "poll")()
        poll.register(os.pidfd_open(worker), select.POLLIN)
        poll.poll()
    os.kill(os.getpid(), signal.SIGKILL)


if __name__ == "__main__":
    main()
