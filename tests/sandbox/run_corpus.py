"""Run the corpora in one setting and print the results as JSON.

    python run_corpus.py FOLDER_WITH_shared DATA_FOLDER [FIRST STEP]

FIRST and STEP choose a part of each corpus: the entry with this index, and every STEPth after it.

A separate script, because most settings belong to another user: `test_settings.py` starts it as root, as
nobody, or inside `container.py`. It imports only the standard library and `shared.sandbox`.
"""

from __future__ import annotations

import itertools
import json
import sys
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

if __name__ == "__main__":
    sys.path.insert(0, sys.argv[1])
from shared.sandbox import Asleep, Finished, Outcome, ProgramLimits, Sandbox
from shared.sandbox.keeper import Keeper

# Modules that the attacks import. With the policy off they get them; the kernel layers must hold alone.
DANGEROUS = (
    "_io", "_posixsubprocess", "builtins", "concurrent.futures.process",
    "concurrent.futures.thread", "ctypes", "faulthandler", "fcntl", "gc", "glob", "linecache",
    "logging", "marshal", "mmap", "multiprocessing.shared_memory", "os", "pickle", "posix",
    "resource", "select", "selectors", "shutil", "signal", "socket", "subprocess", "sys",
    "tempfile", "threading", "traceback", "urllib.request",
)  # fmt: skip
ENDED = {"timeout", "cpu_limit", "memory_limit", "stdout_too_large", "output_too_large", "crashed"}
REFUSED_BEFOREHAND = {"import_denied", "forbidden_name"}


def holds(attack: dict[str, Any], outcomes: list[Outcome], check: bool) -> bool:
    """Return True if every outcome is what the attack's `expect` demands."""
    if attack["must_hold"].startswith("policy") and not check:
        return True
    if attack["expect"] == "distinct":
        return len({str(outcome.value) for outcome in outcomes}) == len(outcomes)
    return all(_holds_once(attack, outcome, check) for outcome in outcomes)


def _holds_once(attack: dict[str, Any], outcome: Outcome, check: bool) -> bool:
    kind = outcome.error.type if outcome.error else None
    if kind in ("unavailable", "invalid_input"):
        return False
    if attack["expect"] == "no_proof":
        return not outcome.ok or not outcome.value
    if attack["expect"] == "terminated":
        return kind in ENDED or (check and kind in REFUSED_BEFOREHAND)
    return outcome.value != "execd" and not (attack.get("must_fail") and outcome.ok)


Run = Callable[[Sandbox, dict[str, Any], bool], Outcome]


def attack_all(sandbox: Sandbox, attacks: list[dict[str, Any]], check: bool, run: Run | None = None) -> list[str]:
    """Return names and outcomes of the attacks that succeeded."""

    def attack_one(attack: dict[str, Any]) -> str | None:
        # The second call without the policy runs code that was compiled separately.
        outcomes = [
            (run or as_function)(sandbox, attack, check) for _ in range(attack.get("repeat", 1 if check else 2))
        ]
        return None if holds(attack, outcomes, check) else f"{attack['name']}: {outcomes[-1]}"

    with ThreadPoolExecutor(4) as pool:
        return [failure for failure in pool.map(attack_one, attacks) if failure]


def as_function(sandbox: Sandbox, attack: dict[str, Any], check: bool) -> Outcome:
    """Run an attack as it is."""
    memory, timeout = _limits(attack)
    return sandbox.call(attack["code"], "f", {}, memory_limit=memory, timeout=timeout, check=check)


def as_program(sandbox: Sandbox, attack: dict[str, Any], check: bool) -> Outcome:
    """Run an attack as a program whose value is that of its function."""
    memory, timeout = _limits(attack)
    limits, seed = ProgramLimits(memory=memory, timeout=timeout), str(next(_seeds))
    source = f"{attack['code']}\nf()"
    with sandbox.program(source, {}, seed=seed, now=1_800_000_000.0, limits=limits, check=check) as program:
        event = program.start()
        while isinstance(event, Asleep):
            event = program.resume()
    value, fault = (event.value, None) if isinstance(event, Finished) else (None, event.fault)
    used = program.duration, program.cpu_time, program.peak_memory
    return Outcome(fault is None, value, fault, event.stdout, *used, layers=())


def _limits(attack: dict[str, Any]) -> tuple[int, float]:
    return attack.get("mem", 128), 0.3 if attack["expect"] == "terminated" else 5.0


_seeds = itertools.count()


def honest_all(sandbox: Sandbox, functions: list[dict[str, Any]]) -> list[str]:
    """Return names and outcomes of the honest functions that did not work."""

    def try_one(function: dict[str, Any]) -> list[str]:
        name, code, imports = function["name"], function["code"], function["imports"]
        outcome = sandbox.call(code, "f", function["input"], allowed_imports=imports)
        works = outcome.ok and outcome.value == function["expected"]
        problems = sandbox.validate(code, "f", allowed_imports=imports)
        return [f"{name}: {fault}" for fault in ([] if works else [outcome]) + problems]

    with ThreadPoolExecutor(4) as pool:
        return [failure for failures in pool.map(try_one, functions) for failure in failures]


def main() -> None:
    data = Path(sys.argv[2])
    first, step = map(int, sys.argv[3:]) if len(sys.argv) > 3 else (0, 1)
    attacks = json.loads((data / "attacks.json").read_text(encoding="utf-8"))[first::step]
    honest = json.loads((data / "honest.json").read_text(encoding="utf-8"))[first::step]
    # Without the policy the zygote is one that is shared: an attack could then concern other processes too.
    door = Keeper(DANGEROUS).door
    with Sandbox() as checked, Sandbox(preload=DANGEROUS, door=door) as unchecked:
        result = {
            "level": checked.level,
            "layers": checked.layers,
            "attacks with policy": attack_all(checked, attacks, True),
            "attacks on the kernel layers alone": attack_all(unchecked, attacks, False),
            "honest functions": honest_all(checked, honest),
            "tried": [len(attacks), len(honest)],
        }
    print(json.dumps(result))


if __name__ == "__main__":
    main()
