"""The workloads, one module each: `run(bench)` measures, and returns tables.

A new workload is one more module here. It starts what it needs from `bench.environment` and `bench.systems()`.
"""

from __future__ import annotations

from types import ModuleType

from benchmarks import bulk, chain, fan_out, fibo, growth, noop, round_trip

# Growth is the last one: it empties the tables of Minions.
WORKLOADS: dict[str, ModuleType] = {
    "noop": noop,
    "round-trip": round_trip,
    "chain": chain,
    "fan-out": fan_out,
    "fibo": fibo,
    "bulk": bulk,
    "growth": growth,
}
