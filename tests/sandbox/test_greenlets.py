"""Programs in a process whose threads are greenlets, as in a worker's lane."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

SCRIPT = """
from gevent import monkey
monkey.patch_all()
import json, os, time
import gevent
from shared.sandbox import Calls, ProgramLimits, Reply, Sandbox

def run(source, timeout):
    limits = ProgramLimits(timeout=timeout)
    with sandbox.program(source, {"double": ("number",)}, seed="s", now=0.0, limits=limits) as program:
        event = program.start()
        while isinstance(event, Calls):
            gevent.sleep(0.001)
            event = program.resume([Reply(call.id, 2 * call.arguments["number"]) for call in event.calls])
    return type(event).__name__

def interrupted():
    with gevent.Timeout(0.2, False):
        return run("await double(1)\\nwhile True: pass", 60)
    return "interrupted"

def pulse():
    while True:
        beats.append(time.monotonic())
        gevent.sleep(0.01)

def descriptors():
    return len(os.listdir("/proc/self/fd"))

beats = []
with Sandbox() as sandbox:
    run("return 1", 5)
    before = descriptors()
    pulsing = gevent.spawn(pulse)
    honest = "n = 1\\nfor _ in range(9): n = await double(n)\\nreturn n"
    greenlets = [gevent.spawn(run, source, 0.7) for source in ("while True: pass", honest, honest)]
    greenlets += [gevent.spawn(interrupted) for _ in range(3)]
    gevent.joinall(greenlets)
    pulsing.kill()
    gaps = [later - earlier for earlier, later in zip(beats, beats[1:])]
    ends = [greenlet.value for greenlet in greenlets]
    print(json.dumps({"ends": ends, "gap": max(gaps), "left": descriptors() - before}))
"""


def test_programs_let_other_greenlets_run() -> None:
    root = Path(__file__).parents[2]
    done = subprocess.run(
        [sys.executable, "-c", SCRIPT], cwd=root, capture_output=True, text=True, check=True, timeout=60
    )
    result = json.loads(done.stdout)
    assert result["ends"] == ["Failed", "Finished", "Finished"] + ["interrupted"] * 3
    assert result["gap"] < 0.5  # the program that does not end would take 0.7 s
    assert result["left"] <= 3 * 4  # what the children have that wait for the next call
