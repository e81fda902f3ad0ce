"""Faults within a process: a worker or an orchestrator with another clock, or with a broker that repeats messages.

    python -m tests.chaos.injected orchestrator
    python -m tests.chaos.injected worker -A workers.app -Q chaos …      (the arguments of Celery's worker)

The environment selects the fault:

CHAOS_CLOCK_SHIFT   seconds by which the process's clock is ahead
CHAOS_COPIES        a queue whose messages are published three times: twice immediately, and once into the list
                    `chaos.copies`, from where the test delivers the third copy late
"""

from __future__ import annotations

import datetime
import os
import sys
import time
from collections.abc import Callable
from typing import Any

COPIES = "chaos.copies"
REAL_DATETIME = datetime.datetime


class _Kind(type):
    """Any datetime is an instance, including those that a driver creates."""

    def __instancecheck__(cls, value: object) -> bool:
        return isinstance(value, REAL_DATETIME)


class ShiftedDatetime(REAL_DATETIME, metaclass=_Kind):
    """`datetime` that reads the shifted `time.time`."""

    @classmethod
    def now(cls, tz: datetime.tzinfo | None = None) -> ShiftedDatetime:
        return cls.fromtimestamp(time.time(), tz)

    @classmethod
    def utcnow(cls) -> ShiftedDatetime:
        return cls.now(datetime.UTC).replace(tzinfo=None)


def shift_clock(seconds: float) -> None:
    """Put this process's clock ahead. Call it before the import of any module that reads the clock."""
    real = time.time
    time.time = lambda: real() + seconds
    time.time_ns = lambda: int(time.time() * 1e9)
    datetime.datetime = ShiftedDatetime  # type: ignore[misc]


def copy_messages(repeated: str) -> Callable[[], None]:
    """Publish every message of a queue three times from now on, the last one into the list `COPIES`.

    Returns:
        a function that ends this.
    """
    from kombu.transport.redis import Channel

    put: Any = Channel._put

    def put_copies(self: Any, queue: str, message: Any, **options: Any) -> None:
        for name in (queue, queue, COPIES) if queue == repeated else (queue,):
            put(self, name, message, **options)

    Channel._put = put_copies  # type: ignore[method-assign]
    return lambda: setattr(Channel, "_put", put)


def main() -> None:
    """Start the process that the first argument names."""
    if shift := float(os.environ.get("CHAOS_CLOCK_SHIFT", "0")):
        shift_clock(shift)
    if repeated := os.environ.get("CHAOS_COPIES"):
        copy_messages(repeated)
    if sys.argv[1] == "orchestrator":
        from orchestrator.cli import main as orchestrate

        orchestrate()
    else:
        from celery.bin.celery import main as celery

        application, arguments = sys.argv[2:4], sys.argv[4:]
        sys.argv = ["celery", *application, "worker", *arguments]
        celery()


if __name__ == "__main__":
    main()
