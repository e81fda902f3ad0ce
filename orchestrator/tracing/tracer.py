"""The tracer: sends what has ended as spans, for all orchestrators."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from uuid import UUID

import structlog
from opentelemetry.proto.trace.v1.trace_pb2 import Span
from sqlalchemy import Engine

from minions.backoff import exponential, jittered
from orchestrator.loops.leadership import Leadership
from orchestrator.loops.loop import Loop, seconds_within_lease
from orchestrator.tracing import contents, state
from orchestrator.tracing.ended import rows_of
from orchestrator.tracing.endpoint import Endpoint, NotTaken, Taken
from orchestrator.tracing.spans import span_of
from orchestrator.tracing.state import Range
from shared.settings import Settings

log = structlog.get_logger(__name__)

MOST_SPANS = 512
MOST_BYTES = 1 << 20
"""Of a request, before compression, but for one span that is larger."""
FIRST_PAUSE = 1.0
LONGEST_PAUSE = 60.0
SEEN_SECONDS = 60.0

Batch = list[tuple[UUID, Span]]
"""Spans with their tasks."""


class Tracer(Loop):
    """One orchestrator leads. The spans of a range are sent, then the position moves: a crash in between sends them
    again, with the same ids. No transaction is open while spans are sent.
    """

    name = "tracer"

    def __init__(self, settings: Settings, engine: Engine) -> None:
        """Raise NotConfigured if the endpoint's settings are not valid."""
        super().__init__()
        self.engine = engine
        self.endpoint = Endpoint(settings)
        self.leadership = Leadership(settings, self.name)
        self.pause = seconds_within_lease(settings)
        self.contents = contents.are_exported(settings.otel_instrumentation_genai_capture_message_content)
        self._work: _Work | None = None
        self._leads = False
        self._failures = 0
        self._not_before = self._seen_at = 0.0
        self._reason = ""

    def run_once(self) -> float:
        """Send the spans of one range, if this orchestrator leads and the endpoint takes them."""
        if not self.leadership.held():
            self._work, self._leads = None, False
            return self.pause
        if time.monotonic() < self._not_before:
            self._say_that_it_runs()
            return self.pause
        if self._work is None:
            chosen = state.next_range(self.engine, continues=self._leads)
            self._leads = True
            if chosen is None:
                return self.pause
            self._work = _Work(chosen, self._batches(chosen))
        self._say_that_it_runs()
        try:
            return self._go_on(self._work)
        except BaseException:
            # Its rows were not read to the end.
            self._work = None
            raise

    def close(self) -> None:
        """Give up the lead."""
        self.leadership.release()

    def _go_on(self, work: _Work) -> float:
        """Send what is left of a range. What the endpoint does not take stays the next batch."""
        while (batch := work.batch()) is not None:
            spans = self._undeleted(batch)
            if not spans:
                work.sent(0, 0)
                continue
            answer = self._send(spans)
            if answer is None:
                return 0.0
            self._report(answer, len(spans))
            if isinstance(answer, NotTaken):
                return self.pause
            work.sent(len(spans) - answer.refused, answer.refused)
        state.move(self.engine, work.chosen, exported=work.exported, refused=work.refused)
        self._work = None
        # Ranges of a few rows would cost as much as ranges of hundreds.
        return self.pause if work.chosen.is_last else 0.0

    def _undeleted(self, batch: Batch) -> list[Span]:
        """Return the spans without those of tasks that were deleted since they were read.

        A batch may wait for its endpoint for days, and what was erased must not be sent.
        """
        kept = state.kept_tasks(self.engine, {task for task, _ in batch})
        return [span for task, span in batch if task in kept]

    def _send(self, spans: list[Span]) -> Taken | NotTaken | None:
        """Return the endpoint's answer; None if this loop stops, or lost its lead, while it waits for it.

        A slow endpoint may take longer than the lead lasts without a sign of life.
        """
        answers: list[Taken | NotTaken] = []
        sending = threading.Thread(target=lambda: answers.append(self.endpoint.send(spans)), daemon=True)
        sending.start()
        sending.join(self.pause)
        while sending.is_alive():
            if self.stopping.is_set() or not self.leadership.held():
                self._work = None
                return None
            self._say_that_it_runs()
            sending.join(self.pause)
        return answers[0] if answers else NotTaken("sending failed because of a bug: see the log")

    def _batches(self, chosen: Range) -> Iterator[Batch]:
        batch: Batch = []
        size = 0
        for kind, row in rows_of(self.engine, chosen, contents=self.contents):
            span = span_of(kind, row, with_contents=self.contents)
            if span is None:
                continue
            span_size = span.ByteSize()
            if batch and (len(batch) == MOST_SPANS or size + span_size > MOST_BYTES):
                yield batch
                batch, size = [], 0
            batch.append((row["task_id"], span))
            size += span_size
        if batch:
            yield batch

    def _report(self, answer: Taken | NotTaken, spans: int) -> None:
        """Log what changed, and not what is still so."""
        changed, self._reason = answer.why != self._reason, answer.why
        if isinstance(answer, NotTaken):
            self._failures += 1
            backoff = jittered(exponential(self._failures, first=FIRST_PAUSE, longest=LONGEST_PAUSE))
            self._not_before = time.monotonic() + max(answer.after or 0.0, backoff)
            if changed:
                log.warning("spans_not_taken", endpoint=self.endpoint.shown, reason=answer.why)
            return
        if self._failures:
            self._failures = 0
            log.info("spans_taken_again", endpoint=self.endpoint.shown)
        if changed and answer.why:
            log.warning(
                "spans_refused", endpoint=self.endpoint.shown, reason=answer.why, refused=answer.refused, of=spans
            )

    def _say_that_it_runs(self) -> None:
        if time.monotonic() - self._seen_at >= SEEN_SECONDS:
            self._seen_at = time.monotonic()
            state.say_that_it_runs(self.engine)


class _Work:
    """A range that is being sent."""

    def __init__(self, chosen: Range, batches: Iterator[Batch]) -> None:
        self.chosen = chosen
        self.exported = self.refused = 0
        self._batches = batches
        self._next: Batch | None = None

    def batch(self) -> Batch | None:
        """Return the batch that was not sent yet; None at the end."""
        if self._next is None:
            self._next = next(self._batches, None)
        return self._next

    def sent(self, exported: int, refused: int) -> None:
        """Count a batch, and go to the next one."""
        self.exported += exported
        self.refused += refused
        self._next = None
