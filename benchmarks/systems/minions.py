"""Minions: an orchestrator, and a worker with two processes."""

from __future__ import annotations

import os
import sys
from functools import cache, cached_property
from typing import Any, ClassVar

from sqlalchemy import text
from sqlalchemy.orm import Session

from benchmarks.environment import Environment
from benchmarks.processes import Processes, command_line
from benchmarks.systems.system import WORKERS, CallsModel, Composes
from minions import Client
from shared.contracts.documents import parse_definition
from shared.contracts.requests import TaskRequest
from shared.database.connections import autocommit, get_engine
from shared.database.schema import migrate
from shared.definitions.apply import store_definitions
from shared.tasks.submission import submit_within
from tests.support.processes import Process, wait_online, wait_until

CAPABILITY = "bench"
UNSERVED = "bench-unserved"
TOOL = "bench-tool"
FUNCTION = "bench-function"
ECHO_FUNCTION = "bench-echo"
FIBO_FUNCTION = "bench-fibo"
MODEL_AGENT = "bench-model"
FAN_OUT = "{}-fan-out"
FIBO = """
def fibo(n):
    if n <= 1:
        return n
    return fibo(n - 1) + fibo(n - 2)

def fibo_step(n):
    fibo(n)
    return {"n": n}
"""
SANDBOX = "confined"  # part of the command line of the processes that run functions

UNFINISHED = text(
    "SELECT EXISTS (SELECT 1 FROM task_status WHERE state IN ('pending', 'queued', 'running', 'waiting'))"
)
LIVE = text("SELECT EXISTS (SELECT 1 FROM task_status WHERE capability = :queue AND state IN "
            "('pending', 'queued', 'running', 'waiting'))")  # fmt: skip
SUCCEEDED = text("SELECT count(*) FROM task_status WHERE capability = :queue AND state = 'succeeded'")


def function_agent(name: str, **fields: Any) -> dict[str, Any]:
    """Return the definition of an agent without a model."""
    config = {"capabilities": [CAPABILITY], **fields.pop("config", {})}
    return {"kind": "agent", "name": name, "type": "function", "config": config, **fields}


DEFINITIONS: tuple[dict[str, Any], ...] = (
    {"kind": "tool", "name": "echo", "type": "builtin", "builtin": "echo", "effect": "pure"},
    {"kind": "function", "name": "noop", "code": "def noop(value):\n    return value\n"},
    {"kind": "function", "name": "echo_value", "code": "def echo_value(value):\n    return {'value': value}\n"},
    {"kind": "function", "name": "fibo_step", "code": FIBO},
    function_agent(TOOL, tool="echo"),
    function_agent(FUNCTION, function="noop"),
    function_agent(ECHO_FUNCTION, function="echo_value"),
    function_agent(FIBO_FUNCTION, function="fibo_step"),
    {
        "kind": "agent",
        "name": MODEL_AGENT,
        "model": "claude-sonnet-5-5",
        "config": {"capabilities": [CAPABILITY]},
    },
    function_agent(UNSERVED, tool="echo", config={"capabilities": [UNSERVED]}),
    *(
        function_agent(
            FAN_OUT.format(agent),
            relations=[{"agent": agent, "for_each": "values"}],
            config={"chain_strategy": "parallel"},
        )
        for agent in (TOOL, FUNCTION)
    ),
)


class Installation:
    """The orchestrator and the worker that every entry point of Minions shares, and the definitions."""

    def __init__(self, environment: Environment) -> None:
        self._environment = environment
        migrate(get_engine())
        self.define(*DEFINITIONS)
        self.orchestrator = environment.launch([sys.executable, "-m", "orchestrator.cli", "orchestrator"])
        self.url = f"http://127.0.0.1:{os.environ['MINION_API_PORT']}"
        self.client = Client(self.url, os.environ["MINION_API_KEY"])

    @cached_property
    def worker(self) -> Process:
        """The worker of the no-op tasks, which the first use starts."""
        return self.start_worker(CAPABILITY, WORKERS)

    def start_worker(self, capability: str, slots: int, **environment: str) -> Process:
        """Start one more worker, and wait until it is online."""
        arguments = ["-m", "orchestrator.cli", "worker", capability, "-c", str(slots)]
        worker = self._environment.launch([sys.executable, *arguments], environment)
        wait_online(get_engine(), worker)
        return worker

    def define(self, *definitions: dict[str, Any]) -> None:
        """Store definitions."""
        with Session(get_engine()) as session:
            store_definitions(session, [parse_definition(definition) for definition in definitions])

    def define_chain(self, name: str, agent: str, steps: int) -> str:
        """Define a chain of one agent, and return its name."""
        self.define(function_agent(name, relations=[{"agent": agent}] * steps))
        return name


