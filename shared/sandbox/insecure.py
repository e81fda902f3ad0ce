"""The replacement for a zygote where no confinement is possible: a fresh interpreter for each call.

Used only if `MINION_SANDBOX=insecure-development` permits it. It keeps well-behaved functions within limits of
time and memory and gives them an empty environment, but stops no attack.
"""

from __future__ import annotations

import os
import socket
import subprocess
import sys
import time
from pathlib import Path

from shared.sandbox.fork_server import SAME_HASHES, ZygoteLost
from shared.sandbox.parked import Usage

PERMISSION = "MINION_SANDBOX"
PERMITTED = "insecure-development"

_BOOT = "import sys; sys.path.insert(0, sys.argv[1]); from confined import unconfined; unconfined.main()"


def is_permitted() -> bool:
    """Return whether the environment permits running functions unconfined."""
    return os.environ.get(PERMISSION) == PERMITTED


class InsecureChild:
    """A fresh interpreter with the interface of a parked child."""

    number = 0
    address_space = data = 0

    def __init__(self) -> None:
        self.channel, theirs = socket.socketpair()
        command = [sys.executable, "-s", "-P", "-S", "-c", _BOOT, str(Path(__file__).parent)]
        null = subprocess.DEVNULL
        try:
            self._process = subprocess.Popen(
                command, stdin=theirs.fileno(), stdout=null, stderr=null, env=SAME_HASHES, cwd="/"
            )
        except OSError as error:
            self.channel.close()
            raise ZygoteLost(f"no interpreter could be started: {error}") from None
        finally:
            theirs.close()
        self.channel.setblocking(False)

    def begin(self) -> None:
        """Do nothing: there are no counters."""

    def usage(self) -> Usage:
        """Return no usage: there are no counters."""
        return Usage()

    def cpu_time(self) -> float:
        """Return zero: there are no counters."""
        return 0.0

    def has_ended(self, patience: float) -> bool:
        """Return whether the process is gone, after waiting for at most `patience` seconds."""
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
        """Reap the process and close the channel."""
        self._process.wait()
        self.channel.close()

    def wait_status(self, patience: float) -> int:
        """Return how the process ended, as a wait status."""
        code: int = self._process.wait(patience)
        return -code if code < 0 else code << 8


class InsecureServer:
    """Starts such children; the same interface as `ForkServer`."""

    layers: tuple[str, ...] = ("rlimits",)
    notes: tuple[str, ...] = ("nothing is confined: insecure development",)

    def take(self, deadline: float) -> InsecureChild:
        """Return a fresh interpreter."""
        return InsecureChild()

    def watch(self, child: InsecureChild, seconds: float) -> None:
        """Do nothing: there is no second watch."""

    def end(self, child: InsecureChild) -> None:
        """Kill the interpreter."""
        child.kill()
        child.close()

    def status(self, child: InsecureChild, deadline: float) -> int:
        """Return the wait status with which a child ended."""
        return child.wait_status(max(0.0, deadline - time.monotonic()))

    def close(self) -> None:
        """Do nothing: no process is left behind."""

    def disown(self) -> None:
        """Do nothing: nothing is shared."""
