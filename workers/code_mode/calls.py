"""The calls of one program, round by round.

A round is all calls that the program has made until it can continue no further. They are made like the tool calls of
one model turn, and their results are delivered together, in the order of the calls: so the program continues in the
same way when it runs again, regardless of timing.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence

from shared.contracts.strict_json import JsonValue
from shared.errors import MinionError
from shared.sandbox.program_events import Call, Calls, Reply, ReplyError
from workers.code_mode.program_step import OpenProgram
from workers.journal import draining
from workers.outcomes import IN_PLACE_SECONDS, Caller, Postponed, Suspended
from workers.task import ClaimedTask
from workers.tool_calls import CallResult, PreparedCall, ToolCalls
from workers.tools.base import Tool

MOST_KEPT = 50
LONGEST_KEPT = 1.0
"""Pure steps, and seconds, after which they are written: a program may call pure tools only, a thousand times."""


class ProgramCalls:
    """Makes the calls of one program.

    Args:
        functions: the tools, by the names of their functions.
        program: the program, with the journal of its calls.
        arranged: as for `ToolCalls`.
    """

    def __init__(
        self,
        functions: dict[str, Tool],
        task: ClaimedTask,
        program: OpenProgram,
        arranged: Callable[[JsonValue], JsonValue],
    ) -> None:
        self.journal = program.calls
        self.names: list[str] = []
        self._program = program
        self._number = program.record["number"]
        self._tool_calls = ToolCalls(functions, task, self.journal, arranged)
        self._written_at = time.monotonic()

    def make(self, event: Calls) -> list[Reply | ReplyError] | Suspended:
        """Return the replies to the calls of a round, without those that the program has cancelled.

        Raises:
            MinionError: the task cannot continue, or has to repeat a call.
        """
        wanted = [call for call in event.calls if call.id in event.waiting]
        self.names += [call.name for call in wanted]
        outcomes = self._tool_calls.run([self._prepared(call) for call in wanted])
        if isinstance(outcomes, Suspended):
            return outcomes
        self._write_kept()
        return [self._reply(call, outcome) for call, outcome in zip(wanted, outcomes, strict=True)]

    def sleep(self, seconds: float) -> Suspended | None:
        """Let a sleep of the program pass: a short one here, a longer one without a worker.

        Raises:
            Postponed: this process stops.
        """
        if seconds <= IN_PLACE_SECONDS:
            self._sleep_here(seconds)
            return None
        self.journal.caller = Caller(self._number)
        waited = self.journal.wait(None, seconds)
        return waited if isinstance(waited, Suspended) else None

    def _sleep_here(self, seconds: float) -> None:
        """Sleep, unless the program got further when it ran before, or nothing waits in this task."""
        if self.journal.is_trial or self._program.later_call() is not None:
            return
        if draining.wait(seconds):
            raise Postponed(0.0, "handed_back")

    def _prepared(self, call: Call) -> PreparedCall:
        caller = Caller(self._number, call.line)
        return self._tool_calls.prepare(str(call.id), call.name, call.arguments, caller)

    def _write_kept(self) -> None:
        if len(self.journal.unwritten) > MOST_KEPT or time.monotonic() - self._written_at > LONGEST_KEPT:
            self.journal.write_kept()
            self._written_at = time.monotonic()

    def _reply(self, call: Call, outcome: CallResult) -> Reply | ReplyError:
        if isinstance(outcome, MinionError):
            return ReplyError(call.id, outcome.message)
        return Reply(call.id, self._tool_calls.arranged(outcome))


def counted(names: Sequence[str]) -> str:
    """Return the functions that were called, with how often, in the order of their first calls."""
    times = {name: names.count(name) for name in names}
    return ", ".join(f"{name} ({count}×)" if count > 1 else name for name, count in times.items())
