"""The writes of a journal: each is one transaction, which stops if the claim is not current.

A write can also reserve what a step may use of budgets, or settle what it has used.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from dataclasses import KW_ONLY, dataclass, field
from typing import Any
from uuid import UUID

from sqlalchemy import Connection

from shared.database.connections import persistently
from shared.errors import Cancelled, MinionError
from shared.tasks import batches, budgets, lifecycle, remote_calls, stops
from shared.tasks.batches import BatchCall
from shared.tasks.records import Charge, Flags, Reserve, StepRecord, Stop
from shared.tasks.throttles import ModelRate, rates_in
from workers.followers import Followers
from workers.outcomes import ClaimLost, Deferred, Postponed
from workers.pricing import FREE, Reservation
from workers.steps import StepResult, Used, failed, finished

FRESH_SECONDS = 0.5
"""Validity of a step's check for stops: a call that begins later, after a wait or a slow write, checks again."""


class Stopped(MinionError):
    """A stop applies to the task, so this call did not begin."""

    code = "stopped"
    retryable = True


@dataclass
class JournalWriter:
    """Writes the steps of one task.

    Attributes:
        has_budget: a budget applies to the task, so no step begins before its reservation is written.
        reserves: a standing budget was found to apply to a call, so the next ones reserve their worst case at once.
        joins: after each step the next one begins without anything slow in between, or the caller commits. The end of a
            model call or of an idempotent step is then committed together with that beginning.
        unwritten: steps to be written together with the next write.
        lock: protects what the parts of a journal share (see `Journal.part`), because they are used in parallel.
        written_at: when the last write began, by the monotonic clock.
        rates: the limits of the model, if the last write began a call of one.
    """

    task_id: UUID
    claim: int
    _: KW_ONLY
    has_budget: bool = False
    reserves: bool = False
    joins: bool = False
    unwritten: list[StepRecord] = field(default_factory=list)
    used: Used = field(default_factory=Used)
    lock: threading.RLock = field(default_factory=threading.RLock)
    abandoned: threading.Event = field(default_factory=threading.Event)
    written_at: float = 0.0
    rates: list[ModelRate] | None = None
    followers: Followers = field(init=False)

    def __post_init__(self) -> None:
        self.followers = Followers(self.task_id)

    def refuse_if_stopped(self) -> None:
        """Check for stops again if the last check is not fresh.

        Raises:
            Postponed: a stop applies to the task.
        """
        if time.monotonic() - self.written_at < FRESH_SECONDS:
            return
        self.written_at = time.monotonic()
        if (stop := persistently(stops.stop_of, self.task_id)) is not None:
            raise _stopped(stop)

    def fresh_rates(self) -> list[ModelRate] | None:
        """Return the limits that the beginning of a model call returned; None if there was none, or not just now."""
        return self.rates if time.monotonic() - self.written_at < FRESH_SECONDS else None

    def commit(self) -> None:
        """Commit finished steps that wait for the next write, before something slow begins."""
        with self.lock:
            if any(step["status"] == "finished" and step["effect"] != "pure" for step in self.unwritten):
                self._write([])

    def write_kept(self) -> None:
        """Commit all steps that wait for the next write, pure ones too.

        Raises:
            Cancelled: the task was cancelled in the meantime.
            Postponed, ClaimLost: as for `Journal.call`.
        """
        with self.lock:
            if self.unwritten:
                self._write([])

    def abandon(self) -> None:
        """Stop all writes through this journal: calls that still run in other threads no longer own it."""
        self.abandoned.set()

    def keep(self, step: StepRecord) -> None:
        """Keep a step for the next write."""
        with self.lock:
            self.unwritten.append(step)

    def begin(
        self, started: StepRecord, reserve: Callable[[], Reservation] | None, call: BatchCall | None = None
    ) -> Reservation | None:
        """Commit a step as started, with the reservation of its worst case where a budget applies.

        Args:
            call: the step's call, if it is in the batch lane.
        """
        reserved = reserve() if reserve is not None and (self.has_budget or self.reserves) else None
        asked = _worst_case(started["number"], reserved) if reserved or self.has_budget else None
        if not self._write([started], reserve=asked, call=call):
            self.reserves = True
            reserved = reserved or (reserve() if reserve is not None else FREE)
            while not self._write([started], reserve=_worst_case(started["number"], reserved), call=call):
                pass  # Another standing budget was added in between.
        return reserved

    def _finish(self, started: StepRecord, result: StepResult, reserved: Reservation | None) -> None:
        """Keep the result of a step, or commit it."""
        with self.lock:
            self.used.add(result)
        # Budgets are settled at once.
        joins = self.joins and started["effect"] == "idempotent" and not (self.has_budget or self.reserves)
        if started["effect"] == "pure" or joins:
            self.keep(finished(started, result))
        else:
            self._write([finished(started, result)], used=_charge(started["number"], reserved, result))

    def _fail(
        self, started: StepRecord, error: dict[str, Any], reserved: Reservation | None, cause: MinionError | None
    ) -> None:
        """Keep the failure of a step. An API that refuses a call charges nothing, so its reservation is released. If it
        is unknown whether the call was charged, the reserved amount stays spent.
        """
        self.keep(failed(started, error))
        if reserved is not None and not (cause and cause.detail.get("cost_unknown")):
            # Without the failed step, which the retry policy still has to examine.
            persistently(self._commit, [], used={"step": started["number"], "tokens": 0, "microdollars": 0})

    def _defer(self, started: StepRecord, deferred: Deferred) -> None:
        """Commit the call of a step that its server finishes later, before anything waits for it.

        If the claim is lost, the server's task is left alone: another claim may get the same one for the same
        idempotency key.
        """
        with self.lock:
            if self.abandoned.is_set() or deferred.call is None:
                raise ClaimLost
            steps: list[StepRecord] = [*self.unwritten, {**started, "usage": deferred.usage or {}}]
            if not persistently(remote_calls.begin, self.task_id, self.claim, steps, deferred.call):
                raise ClaimLost
            self.unwritten.clear()
        self.followers.notify()

    def _count_steps(self, number: int, how_many: int = 1) -> None:
        """Sub-tasks and waits count as steps too, before the task is suspended for them."""
        if self.has_budget:
            self._write([], reserve={"step": number, "steps": how_many})

    def _write(
        self,
        steps: list[StepRecord],
        *,
        reserve: Reserve | None = None,
        used: Charge | None = None,
        call: BatchCall | None = None,
    ) -> bool:
        """Commit steps with the amounts that they reserve or have used of budgets: see `shared.tasks.budgets.spend`.
        Also the call of the last one, if that is in the batch lane.

        Return False if nothing was written, because the step must reserve its worst case.
        """
        with self.lock:
            if self.abandoned.is_set():
                raise ClaimLost
            self.written_at = time.monotonic()
            flags = persistently(self._commit, [*self.unwritten, *steps], reserve=reserve, used=used, call=call)
            self.rates = rates_in(flags["rates"]) if flags and "rates" in flags else None
            if flags is None:
                raise ClaimLost
            if "breach" in flags:
                # Nothing was written. Steps that have ended wait neither for an estimate nor for the task's suspension.
                self.commit()
            if stop := flags.get("stopped"):
                raise _stopped(stop)
            if flags.get("unreserved"):
                return False
            if breach := flags.get("breach"):
                raise budgets.exceeded(breach)
            self.unwritten.clear()
        self.followers.notify()
        if flags["cancel"]:
            raise Cancelled("Cancelled while it ran.")
        return True

    def _commit(
        self,
        connection: Connection,
        /,
        steps: list[StepRecord],
        *,
        reserve: Reserve | None = None,
        used: Charge | None = None,
        call: BatchCall | None = None,
    ) -> Flags | None:
        if call is not None:
            return batches.begin(connection, self.task_id, self.claim, steps, call, reserve)
        if reserve is None and used is None:
            return lifecycle.write_steps(connection, self.task_id, self.claim, steps, _model_that_begins(steps[-1]))
        return budgets.spend(connection, self.task_id, self.claim, steps, reserve=reserve, used=used)


def _model_that_begins(step: StepRecord) -> str | None:
    return step["name"] if step["kind"] == "model_call" and step["status"] == "started" else None


def _stopped(stop: Stop) -> Postponed:
    return Postponed(None, "stopped", Stopped(f"It did not begin: {stops.describe(stop)}"))


def _worst_case(number: int, reserved: Reservation | None) -> Reserve:
    """The amounts that a step reserves in every budget before it begins."""
    if reserved is None:
        return {"step": number, "steps": 1}
    return {"step": number, "steps": 1, "tokens": reserved.tokens, "microdollars": reserved.microdollars}


def _charge(number: int, reserved: Reservation | None, result: StepResult) -> Charge | None:
    """The amounts that a step really used; if that is unknown, the reserved amounts stay spent."""
    if reserved is None:
        return None
    tokens = result.input_tokens + result.output_tokens
    unknown = tokens == 0 and result.cost_microdollars is None
    return {"step": number, "tokens": None if unknown else tokens, "microdollars": result.cost_microdollars}
