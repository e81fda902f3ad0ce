"""Checks of `minion doctor` on Redis or Valkey: its version, mode, memory and disk, and messages set aside."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import redis

from orchestrator.commands.findings import Finding, judged
from shared.notifications import make_redis
from shared.settings import Settings
from shared.tasks import set_aside

OLDEST_MAJOR = 7


def broker(settings: Settings) -> Iterator[Finding]:
    """Check the broker."""
    with make_redis() as connection:
        yield from _set_aside(set_aside.counts(connection))
        try:
            facts: Any = connection.info()
        except redis.ResponseError as error:
            advice = "nothing else is known of it: permit INFO to the user of REDIS_URL"
            yield Finding("broker", "warning", f"it answers, but not to INFO: {error}", advice)
            return
    yield _version(facts)
    yield from _mode(facts)
    yield _memory(facts)
    yield from _disk(facts)


def _version(facts: dict[str, Any]) -> Finding:
    version = str(facts.get("valkey_version") or facts["redis_version"])
    old = int(version.split(".")[0]) < OLDEST_MAJOR
    advice = f"not tested with Minions: use Redis {OLDEST_MAJOR} or later, or Valkey" if old else ""
    return judged("broker", f"{facts.get('server_name', 'redis')} {version}", warning=advice)


def _mode(facts: dict[str, Any]) -> Iterator[Finding]:
    if facts.get("redis_mode") == "cluster":
        advice = "Celery's queues use several keys in one command, which a cluster refuses: use a single server"
        yield Finding("broker mode", "failed", "cluster", advice)
    if facts.get("role") == "slave":
        yield Finding("broker mode", "failed", "a read-only replica", "set REDIS_URL to the primary server")


def _memory(facts: dict[str, Any]) -> Finding:
    policy, most, used = (
        facts.get("maxmemory_policy", "noeviction"),
        facts.get("maxmemory", 0),
        facts.get("used_memory", 0),
    )
    found = f"maxmemory-policy {policy}"
    if policy != "noeviction":
        return Finding("broker memory", "warning", found, "set maxmemory-policy noeviction, or messages are evicted")
    if most and used > 0.9 * most:
        advice = "when it is full, nothing is dispatched: raise maxmemory, or find out what else uses it"
        return Finding("broker memory", "warning", f"{used >> 20} of {most >> 20} MB used", advice)
    return Finding("broker memory", "ok", found)


def _disk(facts: dict[str, Any]) -> Iterator[Finding]:
    """A server that cannot save refuses all writes, by default."""
    for name in ("rdb_last_bgsave_status", "aof_last_write_status"):
        if facts.get(name, "ok") != "ok":
            advice = "it may refuse messages until it can save: look for a full disk or missing rights in its log"
            yield Finding("broker disk", "warning", f"{name}: {facts[name]}", advice)


def _set_aside(aside: dict[str, int]) -> Iterator[Finding]:
    if aside:
        found = ", ".join(f"{count:,} of {queue}" for queue, count in sorted(aside.items()))
        advice = f"find out what else writes to this Redis; the newest messages are in its list {set_aside.SAMPLES}"
        yield Finding("messages set aside", "warning", found, advice)
