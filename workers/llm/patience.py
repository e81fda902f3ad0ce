"""Retries of model calls when the provider is unavailable, overloaded or asks for a pause.

Short waits happen in place. For longer ones the task is suspended: its slot is free in the meantime, and no attempt is
charged. The delay grows with the number of tries, whatever a `retry-after` header says, and is never shorter than the
header requests.
"""

from __future__ import annotations

import time
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta

import structlog

from minions.backoff import exponential, jittered
from shared.errors import ModelError, ModelUnavailable
from shared.settings import get_settings
from shared.tasks.records import KnownStep
from workers.llm.base import ModelClient, ModelReply, ModelRequest
from workers.outcomes import IN_PLACE_SECONDS, Postponed
from workers.text_stream import TextStream

log = structlog.get_logger(__name__)

FIRST_SECONDS = 0.5
LONGEST_SECONDS = 300.0
LONGEST_ASKED_SECONDS = 3600.0
"""A `retry-after` of days is a mistake; the API is asked again after an hour."""


@dataclass(frozen=True, slots=True)
class Successor:
    """A model that is asked instead when another one has been unavailable for this many seconds."""

    model: str
    seconds: float


def complete(
    client: ModelClient,
    request: ModelRequest,
    earlier: KnownStep | None,
    stream: TextStream,
    successor: Successor | None = None,
) -> ModelReply:
    """Make one turn, with retries until it succeeds.

    Args:
        earlier: the step in the journal, if an earlier execution began it.
        stream: the step's stream.
        successor: the model that is asked instead, if there is one.

    Raises:
        Postponed: the task must wait; the journal keeps the number of tries and the time of the first.
        ModelError: the provider refused the request, or has been unavailable for too long. In that case, with a
            successor, `detail` has its name as `fallback`.
    """
    tries, since = _so_far(earlier)
    if earlier is not None:
        stream.restart()
    while True:
        try:
            reply = client.complete(request, stream.text)
        except Postponed as postponed:
            # Postponed by the model's limits: the number of tries is kept. (After a stop they begin again.)
            if isinstance(postponed.error, ModelUnavailable) and tries:
                postponed.error.detail |= {"tries": tries, "since": since.isoformat()}
                if successor is not None:
                    _give_up_if_late(postponed.error, since, successor)
            raise
        except ModelUnavailable as error:
            delay = delay_after(error, tries)
            tries += 1
            error.detail |= {"tries": tries, "since": since.isoformat()}
            _give_up_if_late(error, since, successor)
            if successor is not None:
                delay = min(delay, max(FIRST_SECONDS, successor.seconds - _seconds_since(since)))
                error.detail |= _announcement(successor, since)
            log.warning("model_unavailable", reason=error.message, tries=tries, seconds=round(delay, 2))
            # If a lost call may have been charged, its budget reservation stays, and the next try needs another.
            if delay >= IN_PLACE_SECONDS or error.detail.get("cost_unknown"):
                raise Postponed(delay, "model_unavailable", error) from None
            time.sleep(delay)
            stream.restart()
        else:
            stream.finish()
            return reply


def delay_after(error: ModelUnavailable, tries: int) -> float:
    """Return the seconds until the next try, half of them random, so that retries are spread.

    Args:
        tries: number of tries before the one that just failed.
    """
    asked = min(LONGEST_ASKED_SECONDS, float(error.detail.get("retry_after", 0.0)))
    return max(asked, jittered(exponential(tries + 1, first=FIRST_SECONDS, longest=LONGEST_SECONDS)))


def _so_far(earlier: KnownStep | None) -> tuple[int, datetime]:
    error = earlier.get("error", {}) if earlier else {}
    since = error.get("since")
    return error.get("tries", 0), datetime.fromisoformat(since) if since else datetime.now(UTC)


def _seconds_since(moment: datetime) -> float:
    return (datetime.now(UTC) - moment).total_seconds()


def _announcement(successor: Successor, since: datetime) -> dict[str, str]:
    """The model that will be asked instead, and when, for people who ask why the task waits."""
    return {"next_model": successor.model, "next_model_at": (since + timedelta(seconds=successor.seconds)).isoformat()}


def _give_up_if_late(error: ModelUnavailable, since: datetime, successor: Successor | None) -> None:
    waited = _seconds_since(since)
    if successor is not None and waited >= successor.seconds:
        raise ModelError(
            f"{error.message.rstrip('.')}. It was tried {error.detail['tries']} times in {waited:.0f} s; "
            f"{successor.model} is asked instead.",
            **error.detail,
            fallback=successor.model,
        ) from None
    patience = get_settings().model_patience_seconds
    if waited >= patience:
        raise ModelError(
            f"{error.message.rstrip('.')}. It was tried {error.detail['tries']} times in {patience:g} s "
            "(MINION_MODEL_PATIENCE_SECONDS); replay the task when the API is back.",
            **error.detail,
        ) from None
