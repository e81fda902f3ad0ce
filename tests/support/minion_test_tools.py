"""Builtin tools for the tests, offered to workers through an entry point in a folder on PYTHONPATH."""

from __future__ import annotations

import gc
import os
import signal
import time
from collections import deque
from itertools import repeat
from pathlib import Path
from typing import Any

from sqlalchemy import text

from shared.errors import ToolError


def act(arguments: dict[str, Any], context: Any) -> Any:
    """Does what `do` says, after noting the call in the file `log`."""
    log = Path(arguments.get("log", os.devnull))
    with log.open("a") as file:
        file.write(f"{context.task_id} {context.attempt} {context.idempotency_key} {os.getpid()}\n")
    return DEEDS[arguments.get("do", "answer")](arguments, context)


def _answer(arguments: dict[str, Any], context: Any) -> Any:
    return arguments.get("answer", {"attempt": context.attempt})


def _sleep(arguments: dict[str, Any], context: Any) -> Any:
    time.sleep(arguments["seconds"])
    return {"slept": arguments["seconds"]}


def _hang(arguments: dict[str, Any], context: Any) -> Any:
    """Hears no soft limit."""
    signal.signal(signal.SIGUSR1, signal.SIG_IGN)
    time.sleep(600)


def _freeze(arguments: dict[str, Any], context: Any) -> Any:
    """Never comes back from C, and lets no other thread run."""
    return sum(iter(int, 1))


def _spin(arguments: dict[str, Any], context: Any) -> Any:
    """Stays in C code, which hears no signal."""
    return deque(repeat(0), maxlen=0)


def _query(arguments: dict[str, Any], context: Any) -> Any:
    """Is inside the driver, in the middle of a statement, when a limit strikes."""
    if arguments.get("deaf"):
        signal.signal(signal.SIGUSR1, signal.SIG_IGN)
    # Releases before 0.3, which load this file too, have it in another place.
    from shared.database.connections import statement

    with statement() as connection:
        connection.execute(text("SET statement_timeout = 0"))
        connection.execute(text("SELECT pg_sleep(:seconds)"), {"seconds": arguments["seconds"]})


def _die(arguments: dict[str, Any], context: Any) -> Any:
    if context.attempt <= arguments.get("times", 100):
        os.kill(os.getpid(), signal.SIGKILL)
    return {"attempt": context.attempt}


def _take_down(arguments: dict[str, Any], context: Any) -> Any:
    """In the first call, kill the whole worker: its main process and all its children."""
    if Path(arguments["log"]).read_text().count(context.task_id) == 1:
        os.killpg(0, signal.SIGKILL)
    return {}


def _fail(arguments: dict[str, Any], context: Any) -> Any:
    if context.attempt <= arguments.get("times", 100):
        raise RuntimeError(f"attempt {context.attempt} fails")
    return {"attempt": context.attempt}


def _time_out(arguments: dict[str, Any], context: Any) -> Any:
    """For the first so many calls; `context.attempt` counts charged failures only."""
    if Path(arguments["log"]).read_text().count(context.task_id) <= arguments["times"]:
        raise TimeoutError("no answer")
    return {}


def _refuse(arguments: dict[str, Any], context: Any) -> Any:
    error = ToolError("No, and asking again will not help.")
    error.retryable = False
    raise error


def _later(arguments: dict[str, Any], context: Any) -> Any:
    """A directive for the first calls, up to a number."""
    calls = Path(arguments["log"]).read_text().count(context.task_id)
    return arguments["control"] if calls <= arguments.get("times", 1) else {"calls": calls}


def _meet(arguments: dict[str, Any], context: Any) -> Any:
    """Comes back when so many calls are under way at once."""
    log, deadline = Path(arguments["log"]), time.monotonic() + arguments.get("patience", 20)
    while log.read_text().count(context.task_id) < arguments["calls"]:
        if time.monotonic() > deadline:
            raise ToolError("Nobody else came.")
        time.sleep(0.01)
    return arguments.get("answer")


def _eat(arguments: dict[str, Any], context: Any) -> Any:
    return {"eaten": len(bytearray(os.urandom(1) * (arguments["megabytes"] << 20)))}


def _strange(arguments: dict[str, Any], context: Any) -> Any:
    """Return a value that JSON or PostgreSQL cannot represent."""
    deep: Any = 1
    for _ in range(200):
        deep = [deep]
    values = {
        "nan": float("nan"),
        "nul": "\x00",
        "surrogate": "\ud800",
        "set": {1},
        "deep": deep,
        "huge": "x" * (5 << 20),
    }
    return values[arguments["what"]]


def _collect(arguments: dict[str, Any], context: Any) -> Any:
    """Examines every object, and reports the kilobytes that this process shares with others, and its own."""
    gc.collect()
    lines = Path("/proc/self/smaps_rollup").read_text().splitlines()[1:]
    kilobytes = {name: int(amount.split()[0]) for name, _, amount in (line.partition(":") for line in lines)}
    return {"shared": kilobytes["Shared_Dirty"], "private": kilobytes["Private_Dirty"]}


DEEDS = {
    "answer": _answer,
    "sleep": _sleep,
    "hang": _hang,
    "freeze": _freeze,
    "spin": _spin,
    "query": _query,
    "die": _die,
    "take_down": _take_down,
    "fail": _fail,
    "time out": _time_out,
    "refuse": _refuse,
    "later": _later,
    "meet": _meet,
    "eat": _eat,
    "strange": _strange,
    "collect": _collect,
}
