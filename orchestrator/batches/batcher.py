"""The batcher: sends the model calls of the batch lane in Message Batches, and brings the answers back.

A batch is committed, with its calls, before it is created. If the answer to the creation is lost, there is no id, and
lists of batches show none of ours: `_find` looks at those that were created since. One with another number of requests
is not ours; one with the same number is read when it has ended, and is ours if its results have our names. Only a batch
that is not there `batch_lost_seconds` later is created again, so no call is paid for twice.
"""

from __future__ import annotations

import json
import time
from datetime import timedelta
from typing import TYPE_CHECKING
from uuid import UUID

import structlog
from sqlalchemy import Connection, Engine

from minions.backoff import exponential, jittered
from orchestrator.batches.batch import Batch, Lost, Refused
from orchestrator.batches.results import Answer, invalid, read, unknown
from orchestrator.loops.leadership import Leadership
from orchestrator.loops.loop import Loop, seconds_within_lease
from shared.database.connections import autocommit
from shared.errors import NotConfigured
from shared.settings import Settings
from shared.tasks import batches
from shared.tasks.batches import OpenBatch, SentCall

if TYPE_CHECKING:
    from orchestrator.batches.api import BatchesApi

log = structlog.get_logger(__name__)

LARGEST_BYTES = 32 << 20
"""Of the requests of a batch. The API accepts 256 MB; they are all in memory while they are sent."""
SKEW = timedelta(minutes=10)
"""Difference between the API's clock and that of PostgreSQL which does no harm."""
FIRST_SECONDS, LONGEST_SECONDS = 5.0, 900.0
"""Until the next creation after one that the API refused, whatever its calls."""
EXPIRES_SECONDS = 24 * 3600.0
"""Within this time the API ends a batch."""
BY_CONTENT = frozenset({400, 413, 422})
"""Statuses for which smaller batches are worth a try: one of the calls, or all of them together, are refused."""


