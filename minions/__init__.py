"""The light client of Minions: `from minions import Client`."""

from minions import errors
from minions.client import Client
from minions.comparison import Comparison
from minions.following import TaskEvent
from minions.task import Task, TaskSummary

__all__ = ["Client", "Comparison", "Task", "TaskEvent", "TaskSummary", "errors"]
