"""The minion: claims a task, runs its agent, writes the record.

Read it top to bottom: `run` is claim, perform, record.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import lru_cache
from typing import Any
from uuid import UUID

import structlog
from celery.exceptions import SoftTimeLimitExceeded
from sqlalchemy.exc import DBAPIError

from shared.contracts.documents import UnreadableDefinition
from shared.contracts.requests import Message
from shared.database.connections import (
    behind_time_limit,
    close_engine,
    is_transient,
    persist,
    persistently,
    reason,
    statement,
)
from shared.errors import BudgetExceeded, Cancelled, MinionError, TimeLimitExceeded
from shared.notifications import publish_finished, publish_progress
from shared.tasks import batches, lifecycle, trials
from shared.tasks.records import ExecutionResult
from shared.tasks.states import State
from shared.telemetry import report
from workers import journal as journals
from workers import retries, time_limits
from workers.claiming import claim_task
from workers.factory import build_agent, load_blueprint
from workers.journal import Journal
from workers.meter import Meter
from workers.outcomes import (
    AwaitingBatch,
    AwaitingDecision,
    Batched,
    ClaimLost,
    Failed,
    Interrupted,
    Outcome,
    OverBudget,
    Postponed,
    Snoozed,
    Succeeded,
    Suspended,
)
from workers.task import ClaimedTask
from workers.trial_journal import TrialJournal

log = structlog.get_logger(__name__)


LATER_RELEASE_SECONDS = 10.0
"""Time until a task that this release cannot run is tried again: a minion of a later release may take it."""


class UnexpectedError(MinionError):
    """Defect in Minions or in an installed tool; the log has the traceback."""

    code = "unexpected_error"
    retryable = True


def run(
    task_id: UUID,
    claim: int,
    worker_id: UUID,
    limits: Sequence[float] | None = None,
    measure: Callable[[], Meter] = Meter,
) -> str:
    """Process one message.

    Args:
        claim: the claim number that the message was sent under.
        worker_id: this worker's row, whose heartbeat keeps the lease alive.
        limits: the hard and the soft time limit that Celery applies to this run, in seconds; None if it applies none.
        measure: makes the meter of this run's costs.

    Returns:
        The result for Celery's log: a state, or `skipped` if there was nothing to claim.
    """
    with structlog.contextvars.bound_contextvars(task=str(task_id), claim=claim + 1):
        task = claim_task(task_id, claim, worker_id)
        if task is None:
            return "skipped"
        with structlog.contextvars.bound_contextvars(agent=task.agent_name, capability=task.queue):
            return _work(task, limits, measure())


def _work(task: ClaimedTask, limits: Sequence[float] | None, meter: Meter) -> str:
    journal = journal_of(task)
    log.debug("started", attempt=task.attempts + 1)
    try:
        outcome = perform(task, journal, meter, limits)
        state = record(task, journal, outcome, meter)
    except ClaimLost:
        state = None
    if state is None:
        log.warning("claim_lost", why="another claim holds the task, or it has ended; nothing is written")
        return "claim_lost"
    log.info("recorded", state=str(state), attempt=task.attempts + 1, cpu_seconds=round(meter.cpu_seconds(), 4))
    publish = publish_finished if state.final else publish_progress
    publish(task.id)
    return str(state)


def journal_of(task: ClaimedTask) -> Journal:
    """Return the journal of a task that was just claimed."""
    known = {step["number"]: step for step in task.steps}
    kind = TrialJournal if task.journal_format == trials.FORMAT else Journal
    return kind(task.id, task.claim, known, has_budget=task.has_budget)


def perform(task: ClaimedTask, journal: Journal, meter: Meter, limits: Sequence[float] | None = None) -> Outcome:
    """Run the agent. Every failure becomes a value.

    Raises:
        ClaimLost: stop, without writing anything.
    """
    try:
        if task.journal_format not in (journals.FORMAT, journals.WITH_BLOCKS, trials.FORMAT):
            log.warning("handed_back", why="unknown journal format", journal_format=task.journal_format)
            return Snoozed(LATER_RELEASE_SECONDS, "handed_back")
        if limits is not None and not time_limits.are_of(task.agent_version_id, limits):
            log.warning("handed_back", why="the message has other time limits than the task", limits=list(limits))
            return Snoozed(0.0, "handed_back")
        return persist(lambda: build_agent(task, journal)).run()
    except UnreadableDefinition as error:
        if behind_time_limit(error):
            return _at_time_limit(task, meter)
        log.warning("handed_back", why=error.message)
        return Snoozed(LATER_RELEASE_SECONDS, "handed_back")
    except BudgetExceeded as error:
        return Failed(error) if error.detail["then"] == "fail" else OverBudget(error)
    except MinionError as error:
        return Failed(error)
    except Postponed as postponed:
        return postponed.outcome
    except Batched:
        return AwaitingBatch()
    except Interrupted:
        return AwaitingDecision()
    except SoftTimeLimitExceeded:
        return _at_time_limit(task, meter)
    except DBAPIError as error:
        if behind_time_limit(error):
            return _at_time_limit(task, meter)
        if not is_transient(error):
            log.exception("failed_unexpectedly")
        return Failed(UnexpectedError(f"The database failed during the task: {reason(error)}."))
    except ClaimLost:
        raise
    except Exception as error:
        log.exception("failed_unexpectedly")
        report(error)
        return Failed(UnexpectedError(f"{type(error).__name__} in the minion; its log has the details."))


def record(task: ClaimedTask, journal: Journal, outcome: Outcome, meter: Meter) -> State | None:
    """Write the outcome under the fence: one statement, one transaction. Return None if the claim is lost."""
    result = _result(journal, meter)
    match outcome:
        case Succeeded():
            return _finish(task, State.SUCCEEDED, success(journal, outcome, meter))
        case Failed(error):
            return _fail(task, result, error)
        case Suspended():
            return _suspend(task, result, outcome)
        case Snoozed(seconds, why):
            return persistently(lifecycle.snooze, task.id, task.claim, result, delay=seconds, reason=why)
        case AwaitingDecision():
            return persistently(lifecycle.ask, task.id, task.claim, result)
        case AwaitingBatch():
            return persistently(batches.wait, task.id, task.claim, result)
        case OverBudget(error):
            result["error"] = error.as_dict()
            return persistently(lifecycle.snooze, task.id, task.claim, result, delay=None, reason="budget")


def success(journal: Journal, outcome: Succeeded, meter: Meter) -> ExecutionResult:
    """Return the result of an execution that has succeeded."""
    return {**_result(journal, meter), "output": outcome.output, "messages": _dump(outcome.messages)}


def _at_time_limit(task: ClaimedTask, meter: Meter) -> Outcome:
    # It may have struck inside a statement: the connection cannot be trusted any more.
    close_engine()
    return explain_interruption(task, meter)


def explain_interruption(task: ClaimedTask, meter: Meter) -> Outcome:
    """Return why the task was interrupted from outside: a cancellation, its soft time limit, or that of the previous
    task in this process.

    Raises:
        ClaimLost: the task does not belong to this claim any more.
    """
    cancelled = persistently(lifecycle.is_cancelled, task.id, task.claim)
    if cancelled is None:
        raise ClaimLost
    if cancelled:
        return Failed(Cancelled("Cancelled while it ran."))
    _, limit = time_limits.of(task.agent_version_id)
    if meter.wall_seconds() < limit - 1:
        # Meant for the previous task of this process: this one is not charged for it.
        return Snoozed(0.0, "handed_back")
    return Failed(TimeLimitExceeded(f"The task ran longer than its soft_time_limit of {limit} s.", limit=limit))


def _result(journal: Journal, meter: Meter) -> ExecutionResult:
    """Resource usage that every execution records, however it ends."""
    return {
        "steps": list(journal.unwritten),
        "cpu_seconds": meter.cpu_seconds() + journal.used.cpu_seconds,
        "peak_memory_bytes": max(meter.peak_memory_bytes(), journal.used.peak_memory_bytes),
        "input_tokens": journal.used.input_tokens,
        "output_tokens": journal.used.output_tokens,
        "cost_microdollars": journal.used.cost_microdollars,
    }


def _dump(messages: Sequence[Message]) -> list[dict[str, Any]]:
    return [message.model_dump() for message in messages]


def _finish(task: ClaimedTask, state: State, result: ExecutionResult) -> State | None:
    return persistently(lifecycle.finish, task.id, task.claim, state, result)


def _suspend(task: ClaimedTask, result: ExecutionResult, outcome: Suspended) -> State | None:
    children = [child.as_json() for child in outcome.children]
    waits = [wait.as_json() for wait in outcome.waits]
    try:
        return persistently(lifecycle.suspend, task.id, task.claim, result, children, waits)
    except MinionError as error:
        return _fail(task, result, error)


def _fail(task: ClaimedTask, result: ExecutionResult, error: MinionError) -> State | None:
    result["error"] = error.as_dict()
    if isinstance(error, Cancelled):
        return _finish(task, State.CANCELLED, result)
    try:
        config = persist(lambda: load_blueprint(task.agent_version_id)).definition.config
    except UnreadableDefinition:
        # A minion of a later release knows the retry policy.
        return persistently(
            lifecycle.snooze, task.id, task.claim, result, delay=LATER_RELEASE_SECONDS, reason="handed_back"
        )
    except MinionError:
        # A definition that cannot be built, which may be the failure itself, has no retry policy.
        log.info("failed", error=error.code)
        return _finish(task, State.FAILED, result)
    if not retries.is_retried(error, config):
        log.info("failed", error=error.code)
        return _finish(task, State.FAILED, result)
    log.info("failed_for_now", error=error.code)
    result["steps"] = retries.make_again(result["steps"], error)
    delay = retries.delay(error, config, task.attempts)
    return persistently(lifecycle.release, task.id, task.claim, how="retried", charged=True, delay=delay, result=result)


@lru_cache(maxsize=1)
def warm_up() -> None:
    """Open this process's first connection before the first task needs it."""
    with statement():
        pass
