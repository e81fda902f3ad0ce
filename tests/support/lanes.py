"""Lanes that the other nursery forks, from the point of view of their workers and of the test."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import time
from contextlib import suppress
from pathlib import Path
from typing import Any

NURSERY = "CRASH_LANES"
"""The variable with the address of the nursery; beside it is the record of its lanes: a line with worker and lane."""


class Lanes:
    """Takes the place of the module `subprocess` in `workers.lane.host`."""

    DEVNULL = subprocess.DEVNULL

    class Popen:
        """A lane."""

        returncode: int | None = None

        def __init__(self, _: list[str], *, pass_fds: tuple[int, int], **__: Any) -> None:
            from workers.lane.host import WORKER_ID

            address = os.environ[NURSERY]
            birth = json.dumps({"worker": str(WORKER_ID), "env": dict(os.environ)}).encode()
            with socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET) as line:
                line.connect(address)
                socket.send_fds(line, [birth], [*pass_fds, 1, 2])
                self.pid = int(line.recv(20))
            with record(address).open("a") as lines:
                lines.write(f"{os.getpid()} {self.pid}\n")

        def kill(self) -> None:
            """Kill it with SIGKILL."""
            os.kill(self.pid, signal.SIGKILL)

        def wait(self) -> None:
            """Wait until it is gone."""
            while is_alive(self.pid):
                time.sleep(0.01)
            self.returncode = -signal.SIGKILL


def record(address: str) -> Path:
    """Return the record of a nursery's lanes."""
    return Path(f"{address}.record")


def lanes_of(address: str, worker: int | None = None) -> list[int]:
    """Return the lanes of a worker, or of all."""
    with suppress(FileNotFoundError):
        pairs = [map(int, line.split()) for line in record(address).read_text().splitlines()]
        return [lane for owner, lane in pairs if worker in (None, owner)]
    return []


def is_alive(pid: int) -> bool:
    """Return whether a process runs: it exists, and is no zombie."""
    with suppress(OSError):
        return ") Z " not in Path(f"/proc/{pid}/stat").read_text()
    return False
