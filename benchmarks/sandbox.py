"""Cost of one sandboxed call, compared with starting an interpreter on the same machine.

    python -m benchmarks.sandbox [--quick] [--json]

Everything is measured in one run, in alternating rounds, because machines are noisy: compare the ratios.
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import shutil
import statistics
import subprocess
import sys
import threading
import time
from collections import deque
from collections.abc import Callable
from functools import partial
from pathlib import Path

from benchmarks.samples import percentile, seconds
from shared.sandbox import Calls, Finished, Reply, Sandbox
from shared.sandbox.confined.modules import SAFE_IMPORTS
from shared.sandbox.fork_server import ForkServer

PLAIN = "def f(x): return {'x': x * 2}"
ASYNC = """
import asyncio
async def f(x):
    return await asyncio.gather(*[asyncio.sleep(0, i) for i in range(x)])
"""
FURTHER = 20
PROGRAMS = {
    "program without a call": "return {'x': 6}",
    "program with one call": "return {'x': await double(3)}",
    f"program with {1 + FURTHER} calls": f"for x in range({1 + FURTHER}): y = await double(x)\nreturn {{'x': y}}",
}
IDLE = 0.025
"""Seconds between two calls, after which the next call finds a rested child."""

BUBBLEWRAP = ("bwrap", "--unshare-all", "--ro-bind", "/", "/", "--die-with-parent")


def timed(action: Callable[[], object]) -> float:
    """Return the duration of the action in milliseconds."""
    return 1000 * seconds(action)


def start(*command: str) -> Callable[[], object]:
    """Return an action that runs a program to its end."""
    return lambda: subprocess.run(command, check=True, stdin=subprocess.DEVNULL)


def latencies(sandbox: Sandbox, rounds: int) -> dict[str, list[float]]:
    """Return the milliseconds of each method of running one function in a fresh process, measured in turn."""

    def call(source: str) -> Callable[[], object]:
        return lambda: sandbox.call(source, "f", {"x": 3})

    ways: dict[str, Callable[[], object]] = {
        "python -I -S -c pass": start(sys.executable, "-I", "-S", "-c", "pass"),
        "python -c pass": start(sys.executable, "-c", "pass"),
    }
    if shutil.which("bwrap"):
        ways["bubblewrap + python -I -S"] = start(*BUBBLEWRAP, sys.executable, "-I", "-S", "-c", "pass")
    samples: dict[str, list[float]] = {
        name: [] for name in (*ways, "parked call", "back-to-back call", "async call", "policy off")
    }
    for _ in range(rounds):
        for name, action in ways.items():
            samples[name].append(timed(action))
        for name, source in (("parked call", PLAIN), ("async call", ASYNC)):
            for _ in range(4):
                time.sleep(IDLE)
                samples[name].append(timed(call(source)))
        time.sleep(IDLE)
        samples["policy off"].append(timed(lambda: sandbox.call(PLAIN, "f", {"x": 3}, check=False)))
        samples["back-to-back call"] += [timed(call(PLAIN)) for _ in range(20)]
    return samples


def run_program(sandbox: Sandbox, source: str) -> None:
    """Run a program whose calls are answered at once."""
    with sandbox.program(source, {"double": ("number",)}, seed="", now=0.0) as program:
        event = program.start()
        while isinstance(event, Calls):
            event = program.resume([Reply(call.id, 2 * call.arguments["number"]) for call in event.calls])
        assert isinstance(event, Finished), event


def programs(sandbox: Sandbox, rounds: int) -> dict[str, float]:
    """Return the cost of programs beside that of a plain call, each compared with the call of its own round."""
    ways: dict[str, Callable[[], object]] = {"parked call": partial(sandbox.call, PLAIN, "f", {"x": 3})}
    ways |= {name: partial(run_program, sandbox, source) for name, source in PROGRAMS.items()}
    samples: dict[str, list[float]] = {name: [] for name in ways}
    for number in range(4 * rounds):
        # In another order each time: children are prepared two at a time, and the newest one is used.
        names = deque(ways)
        names.rotate(number)
        for name in names:
            time.sleep(2 * IDLE)
            samples[name].append(timed(ways[name]))
    calls, _, one, many = samples.values()
    more = {f"{name}, ms more": _difference(samples[name], calls) for name in PROGRAMS}
    return {
        **more,
        "each further call, ms": _difference(many, one) / FURTHER,
        "program with one call, ms more (lowest)": min(one) - min(calls),
        "program with one call, divided by it": statistics.median(one) / statistics.median(calls),
    }


def _difference(values: list[float], others: list[float]) -> float:
    return statistics.median(value - other for value, other in zip(values, others, strict=True))


def throughput(sandbox: Sandbox, callers: int, seconds: float) -> float:
    """Return the calls per second of this many threads."""
    counts = [0] * callers
    end = time.monotonic() + seconds

    def work(index: int) -> None:
        while time.monotonic() < end:
            assert sandbox.call(PLAIN, "f", {"x": 3}).ok
            counts[index] += 1

    threads = [threading.Thread(target=work, args=(index,)) for index in range(callers)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return sum(counts) / seconds


def processor_time(calls: int) -> dict[str, float]:
    """Return milliseconds of processor time per call, in the host and in the zygote with all its children, and the
    floor: forking a process of the same size that touches as many pages and does nothing else.
    """

    def spent() -> tuple[float, ...]:
        host, others = resource.getrusage(resource.RUSAGE_SELF), resource.getrusage(resource.RUSAGE_CHILDREN)
        return host.ru_utime + host.ru_stime, others.ru_utime + others.ru_stime, others.ru_minflt

    def run(number: int) -> list[float]:
        before = spent()
        with Sandbox() as sandbox:
            for _ in range(number):
                sandbox.call(PLAIN, "f", {"x": 3})
        return [after - earlier for earlier, after in zip(before, spent(), strict=True)]

    host, others, faults = ((busy - idle) / calls for idle, busy in zip(run(1), run(calls), strict=True))
    floor = fork_floor(calls, round(faults))
    return {
        "host": host * 1000,
        "zygote and children": others * 1000,
        "page faults of zygote and children": faults,
        "floor: fork, as many page faults, exit": floor,
        "zygote and children above the floor, %": (others * 1000 / floor - 1) * 100,
    }


def fork_floor(forks: int, faults: int) -> float:
    """Return milliseconds of processor time to fork and end a process as large as a zygote, with these page faults."""
    command = [sys.executable, "-I", "-S", str(Path(__file__).with_name("fork_floor.py")), str(forks), str(faults)]
    names = " ".join(sorted(SAFE_IMPORTS))
    return float(subprocess.run([*command, names], check=True, capture_output=True, text=True).stdout)


def memory(sandbox: Sandbox) -> dict[str, float]:
    """Return megabytes of proportional memory (PSS), of the zygote and of one child that waits for a call."""
    assert isinstance(sandbox._server, ForkServer)
    outer = sandbox._server.pid
    inner = _children(outer)[0]
    parked = _children(inner)
    sizes = {"process outside the pid namespace": _pss(outer), "zygote": _pss(inner)}
    return sizes | {"parked child": statistics.mean(map(_pss, parked))}


def _children(pid: int) -> list[int]:
    return [int(child) for child in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]


def _pss(pid: int) -> float:
    lines = Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith("Pss:")) / 1024


def precision(sandbox: Sandbox, rounds: int) -> dict[str, list[float]]:
    """Return the overshoot of each limit: milliseconds for time, megabytes for memory, bytes for sizes."""
    greedy = (
        "def f():\n    kept = []\n    try:\n        while True: kept.append(bytearray((1 << 18) - 4096))\n"
        "    except MemoryError:\n        return len(kept) / 4"
    )
    missed: dict[str, list[float]] = {
        "wall time, ms": [],
        "CPU time, ms": [],
        "output, bytes": [],
        "stdout, bytes": [],
    }
    for _ in range(rounds):
        took = timed(lambda: sandbox.call("import time\ndef f(): time.sleep(9)", "f", {}, timeout=0.1))
        missed["wall time, ms"].append(took - 100)
        spinning = sandbox.call("def f():\n    while True: pass", "f", {}, cpu_limit=0.1, timeout=9)
        missed["CPU time, ms"].append((spinning.cpu_time - 0.1) * 1000)
        for limit in (16, 64, 256):
            value = sandbox.call(greedy, "f", {}, memory_limit=limit).value
            missed.setdefault(f"memory of {limit} MB, MB", []).append(value - limit)
    for name, source in (
        ("output, bytes", "def f(n): return 'x' * (n - 2)"),
        ("stdout, bytes", "def f(n): print('x' * (n - 1))"),
    ):
        limit = 4 << 20 if name.startswith("output") else 64 << 10
        accepted = sandbox.call(source, "f", {"n": limit}).ok
        refused = not sandbox.call(source, "f", {"n": limit + 1}).ok
        missed[name].append(0.0 if accepted and refused else 1.0)
    return missed


def report(result: dict[str, dict[str, float]]) -> None:
    """Print the tables."""
    for title, rows in result.items():
        print(f"\n{title}")
        for name, value in rows.items():
            print(f"  {name:<44} {value:>10.2f}")


def measure(quick: bool) -> dict[str, dict[str, float]]:
    """Return all figures, by table."""
    rounds, seconds = (10, 1.0) if quick else (50, 4.0)
    with Sandbox() as sandbox:
        boot = timed(lambda: sandbox.level)
        time.sleep(1)  # until the canaries are gone and the waiting children have warmed up
        sizes = memory(sandbox)
        samples = latencies(sandbox, rounds)
        compared = programs(sandbox, rounds)
        rates = {f"{callers} callers": throughput(sandbox, callers, seconds) for callers in (1, 2, 4)}
        missed = precision(sandbox, 3 if quick else 10)
    base = statistics.median(samples["python -I -S -c pass"])
    return {
        "start of the sandbox with its self-test, ms": {"once": boot},
        "median, ms": {name: statistics.median(values) for name, values in samples.items()},
        "99th percentile, ms": {name: percentile(values, 0.99) for name, values in samples.items()},
        "python -I -S -c pass, divided by it": {
            **{name: base / statistics.median(values) for name, values in samples.items()},
            "parked call, 99th percentile": base / percentile(samples["parked call"], 0.99),
        },
        "programs beside a parked call": compared,
        "isolated calls a second": rates,
        "processor time a call, ms": processor_time(100 if quick else 500),
        "memory (PSS), MB": sizes,
        "largest miss of a limit": {name: max(values, key=abs) for name, values in missed.items()},
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--quick", action="store_true", help="fewer rounds")
    parser.add_argument("--json", action="store_true", help="for programs")
    options = parser.parse_args()
    result = measure(options.quick)
    if options.json:
        print(json.dumps(result))
        return
    print(f"{os.cpu_count()} processors, load {os.getloadavg()[0]:.2f}, Python {sys.version.split()[0]}")
    report(result)


if __name__ == "__main__":
    main()
