"""A flood of bad and unauthorised requests, while tasks go on. `make flood`.

    python -m benchmarks.flood [--seconds N] [--rate N] [--tasks N]

Sends N requests a second for a minute: without a key, with a malformed, an unknown or a revoked one, with a key that
lacks the permission, and with a valid key but a wrong body or path. They come from many addresses. N tasks a second run
at the same time. It prints the answers, how long tasks took with and without the flood, the memory of the orchestrator,
and the rows of the audit log.
"""

from __future__ import annotations

import argparse
import asyncio
import itertools
import os
import random
import time
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field

from sqlalchemy import text

from benchmarks.environment import Environment
from benchmarks.processes import Processes, anonymous
from benchmarks.samples import percentile
from benchmarks.soak import Submitter, repeating
from benchmarks.systems.minions import CAPABILITY, Installation
from shared.access import key_text
from shared.database.connections import autocommit, get_engine
from shared.secret_store import new_key
from tests.support.processes import wait_until

CONNECTIONS = 256
SAMPLE_SECONDS = 10.0
ENDED = text(
    "SELECT extract(epoch FROM o.finished_at - k.created_at) FROM task_outcomes o JOIN tasks k ON k.id = o.task_id "
    "WHERE o.state = 'succeeded' AND k.parent_id IS NULL "
    "AND o.finished_at > now() - make_interval(secs => :seconds) ORDER BY 1"
)
COUNTED = text(
    "SELECT count(*) AS rows, COALESCE(sum((after->>'refused')::bigint), 0) AS requests, "
    "count(*) FILTER (WHERE address = '(others)') AS others FROM audit_log WHERE act = 'access.refused'"
)
ALERTS = text("SELECT act, target, after->>'number' AS number FROM audit_log WHERE act LIKE 'alert.%' ORDER BY id")


@dataclass
class Answers:
    """Answers: their number by status, and the seconds that each took."""

    statuses: Counter[str] = field(default_factory=Counter)
    seconds: list[float] = field(default_factory=list)


