"""The stand-in for a zygote where nothing can be confined: a fresh interpreter for each call.

Used only if `MINION_SANDBOX=insecure-development` permits it. It keeps honest functions honest (limits of
time and memory, an empty environment) and stops no attack.
"""

from __future__ import annotations

import os
import socket
import subprocess
import sys
import time
from pathlib import Path

from shared.sandbox.fork_server import ZygoteLost
from shared.sandbox.parked import Usage

PERMISSION = "MINION_SANDBOX"
PERMITTED = "insecure-development"

_BOOT = "import sys; sys.path.insert(0, sys.argv[1]); from confined import unconfined; unconfined.main()"


_NOTHING: dict[str, str] = {}


def is_permitted() -> bool:
    """Whether the environment permits running functions unconfined."""
    return os.environ.get(PERMISSION) == PERMITTED


class InsecureChild:
    """A fresh interpreter, used like a parked child."""

    number = 0
    address_space = data = 0

    def __init__(self) -> None:
        self.channel, theirs = socket.socketpair()
        command = [sys.executable, "-I", "-S", "-c", _BOOT, str(Path(__file__).parent)]
        null = subprocess.DEVNULL
        try:
            self._process = subprocess.Popen(
                command, stdin=theirs.fileno(), stdout=null, stderr=null, env=_NOTHING, cwd="/"
            )
        except OSError as error:
            self.channel.close()
            raise ZygoteLost(f"no interpreter could be started: {error}") from None
        finally:
            theirs.close()
        self.channel.setblocking(False)

    def begin(self) -> None:
        """Nothing is counted."""

    def usage(self) -> Usage:
        """Nothing is counted."""
        return Usage()

    def cpu_time(self) -> float:
        """Nothing is counted."""
        return 0.0

    def has_ended(self, patience: float) -> bool:
        """Whether the process is gone, waiting for at most so many seconds."""
        try:
            self._process.wait(patience)
        except subprocess.TimeoutExpired:
            return False
        return True

    def kill(self) -> bool:
        """End the process."""
        self._process.kill()
        return True

    def close(self) -> None:
        """Reap the process and let go of the channel."""
        self._process.wait()
        self.channel.close()

    def wait_status(self, patience: float) -> int:
        """How the process ended, as a wait status."""
        code: int = self._process.wait(patience)
        return -code if code < 0 else code << 8


class InsecureServer:
    """Starts such children; the same face as `ForkServer`."""

    layers: tuple[str, ...] = ("rlimits",)
    notes: tuple[str, ...] = ("nothing is confined: insecure development",)

    def take(self, deadline: float) -> InsecureChild:
        """A fresh interpreter."""
        return InsecureChild()

    def watch(self, child: InsecureChild, seconds: float) -> None:
        """There is no second watch."""

    def end(self, child: InsecureChild) -> None:
        """Kill the interpreter."""
        child.kill()
        child.close()

    def status(self, child: InsecureChild, deadline: float) -> int:
        """The wait status with which a child ended."""
        return child.wait_status(max(0.0, deadline - time.monotonic()))

    def close(self) -> None:
        """Nothing stays behind."""

    def disown(self) -> None:
        """Nothing is shared."""
