"""Time and random numbers of a program: from the host, so that the program does the same when it is run again.

The replacements are made in the zygote, and put in place in the child of a program. They cover what a program reaches
by importing a module, and what these modules use themselves. C code that reads a clock is not covered.
"""

from __future__ import annotations

import datetime as real_datetime
import os
import random as real_random
import sys
import time as real_time
import uuid as real_uuid
from typing import Any, NoReturn

from . import facades

TICK = 1e-6
"""Seconds by which the time advances when it is read: loops that wait for a time end, and no interval is zero."""

_start = _elapsed = 0.0
_entropy = real_random.Random(0)  # noqa: S311 the host decides what the program gets


def install(seed: str, now: float) -> None:
    """Replace clocks and random numbers in this process, until it ends.

    Args:
        seed: decides all random numbers.
        now: POSIX seconds.
    """
    global _start, _elapsed
    _start, _elapsed = now, 0.0
    _entropy.seed(f"entropy of {seed}")
    real_random._inst.seed(f"random numbers of {seed}")
    real_random._urandom = os.urandom = urandom  # type: ignore[attr-defined]
    real_uuid._generate_time_safe = None  # type: ignore[attr-defined]
    real_uuid._node = _entropy.getrandbits(48) | 1 << 40  # type: ignore[attr-defined]
    for module, replacements in ((real_time, _TIME), (real_datetime, _DATETIME), (real_random, _RANDOM)):
        vars(facades.of(module)).update(replacements)
        vars(module).update(replacements)
    if numpy_random := sys.modules.get("numpy.random"):
        numpy_random.seed(_entropy.getrandbits(32))


def advance(now: float) -> None:
    """Set the time, in POSIX seconds. It never goes back."""
    global _elapsed
    _elapsed = max(_elapsed, now - _start)


def skip(seconds: float) -> None:
    """Let time pass."""
    global _elapsed
    _elapsed += seconds


def elapsed() -> float:
    """Return the seconds since the program started."""
    return _elapsed


def urandom(size: int, /) -> bytes:
    """Replace `os.urandom`."""
    return _entropy.randbytes(size)


def _tick() -> float:
    global _elapsed
    _elapsed += TICK
    return _elapsed


def _time() -> float:
    return _start + _tick()


def _sleep(seconds: float, /) -> NoReturn:
    raise RuntimeError("time.sleep would stop the whole program: write `await asyncio.sleep(…)`")


def _nanoseconds(read: Any) -> Any:
    return lambda: int(read() * 1_000_000_000)


def _clock_gettime(clock: int, /) -> float:
    return _time() if clock == real_time.CLOCK_REALTIME else _tick()


def _of_now(convert: Any) -> Any:
    """Return a function of `time` that takes POSIX seconds or, without an argument, the program's time."""
    return lambda seconds=None, /: convert(_time() if seconds is None else seconds)


_GMTIME, _STRFTIME, _ASCTIME = real_time.gmtime, real_time.strftime, real_time.asctime

_TIME = {
    "time": _time,
    "time_ns": _nanoseconds(_time),
    "sleep": _sleep,
    "clock_gettime": _clock_gettime,
    "clock_gettime_ns": lambda clock, /: int(_clock_gettime(clock) * 1_000_000_000),
    "gmtime": _of_now(real_time.gmtime),
    "localtime": _of_now(real_time.localtime),
    "ctime": _of_now(real_time.ctime),
    "strftime": lambda form, moment=None, /: _STRFTIME(form, moment or _GMTIME(_time())),
    "asctime": lambda moment=None, /: _ASCTIME(moment or _GMTIME(_time())),
    **dict.fromkeys(("monotonic", "perf_counter", "process_time", "thread_time"), _tick),
    **dict.fromkeys(("monotonic_ns", "perf_counter_ns", "process_time_ns", "thread_time_ns"), _nanoseconds(_tick)),
}


class _SameInstances(type):
    """Lets a replaced class accept all instances of the original one: other modules make those."""

    def __instancecheck__(cls, instance: object) -> bool:
        return isinstance(instance, _ORIGINALS[cls]) if cls in _ORIGINALS else super().__instancecheck__(instance)

    def __subclasscheck__(cls, subclass: type) -> bool:
        return issubclass(subclass, _ORIGINALS[cls]) if cls in _ORIGINALS else super().__subclasscheck__(subclass)


class _Date(real_datetime.date, metaclass=_SameInstances):
    def __repr__(self) -> str:
        return f"datetime.{super().__repr__()}"

    @classmethod
    def today(cls) -> Any:
        return cls.fromtimestamp(_time())


class _Datetime(real_datetime.datetime, metaclass=_SameInstances):
    def __repr__(self) -> str:
        return f"datetime.{super().__repr__()}"

    @classmethod
    def now(cls, tz: real_datetime.tzinfo | None = None) -> Any:
        return cls.fromtimestamp(_time(), tz)

    @classmethod
    def today(cls) -> Any:
        return cls.fromtimestamp(_time())

    @classmethod
    def utcnow(cls) -> Any:
        return cls.fromtimestamp(_time(), real_datetime.UTC).replace(tzinfo=None)


class _Random(real_random.Random):
    def seed(self, a: Any = None, version: int = 2) -> None:
        super().seed(_entropy.getrandbits(128) if a is None else a, version)


def _seed(a: Any = None, version: int = 2) -> None:
    real_random._inst.seed(_entropy.getrandbits(128) if a is None else a, version)


_ORIGINALS: dict[type, type] = {
    _Date: real_datetime.date,
    _Datetime: real_datetime.datetime,
    _Random: real_random.Random,
}
for _class, _original in _ORIGINALS.items():
    _class.__name__ = _class.__qualname__ = _original.__name__
    _class.__module__ = _original.__module__

_DATETIME = {"date": _Date, "datetime": _Datetime}
_RANDOM = {"Random": _Random, "seed": _seed}
