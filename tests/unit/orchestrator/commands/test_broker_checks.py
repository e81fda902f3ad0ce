"""Findings of `minion doctor` from the facts that a broker reports."""

from __future__ import annotations

from typing import Any

import pytest

from orchestrator.commands.broker_checks import _disk, _memory, _mode, _version


@pytest.mark.parametrize(
    ("facts", "verdict"),
    [
        ({"redis_version": "6.0.16"}, "warning"),
        ({"redis_version": "7.0.15"}, "ok"),
        ({"redis_version": "7.2.4", "valkey_version": "9.1.2"}, "ok"),
    ],
)
def test_old_version_is_reported(facts: dict[str, str], verdict: str) -> None:
    assert _version(facts).verdict == verdict


@pytest.mark.parametrize(
    ("facts", "found"),
    [
        ({"redis_mode": "standalone", "role": "master"}, []),
        ({"redis_mode": "sentinel", "role": "master"}, []),
        ({"redis_mode": "cluster", "role": "master"}, ["cluster"]),
        ({"redis_mode": "standalone", "role": "slave"}, ["a read-only replica"]),
    ],
)
def test_mode_that_cannot_work_is_reported(facts: dict[str, str], found: list[str]) -> None:
    findings = list(_mode(facts))
    assert [finding.found for finding in findings] == found
    assert {finding.verdict for finding in findings} <= {"failed"}


@pytest.mark.parametrize(
    ("facts", "verdict", "found"),
    [
        ({}, "ok", "maxmemory-policy noeviction"),
        ({"maxmemory_policy": "allkeys-lru"}, "warning", "allkeys-lru"),
        ({"maxmemory": 100 << 20, "used_memory": 95 << 20}, "warning", "95 of 100 MB used"),
        ({"maxmemory": 100 << 20, "used_memory": 80 << 20}, "ok", "noeviction"),
    ],
)
def test_memory_is_judged(facts: dict[str, Any], verdict: str, found: str) -> None:
    finding = _memory(facts)
    assert finding.verdict == verdict
    assert found in finding.found


@pytest.mark.parametrize("name", ["rdb_last_bgsave_status", "aof_last_write_status"])
def test_server_that_cannot_save_is_reported(name: str) -> None:
    assert list(_disk({name: "ok"})) == []
    [finding] = _disk({name: "err"})
    assert finding.verdict == "warning"
