"""Lanes that their nursery forks, from the point of view of their workers and of the test."""

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

NURSERY = "NURSERY_OF_LANES"
"""The variable with the address of the nursery; beside it is the record of its lanes: a line with worker and lane."""


class Lanes:
    """Takes the place of the module `subprocess` in `workers.lane.host`."""

    DEVNULL = subprocess.DEVNULL

    class Popen:
        """A lane."""

        returncode: int | None = None

        def __init__(self, command: list[str], *, pass_fds: tuple[int, int], **_: Any) -> None:
            address = os.environ[NURSERY]
            _python, _option, _program, _link, _pulse, _parent, worker, *folders = command
            birth = json.dumps(
                {"parent": os.getpid(), "worker": worker, "path": folders, "env": dict(os.environ)}
            ).encode()
            with socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET) as line:
                _connect(line, address)
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


def _connect(line: socket.socket, address: str) -> None:
    """Connect to the nursery, which listens as soon as it has imported everything."""
    give_up = time.monotonic() + 60
    while True:
        try:
            return line.connect(address)
        except (FileNotFoundError, ConnectionRefusedError):
            if time.monotonic() > give_up:
                raise
            time.sleep(0.02)


def fork_lanes() -> None:
    """Let the nursery fork the lanes of this process, a worker."""
    from workers.lane import host

    host.subprocess = Lanes  # type: ignore[assignment]


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
