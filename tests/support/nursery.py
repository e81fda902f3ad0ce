"""Processes of the product that start immediately: forks of one that has imported everything and started nothing.

    python -m tests.support.nursery MODULE…        (started by `tests.support.forks`)

Most of a start is imports. A fork runs its program as `python -m PROGRAM` does, in the environment that it is given,
and ends as any interpreter ends.
"""

from __future__ import annotations

import gc
import json
import os
import runpy
import select
import socket
import sys
import time
import warnings
from importlib import import_module
from typing import Any

from tests.support.forks import end_with_parent
from tests.support.lanes import NURSERY, fork_lanes

MESSAGE = 1 << 20


def main() -> None:
    """Fork a process for each request. Return in the child, once it is what a new interpreter would be."""
    # The import of a library is no part of what a test looks at.
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        for name in sys.argv[1:]:
            import_module(name)
    # Forks share the objects that exist by now.
    gc.collect()
    gc.freeze()
    requests = socket.socket(fileno=0)
    children: dict[int, tuple[int, socket.socket]] = {}
    poll = select.poll()
    poll.register(requests, select.POLLIN)
    while True:
        for ready, _ in poll.poll():
            if ready in children:
                poll.unregister(ready)
                _report(ready, *children.pop(ready))
                continue
            message, descriptors, *_ = socket.recv_fds(requests, MESSAGE, 2)
            if not message:
                requests.close()
                sys.exit()
            if (pid := os.fork()) == 0:
                for each in (requests, *(line for _, line in children.values())):
                    each.detach()
                _become(json.loads(message), descriptors[0])
                return
            log, line = descriptors
            os.close(log)
            watched = os.pidfd_open(pid)
            children[watched] = (pid, socket.socket(fileno=line))
            children[watched][1].send(str(pid).encode())
            poll.register(watched, select.POLLIN)


def _report(watched: int, pid: int, line: socket.socket) -> None:
    """Reap a child, and report its exit code."""
    os.close(watched)
    _, status = os.waitpid(pid, 0)
    with line:
        line.send(str(os.waitstatus_to_exitcode(status)).encode())


def _become(birth: dict[str, Any], log: int) -> None:
    """Set up the child: its session, descriptors, environment, arguments and import path."""
    os.setsid()
    end_with_parent()
    os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
    os.dup2(log, 1)
    os.dup2(log, 2)
    os.closerange(3, os.sysconf("SC_OPEN_MAX"))
    os.environ.clear()
    os.environ.update(birth["env"])
    time.tzset()
    # The first is the current folder.
    sys.path[1:1] = [folder for folder in os.environ.get("PYTHONPATH", "").split(os.pathsep) if folder]
    sys.argv = birth["argv"]
    if NURSERY in os.environ:
        fork_lanes()


if __name__ == "__main__":
    main()
    runpy.run_module(sys.argv[0], run_name="__main__", alter_sys=True)