def main() -> None:
    """Run the flood, and print the figures."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--seconds", type=float, default=60.0)
    parser.add_argument("--rate", type=float, default=1000.0, help="requests per second")
    parser.add_argument("--tasks", type=float, default=20.0, help="tasks per second")
    options = parser.parse_args()
    os.environ["MINION_SECRET_KEY"] = new_key()
    # The addresses of the requests count as those of a proxy's clients.
    os.environ["MINION_TRUSTED_PROXIES"] = "127.0.0.1"
    with Environment(replies=()) as environment:
        minions = Installation(environment)
        minions.start_worker(CAPABILITY, 2)
        wait_until(minions.client.ready, "the API is ready")
        requests = _requests(minions)
        with repeating(0.1, Submitter(options.tasks)):
            _report_period("without the flood", environment, minions, options.seconds / 2, None)
            flood = Flood(requests, options.rate)
            _report_period("with the flood", environment, minions, options.seconds, flood)
        _report_answers(flood.answers, options.seconds)
        _report_log()


def _requests(minions: Installation) -> Iterator[bytes]:
    """Yield requests of all kinds, in turn."""
    viewer, revoked = (minions.client.create_api_key(name, "viewer")["key"] for name in ("viewer", "revoked"))
    minions.client.revoke_api_key("revoked")
    valid = os.environ["MINION_API_KEY"]
    for number in itertools.count():
        yield from (
            _request("GET", "/v1/tasks", None),
            _request("GET", "/v1/tasks", "x" * (number % 100 + 1)),
            _request("GET", "/v1/tasks", key_text.generate()),
            _request("GET", "/v1/tasks", revoked),
            _request("POST", "/v1/tasks", viewer, b'{"agent": "x"}'),
            _request("POST", "/v1/tasks", valid, b'{"agent": '),
            _request("GET", "/v1/tasks?state=odd", valid),
            _request("GET", f"/v1/nothing/{number}", valid),
        )


def _request(method: str, path: str, key: str | None, body: bytes = b"") -> bytes:
    address = f"10.{random.randrange(256)}.{random.randrange(256)}.{random.randrange(256)}"
    lines = [f"{method} {path} HTTP/1.1", "Host: benchmark", f"X-Forwarded-For: {address}"]
    lines += [f"Content-Length: {len(body)}", "Content-Type: application/json"] if body else []
    lines += [f"Authorization: Bearer {key}"] if key else []
    return "\r\n".join([*lines, "", ""]).encode() + body


class Flood:
    """Sends requests at a steady rate over many connections. An overloaded server gets fewer."""

    def __init__(self, requests: Iterator[bytes], rate: float) -> None:
        self.answers = Answers()
        self._requests = requests
        self._pause = CONNECTIONS / rate

    def run(self, seconds: float) -> None:
        """Send for some time."""
        asyncio.run(self._run(seconds))

    async def _run(self, seconds: float) -> None:
        ends = time.monotonic() + seconds
        async with asyncio.TaskGroup() as group:
            for number in range(CONNECTIONS):
                group.create_task(self._send(ends, self._pause * number / CONNECTIONS))

    async def _send(self, ends: float, delay: float) -> None:
        await asyncio.sleep(delay)
        reader, writer = await asyncio.open_connection("127.0.0.1", int(os.environ["MINION_API_PORT"]))
        due = time.monotonic()
        while time.monotonic() < ends:
            began = time.monotonic()
            writer.write(next(self._requests))
            self.answers.statuses[await _read(reader)] += 1
            self.answers.seconds.append(time.monotonic() - began)
            due += self._pause
            await asyncio.sleep(max(0.0, due - time.monotonic()))
        writer.close()


async def _read(reader: asyncio.StreamReader) -> str:
    head = (await reader.readuntil(b"\r\n\r\n")).decode("latin-1").lower()
    length = head.partition("content-length: ")[2].partition("\r\n")[0]
    await reader.readexactly(int(length or 0))
    return head.split(" ", 2)[1]


def _report_period(
    what: str, environment: Environment, minions: Installation, seconds: float, flood: Flood | None
) -> None:
    """Let the time pass, and print what happened in it."""
    orchestrator = minions.orchestrator.pid
    memory: list[float] = []
    before = Processes()
    spent = {"orchestrator": before.tree(orchestrator), **environment.server_seconds(before)}
    with repeating(SAMPLE_SECONDS, lambda: memory.append(anonymous(orchestrator) / 1e6)):
        if flood is None:
            time.sleep(seconds)
        else:
            flood.run(seconds)
    memory.append(anonymous(orchestrator) / 1e6)
    after = Processes()
    used = {"orchestrator": after.tree(orchestrator), **environment.server_seconds(after)}
    with autocommit(get_engine()).connect() as connection:
        ended = [float(each) for each in connection.scalars(ENDED, {"seconds": seconds})]
    print(f"{what}, {seconds:.0f} s")
    print(f"  tasks that ended per second       {len(ended) / seconds:8.1f}")
    for share in (0.5, 0.95):
        print(f"  submission to end, p{100 * share:.0f}, ms        {1000 * percentile(ended, share):8.1f}")
    print(f"  orchestrator's memory, MB         {' '.join(f'{each:.1f}' for each in memory)}")
    for name, total in used.items():
        print(f"  processor, {name:22} {100 * (total - spent[name]) / seconds:8.1f} % of a core")


def _report_answers(answers: Answers, seconds: float) -> None:
    total = answers.statuses.total()
    print("answers")
    print(f"  requests per second               {total / seconds:8.1f}")
    print(f"  p50 and p95, ms                   {1000 * percentile(answers.seconds, 0.5):8.1f} "
          f"{1000 * percentile(answers.seconds, 0.95):.1f}")  # fmt: skip
    for status, number in sorted(answers.statuses.items()):
        print(f"  status {status}                        {number:8}")


def _report_log() -> None:
    """Print the refused requests in the audit log, when the last minute is over."""
    time.sleep(70)
    with autocommit(get_engine()).connect() as connection:
        counted = connection.execute(COUNTED).one()
        alerts = connection.execute(ALERTS).all()
    print("audit log")
    print(f"  refused requests                  {counted.requests:8}")
    print(f"  rows of them                      {counted.rows:8}, {counted.others} for further addresses together")
    for alert in alerts:
        print(f"  {alert.act:26} {alert.target}: {alert.number}")


if __name__ == "__main__":
    main()
