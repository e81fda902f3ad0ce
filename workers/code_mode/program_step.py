"""The step of a program: open from its beginning to its end, while the program makes its calls, which are steps too.

The program runs again when its task does, and the journal reads its calls back.
"""

from __future__ import annotations

import copy
from dataclasses import dataclass
from typing import Any

from shared.contracts.strict_json import JsonValue, digest
from shared.database.connections import persistently
from shared.errors import HistoryDiverged, MinionError
from shared.tasks import lifecycle
from shared.tasks.records import KnownStep, StepRecord
from workers.journal import SAME_CALLS, Journal, draining
from workers.outcomes import Caller, Postponed
from workers.steps import StepResult, begun, end_of, now


@dataclass(frozen=True, slots=True)
class OpenProgram:
    """A program that has begun and not ended, also while its task waits.

    Attributes:
        record: of its step, as it began.
        facts: the program's inputs beside its code, the same whenever it runs again.
        calls: the journal of its calls.
    """

    record: StepRecord
    facts: dict[str, Any]
    calls: Journal

    def later_call(self) -> KnownStep | None:
        """Return the next call of the program when it ran before; None if it has made as many this time."""
        own, last = self.record["number"], self.calls.last_number
        known = (step for _, step in sorted(self.calls.known.items()) if step.get("program") == own)
        return next((step for step in known if step["number"] > last), None)

    def end(self, end: StepResult | MinionError) -> None:
        """Record the end of the program. It is written with the next step.

        Raises:
            HistoryDiverged: the journal has further calls of this program.
        """
        if later := self.later_call():
            number, line = self.record["number"], later.get("line")
            raise HistoryDiverged(
                f"History diverged at step {later['number']}: the program of step {number} ended, and when it ran "
                f"before, it called {later['name']!r} in line {line} then. {SAME_CALLS}",
                step=later["number"],
            )
        ended: StepRecord = {**self.record, "finished_at": now()}
        if isinstance(end, MinionError):
            self.calls.keep({**ended, "status": "failed", "error": {**end.as_dict(), "retryable": False}})
        else:
            self.calls.keep({**ended, "status": "finished", "output": end.output})


def begin(journal: Journal, name: str, arguments: JsonValue, facts: dict[str, Any]) -> OpenProgram | JsonValue:
    """Begin the step of a program, or return the output of one that has ended.

    Args:
        arguments: identify the step.
        facts: the program's other inputs; one that runs again receives the recorded ones.

    Raises:
        BudgetExceeded, HistoryDiverged, Cancelled, Postponed, ClaimLost: as for `Journal.call`.
        MinionError: the error with which the program ended.
    """
    number, request_hash = journal.take(), digest(["tool_call", name, arguments])
    known = journal.matching(number, "tool_call", name, request_hash, {"arguments": arguments})
    if known is not None and known["status"] != "started":
        return end_of(known)
    if draining.is_set():
        raise Postponed(0.0, "handed_back")
    record = begun(number, "tool_call", name, "idempotent", request_hash)
    record["program"] = number
    if known is None:
        facts = journal.facts_of_program(number, facts)
        journal.begin({**record, "input": {"arguments": arguments, **facts}}, None)
    else:
        recorded = persistently(lifecycle.step_input, journal.task_id, number)
        facts = {name: recorded[name] for name in facts}
    calls = copy.copy(journal)
    # A program may take long between two calls.
    calls.joins, calls.last_number, calls.caller = False, number, Caller(number)
    return OpenProgram(record, facts, calls)