@cache
def installation(environment: Environment) -> Installation:
    """Return the installation in this environment; the first call starts it."""
    return Installation(environment)


class Minions(Composes):
    """Tasks of one agent, submitted beside the database; round trips go over HTTP."""

    needs = "shared"
    keeps = (
        "Task, input, execution, step, outcome and events in PostgreSQL. No task is lost or finished twice, whatever "
        "happens to Redis or a process."
    )
    settings = "as documented for production"
    agent: ClassVar[str]
    chain_agent: ClassVar[str]

    @cached_property
    def minions(self) -> Installation:
        return installation(self.environment)

    def start(self) -> None:
        self.workers = [self.minions.worker, self.minions.orchestrator]

    def submit(self, tasks: int, *, served: bool = True) -> None:
        submit_to(self.agent if served else UNSERVED, tasks)

    def is_idle(self) -> bool:
        with get_engine().connect() as connection:
            return not connection.scalar(LIVE, {"queue": CAPABILITY})

    def recorded(self) -> int:
        with get_engine().connect() as connection:
            return int(connection.scalar(SUCCEEDED, {"queue": CAPABILITY}) or 0)

    def processor_seconds(self, processes: Processes) -> dict[str, float]:
        worker = self.minions.worker.pid
        pool = processes.below(worker, lambda pid: SANDBOX not in command_line(pid))
        return {
            "minion children": pool,
            "sandbox": max(0.0, processes.below(worker) - pool),
            "main process": processes.own(worker),
            "orchestrator": processes.tree(self.minions.orchestrator.pid),
        }

    def call(self) -> None:
        """Submit one task over HTTP, and wait for its result."""
        self.minions.client.submit(self.agent, {"value": 1}, wait=30).result()

    def submit_over_http(self, tasks: int) -> None:
        """Submit tasks that no worker serves, in one request."""
        self.minions.client.submit_many({"agent": UNSERVED, "input": {"value": number}} for number in range(tasks))

    def chain(self, steps: int) -> None:
        """Run a sequential chain."""
        chain = self.minions.define_chain(f"{self.chain_agent}-chain-{steps}", self.chain_agent, steps)
        self.minions.client.submit(chain, {"value": 1}).result()

    def fan_out(self, tasks: int) -> None:
        """Run a parallel chain over a list, whose output is the list of all outputs."""
        output = self.minions.client.submit(FAN_OUT.format(self.agent), {"values": _values(tasks)}).result()
        assert len(output["results"]) == tasks


class MinionsTool(CallsModel, Minions):
    """A builtin tool; and, where a model is called, an agent without tools."""

    name = "minions, builtin tool"
    model_row = "minions, agent with a model"
    agent = TOOL
    chain_agent = TOOL

    def submit_model_calls(self, tasks: int) -> None:
        submit_to(MODEL_AGENT, tasks)


class MinionsFunction(Minions):
    """A function of the function store, each call in a single-use process without rights."""

    name = "minions, sandboxed function"
    submits = False
    agent = FUNCTION
    chain_agent = ECHO_FUNCTION


def scalar(statement: Any, **values: Any) -> Any:
    """Return what a statement returns."""
    with autocommit(get_engine()).connect() as connection:
        return connection.scalar(statement, values)


def wait_for_all(seconds: float) -> None:
    """Wait until all tasks have ended."""
    wait_until(lambda: not scalar(UNFINISHED), "all tasks have ended", seconds)


def submit_to(agent: str, tasks: int) -> None:
    """Submit tasks of an agent beside the database, in one call."""
    requests = [TaskRequest(agent=agent, input={"value": number}) for number in range(tasks)]
    with get_engine().begin() as connection:
        submit_within(connection, requests, submitted_by="benchmark")


def _values(number: int) -> list[dict[str, int]]:
    return [{"value": index} for index in range(number)]
