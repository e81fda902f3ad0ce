"""One child process of `minion up`: started, watched, and restarted when it dies."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import IO

import structlog

from orchestrator.local.parent import follow_environment

log = structlog.get_logger(__name__)

LONGEST_PAUSE = 30.0
STEADY_SECONDS = 60.0


class Child:
    """A `minion` subcommand as a process with a log file.

    Attributes:
        orphaned: the signal that it receives when this process is killed.
        withheld: prefixes of environment variables that it must not see: secrets that it does not need.
    """

    def __init__(
        self,
        name: str,
        arguments: list[str],
        environment: dict[str, str],
        logs: Path,
        *,
        orphaned: signal.Signals,
        withheld: tuple[str, ...] = (),
    ) -> None:
        self.name = name
        self.arguments = arguments
        self.environment = environment
        self.log_file = logs / f"{name}.log"
        self.orphaned = orphaned
        self.withheld = withheld
        self.process: subprocess.Popen[bytes] | None = None
        self._started = 0.0
        self._pause = 1.0
        self._not_before = 0.0

    def start(self) -> None:
        """Start the process. Call it from the main thread: Linux signals the child when the starting thread ends."""
        inherited = {name: value for name, value in os.environ.items() if not name.startswith(self.withheld)}
        environment = {**inherited, **self.environment, **follow_environment(self.orphaned)}
        with self._open_log() as output:
            self.process = subprocess.Popen(
                # -P: do not import from the current folder, which may have its own `shared` or `workers`.
                [sys.executable, "-P", "-m", "orchestrator.cli", *self.arguments],
                env=environment,
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=subprocess.STDOUT,
                # Ctrl-C in the terminal goes to `minion up` only, which stops its children in order.
                start_new_session=True,
            )
        self._started = time.monotonic()

    @property
    def running(self) -> bool:
        return self.process is not None and self.process.poll() is None

    def revive(self) -> None:
        """Restart it if it died, after a pause that grows while it keeps dying."""
        if self.running or time.monotonic() < self._not_before:
            return
        code = self.process.returncode if self.process else None
        steady = time.monotonic() - self._started > STEADY_SECONDS
        self._pause = 1.0 if steady else min(LONGEST_PAUSE, self._pause * 2)
        self._not_before = time.monotonic() + self._pause
        log.warning("child_died", child=self.name, exit_code=code, log=str(self.log_file))
        self.start()

    def signal(self, number: signal.Signals) -> None:
        """Send a signal if it is still running."""
        if self.running and self.process is not None:
            self.process.send_signal(number)

    def wait(self, seconds: float) -> bool:
        """Return whether it has ended within that time."""
        if self.process is None:
            return True
        try:
            self.process.wait(timeout=max(0.0, seconds))
        except subprocess.TimeoutExpired:
            return False
        return True

    def last_words(self, lines: int = 15) -> str:
        """Return the end of its log."""
        try:
            return "\n".join(self.log_file.read_text(errors="replace").splitlines()[-lines:])
        except OSError:
            return ""

    def _open_log(self) -> IO[bytes]:
        if self.log_file.exists() and self.log_file.stat().st_size > 10 << 20:
            self.log_file.replace(self.log_file.with_suffix(".log.1"))
        return os.fdopen(os.open(self.log_file, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600), "wb")
