"""One task at a time, submitted over HTTP and waited for, beside plain Celery's round trip in the same rounds.

    python -m benchmarks.latency [--rounds N] [--json]

All systems use one private PostgreSQL and Valkey with durable settings, and two worker processes. Each round makes one
round trip on each system, so that the load of the machine is the same for all. The rows of Minions submit and wait in
one request, `POST /v1/tasks?wait=…`, unless their name says otherwise; one of them is a call over MCP.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import httpx2
from sqlalchemy import text

from benchmarks.environment import Environment
from benchmarks.samples import percentile, seconds
from benchmarks.systems.celery import CeleryRedis
from benchmarks.systems.minions import TOOL, MinionsFunction, MinionsTool, function_agent
from shared.database.connections import get_engine
from shared.mcp import protocol

WARM_UP = 20
CHAIN = "minions, chain of 3"
CHAIN_AGENT = "bench-chain-of-3"
MCP = "minions, MCP tools/call"
MCP_AGENT = "bench-mcp"
SCHEMA = {"type": "object", "properties": {"value": {"type": "integer"}}, "required": ["value"]}
WAIT_SECONDS = 30
# The time from the end of a task's last sub-task to the task's next execution.
WAKE_UPS = text(
    """
    SELECT extract(epoch FROM e.started_at - (
            SELECT max(o.finished_at) FROM tasks c JOIN task_overview o ON o.id = c.id
                WHERE c.parent_id = e.task_id AND o.finished_at < e.started_at))
        FROM executions e JOIN tasks t ON t.id = e.task_id
        WHERE t.agent_name = :chain AND e.claim > 1
    """
)


def main() -> None:
    """Run the benchmark and print its table."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--rounds", type=int, default=200)
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args()
    with running() as trips:
        samples = measure(trips, options.rounds)
        wakes = wake_ups()
    report(samples, wakes, as_json=options.json)


def measure(trips: Mapping[str, Callable[[], object]], rounds: int) -> dict[str, list[float]]:
    """Return the seconds of each round trip, one of each system a round."""
    for _ in range(WARM_UP):
        for trip in trips.values():
            trip()
    samples: dict[str, list[float]] = {name: [] for name in trips}
    for _ in range(rounds):
        for name, trip in trips.items():
            samples[name].append(seconds(trip))
    return samples


def wake_ups() -> list[float]:
    """Return the seconds from the end of each last sub-task to the next start of its task."""
    with get_engine().connect() as connection:
        found = connection.scalars(WAKE_UPS, {"chain": CHAIN_AGENT})
        return [float(each) for each in found if each is not None]


def report(samples: Mapping[str, list[float]], wakes: list[float], *, as_json: bool) -> None:
    """Print round trips with their ratios to plain Celery's median."""
    base = statistics.median(samples[CeleryRedis.name])
    rows = [row(name, taken, base) for name, taken in samples.items()]
    rows.append(row("wake-up of a parent", wakes, base))
    single = statistics.median(samples[MinionsTool.name])
    chain, mcp = (round(statistics.median(samples[name]) / single, 2) for name in (CHAIN, MCP))
    if as_json:
        print(json.dumps({"rows": rows, "chain_to_single": chain, "mcp_to_single": mcp}, indent=2))
        return
    print(
        f"{len(samples[CHAIN])} round trips each, one at a time; "
        f"a chain takes {chain} single tasks, a call over MCP takes {mcp}"
    )
    print(f"{'':38} {'p50 ms':>8} {'p99 ms':>8} {'ratio':>6} {'p99 ratio':>9}")
    for line in rows:
        print("{name:38} {p50_ms:8} {p99_ms:8} {ratio:6} {p99_ratio:9}".format(**line))


def row(name: str, taken: list[float], base: float) -> dict[str, Any]:
    """Return a line of the table: milliseconds, and ratios to the median of plain Celery."""
    p50, p99 = statistics.median(taken), percentile(taken, 0.99)
    return {
        "name": name,
        "p50_ms": round(p50 * 1e3, 2),
        "p99_ms": round(p99 * 1e3, 2),
        "ratio": round(p50 / base, 2),
        "p99_ratio": round(p99 / base, 2),
    }


@contextmanager
def running() -> Iterator[dict[str, Callable[[], object]]]:
    """Provide servers, workers and an orchestrator; yield a round trip for each system."""
    with Environment(replies=()) as environment:
        celery, tool, function = CeleryRedis(environment), MinionsTool(environment), MinionsFunction(environment)
        for system in (celery, tool, function):
            system.start()
        client = tool.minions.client
        tool.minions.define_chain(CHAIN_AGENT, TOOL, 3)
        tool.minions.define(function_agent(MCP_AGENT, tool="echo", input_schema=SCHEMA))
        with httpx2.Client(base_url=tool.minions.url, trust_env=False, timeout=WAIT_SECONDS) as http:
            yield {
                celery.name: celery.call,
                tool.name: tool.call,
                MCP: lambda: call_over_mcp(http),
                f"{tool.name}, two requests": lambda: client.submit(TOOL, {"value": 1}).result(),
                function.name: function.call,
                CHAIN: lambda: client.submit(CHAIN_AGENT, {"value": 1}, wait=WAIT_SECONDS).result(),
            }


def call_over_mcp(http: httpx2.Client) -> None:
    """Call an agent as a tool of the MCP server, over a connection that stays open, and check the result."""
    about = {protocol.VERSION_KEY: protocol.MODERN, protocol.CLIENT_KEY: protocol.CLIENT, protocol.CAPABILITIES_KEY: {}}
    call = {"name": MCP_AGENT, "arguments": {"value": 1}, protocol.META: about}
    headers = {
        "Authorization": f"Bearer {os.environ['MINION_API_KEY']}",
        "Accept": "application/json, text/event-stream",
        protocol.VERSION_HEADER: protocol.MODERN,
        protocol.METHOD_HEADER: "tools/call",
        protocol.NAME_HEADER: MCP_AGENT,
    }
    answer = http.post("/mcp", json=protocol.request(1, "tools/call", call), headers=headers)
    result = answer.raise_for_status().json()["result"]
    assert result["structuredContent"] == {"value": 1}, result


if __name__ == "__main__":
    main()
