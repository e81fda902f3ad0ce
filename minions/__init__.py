"""The light client of Minions: `from minions import Client`, or `AsyncClient` for asyncio.

Names are imported at their first use: `minions.errors` and `minions.results` then load nothing but themselves.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from minions import errors
    from minions.aio.client import AsyncClient
    from minions.aio.task import AsyncTask, AsyncTaskSummary
    from minions.client import Client
    from minions.comparison import Comparison
    from minions.definitions import Agent, Tool, function, tool
    from minions.task import Task, TaskSummary
    from minions.task_event import TaskEvent

# The version of both distributions, minions-client and minions-server: their builds read it here.
__version__ = "0.3.0"

__all__ = [
    "Agent",
    "AsyncClient",
    "AsyncTask",
    "AsyncTaskSummary",
    "Client",
    "Comparison",
    "Task",
    "TaskEvent",
    "TaskSummary",
    "Tool",
    "errors",
    "function",
    "tool",
]

_HOMES = {
    "Agent": "definitions",
    "AsyncClient": "aio.client",
    "AsyncTask": "aio.task",
    "AsyncTaskSummary": "aio.task",
    "Client": "client",
    "Comparison": "comparison",
    "Task": "task",
    "TaskEvent": "task_event",
    "TaskSummary": "task",
    "Tool": "definitions",
    "function": "definitions",
    "tool": "definitions",
}


if not TYPE_CHECKING:  # else type checkers would accept any name

    def __getattr__(name: str) -> Any:
        if name in _HOMES:
            return getattr(import_module(f"minions.{_HOMES[name]}"), name)
        if name == "errors" or name in _HOMES.values():
            return import_module(f"minions.{name}")
        raise AttributeError(f"module 'minions' has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted([*globals(), *__all__])
