"""The workloads, one module each: `run(bench)` measures, and returns tables.

A new workload is one more module here. It gets what it needs from `bench.environment` and `bench.systems()`.
"""

from __future__ import annotations

from types import ModuleType

from benchmarks.workloads import bulk, chain, fan_out, fibo, growth, model_call, noop, round_trip

# Growth is the last one: it empties the tables of Minions.
WORKLOADS: dict[str, ModuleType] = {
    "noop": noop,
    "model-call": model_call,
    "round-trip": round_trip,
    "chain": chain,
    "fan-out": fan_out,
    "fibo": fibo,
    "bulk": bulk,
    "growth": growth,
}