class Batcher(Loop):
    """Creates Message Batches and collects their results. One orchestrator at a time does it.

    Attributes:
        foreign: ids of batches that are not ours.
        missed: when a batch, or a result in it, was first looked for in vain, by the monotonic clock.
    """

    name = "batcher"

    def __init__(self, settings: Settings, engine: Engine) -> None:
        super().__init__()
        self.settings = settings
        self.statements = autocommit(engine)
        self.leadership = Leadership(settings, self.name)
        self.api: BatchesApi | None = None
        self.refusals = 0
        self.not_before = 0.0
        self.foreign: set[str] = set()
        self.missed: dict[UUID, float] = {}

    def run_once(self) -> float:
        """Do what is due: find, create, collect."""
        pause = seconds_within_lease(self.settings)
        if not self.leadership.held():
            return pause
        with self.statements.connect() as connection:
            batches.tidy(connection)
            waiting = batches.open_batches(connection)
            unsent = batches.has_unsent(connection)
        if not (waiting or unsent):
            return pause
        try:
            api = self._connect()
        except NotConfigured as error:
            with self.statements.connect() as connection:
                batches.hold_back(connection, error.message)
            return pause
        for batch in waiting:
            if self.stopping.is_set() or not self.leadership.held():
                return pause
            if batch.is_due:
                (self._find if batch.batch_id is None else self._collect)(api, batch)
        while unsent and time.monotonic() >= self.not_before and not self.stopping.is_set() and self.leadership.held():
            unsent = self._create_next(api)
        return pause

    def close(self) -> None:
        """Release the lead and the connections."""
        self.leadership.release()
        if self.api is not None:
            self.api.close()

    def _connect(self) -> BatchesApi:
        if self.api is None:
            from orchestrator.batches.api import BatchesApi

            self.api = BatchesApi(self.settings)
        return self.api

    # ---------------------------------------------------------------------------------------------------- creation

    def _create_next(self, api: BatchesApi) -> bool:
        """Create a batch of waiting calls. Return False if there is none to create now."""
        most, age = self.settings.batch_calls, self.settings.batch_seconds
        began = time.monotonic()
        with self.statements.connect() as connection:
            batch = batches.gather(connection, most=most, largest=LARGEST_BYTES, age=age)
            calls = batches.calls_of(connection, batch) if batch is not None else []
        if batch is None:
            return False
        self._create(api, batch, calls, until=began + self.settings.batch_lost_seconds / 2)
        return True

    def _create(self, api: BatchesApi, batch: UUID, calls: list[SentCall], *, until: float) -> None:
        """Create a batch.

        Args:
            until: by the monotonic clock. Another orchestrator may soon take it for lost: a process that slept must not
                send it.
        """
        requests = [{"custom_id": call.custom_id, "params": json.loads(call.body)} for call in calls]
        betas = {beta for request in requests for beta in request["params"].pop("betas", ())}
        if time.monotonic() > until:
            self._give_up_creation(batch, "The orchestrator slept before it sent the batch.")
            return
        try:
            batch_id = api.create(requests, betas)
        except Refused as refused:
            self._give_back(batch, calls, refused)
        except Lost as lost:
            log.warning("batch_creation_lost", batch=str(batch), calls=len(calls), reason=str(lost))
            self._postpone(batch, min(self.settings.batch_poll_seconds, self.settings.batch_lost_seconds), str(lost))
        else:
            self.refusals = 0
            self._record(api, batch, batch_id)

    def _record(self, api: BatchesApi, batch: UUID, batch_id: str) -> None:
        with self.statements.connect() as connection:
            recorded = batches.created(connection, batch, batch_id)
        if recorded:
            log.info("batch_created", batch=batch_id)
        else:
            # This process slept for so long that another one has given its calls back.
            log.warning("batch_cancelled", batch=batch_id, why="its calls are sent in another one")
            api.cancel(batch_id)

    def _give_back(self, batch: UUID, calls: list[SentCall], refused: Refused) -> None:
        """Send the calls of a batch that was refused later, or in two halves, or fail the only one."""
        delay, most = 0.0, None
        if refused.status not in BY_CONTENT:
            delay = self._delay_after(refused)
            self.not_before = time.monotonic() + delay
        elif len(calls) > 1:
            most = (len(calls) + 1) // 2
        log.warning("batch_refused", calls=len(calls), reason=str(refused), seconds=round(delay, 1))
        with self.statements.connect() as connection:
            if refused.status in BY_CONTENT and len(calls) == 1:
                answer = invalid(refused.status, refused.reason)
                batches.answer(connection, batch, calls[0].custom_id, answer.text, answer.used, answer.usage)
            batches.refused(connection, batch, str(refused), delay=delay, most=most)

    def _delay_after(self, refused: Refused) -> float:
        """Return the seconds until the next creation: more after each refusal in a row, at least what the API asks."""
        self.refusals += 1
        delay = jittered(exponential(self.refusals, first=FIRST_SECONDS, longest=LONGEST_SECONDS))
        return max(delay, min(refused.retry_after or 0.0, LONGEST_SECONDS))

    # ---------------------------------------------------------------------------- a creation whose answer was lost

    def _find(self, api: BatchesApi, batch: OpenBatch) -> None:
        """Look for a batch whose creation got no answer among those that were created since."""
        with self.statements.connect() as connection:
            names = {call.custom_id for call in batches.calls_of(connection, batch.id)}
        try:
            running = None
            for candidate in self._candidates(api, batch):
                if candidate.ended_at is None:
                    running = candidate
                elif self._has_names(api, candidate, names):
                    log.info("batch_found", batch=candidate.id, calls=batch.calls)
                    self._record(api, batch.id, candidate.id)
                    return
        except (Refused, Lost) as error:
            self._postpone(batch.id, self.settings.batch_poll_seconds, str(error))
            return
        if running is not None:
            why = f"The answer to its creation was lost; batch {running.id} may be it, and is read when it has ended."
            self._postpone(batch.id, self.settings.batch_poll_seconds, why)
        elif batch.age < self.settings.batch_lost_seconds:
            why = "The answer to its creation was lost; the API does not list it yet."
            self._postpone(batch.id, min(self.settings.batch_poll_seconds, self.settings.batch_lost_seconds), why)
        else:
            self._give_up_creation(batch.id, "The API did not receive the batch.")

    def _give_up_creation(self, batch: UUID, why: str) -> None:
        """Give back the calls of a batch that is not at the API, to be sent again at once."""
        log.warning("batch_not_created", batch=str(batch), reason=why)
        with self.statements.connect() as connection:
            batches.refused(connection, batch, why, delay=0.0)

    def _candidates(self, api: BatchesApi, batch: OpenBatch) -> list[Batch]:
        """Return the unknown batches of this size that were created when this one may have been."""
        latest = batch.created_at + timedelta(seconds=self.settings.batch_lost_seconds) + SKEW
        found = [
            each
            for each in api.since(batch.created_at - SKEW)
            if each.requests == batch.calls and each.created_at <= latest and each.id not in self.foreign
        ]
        with self.statements.connect() as connection:
            known = batches.known(connection, [each.id for each in found])
        return [each for each in found if each.id not in known]

    def _has_names(self, api: BatchesApi, candidate: Batch, names: set[str]) -> bool:
        """Return whether a batch that has ended has results of these calls. Batches of others are left alone.

        Raises:
            Refused, Lost: its results cannot be read now.
        """
        if candidate.has_results:
            there = {line["custom_id"] for line in api.results(candidate.id)}
            if not there:
                raise Lost(f"The results of batch {candidate.id}, which may be ours, cannot be read.")
            if there & names:
                return True
        self.foreign.add(candidate.id)
        return False

    # -------------------------------------------------------------------------------------------------- collection

    def _collect(self, api: BatchesApi, batch: OpenBatch) -> None:
        """Record the results of a batch that has ended."""
        assert batch.batch_id is not None
        try:
            found = api.retrieve(batch.batch_id)
            if found.ended_at is None:
                self.missed.pop(batch.id, None)
                self._postpone(batch.id, self.settings.batch_poll_seconds)
                return
            if found.has_results and not self._record_results(api, batch, batch.batch_id):
                return
        except Lost as lost:
            self._postpone(batch.id, self.settings.batch_poll_seconds, str(lost))
            return
        except Refused as refused:
            if refused.status != 404:
                self._postpone(batch.id, self.settings.batch_poll_seconds, str(refused))
            else:
                self._miss(batch)
            return
        self._give_up(batch, f"Batch {batch.batch_id} has ended, and has no result for the call")

    def _miss(self, batch: OpenBatch) -> None:
        """Wait for a batch that the API does not know, until it would have expired: the key may be the wrong one."""
        why = (
            f"The Anthropic API does not know batch {batch.batch_id} (it was deleted, or the orchestrator's key belongs"
            " to another workspace)"
        )
        if batch.age < EXPIRES_SECONDS:
            self._postpone(batch.id, self.settings.batch_poll_seconds, f"{why}.")
        else:
            self._give_up(batch, why)

    def _record_results(self, api: BatchesApi, batch: OpenBatch, batch_id: str) -> bool:
        """Record the results of a batch. Return False if another orchestrator must do the rest."""
        with self.statements.connect() as connection:
            calls = {call.custom_id: call for call in batches.calls_of(connection, batch.id)}
        for line in api.results(batch_id):
            call = calls.pop(line["custom_id"], None)
            if call is None:
                continue  # Its answer was recorded before.
            # This also keeps the lead: there may be results for minutes.
            if self.stopping.is_set() or not self.leadership.held():
                return False
            outcome = read(line, batch_id, call.model, call.attempt)
            with self.statements.connect() as connection:
                if isinstance(outcome, Answer):
                    batches.answer(connection, batch.id, call.custom_id, outcome.text, outcome.used, outcome.usage)
                else:
                    batches.give_back(
                        connection, batch.id, call.custom_id, outcome.why, delay=self.settings.batch_seconds
                    )
        return True

    def _give_up(self, batch: OpenBatch, why: str) -> None:
        """End a batch. Calls without a result fail when `batch_lost_seconds` have passed since this was first noticed,
        because one answer may be broken, also long after the batch has ended: they may have been charged.
        """
        missed = self.missed.setdefault(batch.id, time.monotonic())
        with self.statements.connect() as connection:
            if batches.end(connection, batch.id):
                log.info("batch_ended", batch=batch.batch_id)
            elif time.monotonic() - missed < self.settings.batch_lost_seconds:
                batches.postpone(connection, batch.id, delay=self.settings.batch_poll_seconds, why=f"{why}.")
                return
            else:
                log.error("batch_without_results", batch=batch.batch_id, why=why)
                self._fail_calls(connection, batch, why)
        del self.missed[batch.id]

    def _fail_calls(self, connection: Connection, batch: OpenBatch, why: str) -> None:
        for call in batches.calls_of(connection, batch.id):
            answer = unknown(why, str(batch.batch_id))
            batches.answer(connection, batch.id, call.custom_id, answer.text, answer.used, answer.usage)
        batches.end(connection, batch.id)

    def _postpone(self, batch: UUID, delay: float, why: str | None = None) -> None:
        with self.statements.connect() as connection:
            batches.postpone(connection, batch, delay=delay, why=why)
