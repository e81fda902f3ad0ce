"""The light client of Minions: `from minions import Client`."""

from minions import errors
from minions.client import Client
from minions.comparison import Comparison
from minions.following import TaskEvent
from minions.task import Task, TaskSummary

# The version of both distributions, minions-client and minions-server: their builds read it here.
__version__ = "0.3.0"

__all__ = ["Client", "Comparison", "Task", "TaskEvent", "TaskSummary", "errors"]
