"""Processes that the nursery forks, with the methods of `subprocess.Popen`. Linux only."""

from __future__ import annotations

import atexit
import ctypes
import json
import os
import select
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
from collections.abc import Mapping
from functools import cache
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
PR_SET_PDEATHSIG = 1
# What the programs import at their start, without `workers.heartbeat` and what imports it: it creates the worker's id.
WORKER = (
    "billiard.popen_fork",
    "celery.apps.worker",
    "celery.bin.celery",
    "celery.concurrency.prefork",
    "celery.worker.consumer",
    "genai_prices.data",
    "kombu.matcher",
    "kombu.pidbox",
    "kombu.transport.redis",
    "shared.broker",
    "shared.database.schema",
    "shared.sandbox.host",
    "shared.tasks.sql",
    "shared.telemetry",
    "workers.factory",
    "workers.minion",
)
ORCHESTRATOR = (
    "orchestrator.commands",
    "orchestrator.service",
    "shared.tasks.sql",
    "shared.telemetry",
    "uvicorn.loops.auto",
    "uvicorn.protocols.http.auto",
)
IMPORTS = {
    "celery": WORKER,
    "orchestrator.cli": ORCHESTRATOR,
    "tests.chaos.injected": (*WORKER, *ORCHESTRATOR),
}


class Fork:
    """A child of a nursery."""

    def __init__(self, line: socket.socket, arguments: list[str]) -> None:
        self.args = arguments
        self.pid = int(line.recv(20))
        self.returncode: int | None = None
        self._line = line

    def poll(self) -> int | None:
        """Return the exit code, or None while it runs."""
        return self._await(0)

    def wait(self, timeout: float | None = None) -> int:
        """Wait for the end; return the exit code."""
        code = self._await(timeout)
        if code is None:
            assert timeout is not None
            raise subprocess.TimeoutExpired(self.args, timeout)
        return code

    def send_signal(self, number: int) -> None:
        """Send a signal, unless the process has ended."""
        if self.poll() is None:
            os.kill(self.pid, number)

    def _await(self, timeout: float | None) -> int | None:
        if self.returncode is None:
            poll = select.poll()
            poll.register(self._line, select.POLLIN)
            if poll.poll(None if timeout is None else timeout * 1000):
                with self._line:
                    # Without a report, the nursery has ended, and its children with it.
                    self.returncode = int(self._line.recv(20) or -signal.SIGKILL)
        return self.returncode


class Nursery:
    """The process that forks a program's processes. It ends when this one closes the socket between them, or dies."""

    def __init__(self, program: str) -> None:
        self.program = program
        self._requests, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        environment = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
        with theirs:
            self._process = subprocess.Popen(
                [sys.executable, "-m", "tests.support.nursery", *IMPORTS[program]],
                cwd=ROOT,
                env={**environment, "PYTHONWARNINGS": "default"},
                stdin=theirs,
                stdout=subprocess.DEVNULL,
                # An interrupt on the terminal is for the tests, which then end their processes.
                start_new_session=True,
            )
        atexit.register(self._end)

    def start(self, arguments: list[str], environment: Mapping[str, str], log: int) -> Fork:
        """Start the program; its output goes to the descriptor `log`."""
        line, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        birth = json.dumps({"argv": [self.program, *arguments], "env": dict(environment)})
        with theirs:
            socket.send_fds(self._requests, [birth.encode()], [log, theirs.fileno()])
        return Fork(line, arguments)

    def _end(self) -> None:
        self._requests.close()
        self._process.wait()


nursery_of = cache(Nursery)


@cache
def nursery_of_lanes() -> str:
    """Start the process that forks the lanes of forked workers; return the address of its socket."""
    folder = tempfile.mkdtemp(prefix="lanes-")
    address = f"{folder}/socket"
    process = subprocess.Popen(
        [sys.executable, "-m", "tests.support.lane_nursery", address],
        cwd=ROOT,
        env={name: value for name, value in os.environ.items() if name != "PYTHONPATH"},
        stdin=subprocess.DEVNULL,
        stdout=subprocess.DEVNULL,
        start_new_session=True,
        preexec_fn=end_with_parent,
    )

    def end() -> None:
        process.kill()
        process.wait()
        shutil.rmtree(folder)

    atexit.register(end)
    return address


def end_with_parent() -> None:
    """Let the kernel kill this process when the one that started it ends."""
    ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGKILL)
