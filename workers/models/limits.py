"""How many requests and tokens a minute a model may be asked for: what people have set, and what the API tells.

What people set (`minion limits set model NAME …`) stands in PostgreSQL and holds for a namespace, whatever the key.
What the API tells in its `anthropic-ratelimit-*` headers holds for the key that a call was made with; it is kept in
Redis, for all processes, and forgotten after an hour without a call. Both hold together, on the one limiter.

Before the first answer nothing is known of a key, and calls pass. Where Redis is away, what the API told is unknown
again: calls pass, and the API refuses those that are too many. What people set is not exceeded: no call begins then.
"""

from __future__ import annotations

import hashlib
import math
import threading
import time
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from uuid import uuid4

import redis
import structlog

from shared import rules
from shared.database import get_engine, persist
from shared.errors import Unavailable
from shared.hints import make_redis
from shared.limiter import PREFIX, Bucket, Correction, Flight, Limiter
from workers.outcomes import Snoozed

log = structlog.get_logger(__name__)

KINDS = ("requests", "input-tokens", "output-tokens", "tokens")
"""As the headers name them; `tokens` are both."""

PERIOD_SECONDS = 60.0
LEARNED_SECONDS = 3600
MOST_HELD_SECONDS = 3600.0
FLIGHT_SECONDS = 900.0
"""Longer than a call lasts: who has not told its end by then was killed."""

LIMITER_AWAY_SECONDS = 1.0
IN_PLACE_SECONDS = 2.0
"""Who has to wait longer is suspended."""

APART_SECONDS = 0.1
LONGEST_LINE_SECONDS = 300.0


@dataclass(frozen=True, slots=True)
class _Call:
    """A call that was granted, until its end is known."""

    id: str
    namespace: str
    input_tokens: int
    output_tokens: int


@dataclass(frozen=True, slots=True)
class _Told:
    """What a response tells of one kind of limit; `full_after` are seconds until all of it is back."""

    limit: float
    remaining: float
    full_after: float | None

    @property
    def period(self) -> float:
        """Seconds in which the whole limit comes back: a minute, or longer where the API says so."""
        used = self.limit - self.remaining
        # The moment is told in whole seconds.
        if self.full_after is None or used <= 0 or self.full_after <= PERIOD_SECONDS * used / self.limit + 1:
            return PERIOD_SECONDS
        return self.full_after * self.limit / used


class ModelLimits:
    """The limits of one API key, for all processes that use it. A thread makes one call at a time.

    Args:
        key: the API key; only its fingerprint leaves this object.
        base_url: of the API, since another one has other limits.
        client: the Redis of the limits; by default the one of the settings.
    """

    def __init__(self, key: str, base_url: str | None = None, client: redis.Redis | None = None) -> None:
        self._account = fingerprint(key, base_url)
        self._redis = client or make_redis()
        self._limiter = Limiter(self._redis)
        self._thread = threading.local()

    def admit(self, model: str, input_tokens: int, output_tokens: int, namespace: str = "default") -> None:
        """Reserves a call, as `reserve` does; a short wait is waited for here.

        Raises:
            Snoozed: the wait is longer: the task is to be suspended until then, uncharged.
        """
        patience = time.monotonic() + IN_PLACE_SECONDS
        while (wait := self.reserve(model, input_tokens, output_tokens, namespace)) > 0:
            if time.monotonic() + wait > patience:
                raise Snoozed(wait, "model_limit")
            time.sleep(wait)

    def reserve(self, model: str, input_tokens: int, output_tokens: int, namespace: str = "default") -> float:
        """Reserves one request and its tokens, under all limits or none.

        Args:
            input_tokens: counted or estimated.
            output_tokens: the most that the call may produce, its `max_tokens`.
            namespace: of the task; limits that people set belong to one.

        Returns:
            seconds to wait before asking again; 0: it is reserved, and the call may be made.
        """
        call = _Call(uuid4().hex, namespace, input_tokens, output_tokens)
        set_by_people = self._set(model, call)
        try:
            held = self._held(model)
            wait = held or self._acquire(model, call, [*set_by_people, *self._learned(model, call)])
        except Unavailable as error:
            log.warning("limiter_away", model=model, reason=error.message)
            return LIMITER_AWAY_SECONDS if set_by_people else 0.0
        if wait == 0:
            self._thread.call = call
        else:
            log.info("model_limit", model=model, seconds=round(wait, 3))
        return wait

    def learn(self, model: str, headers: Mapping[str, str], status: int) -> None:
        """Takes in what a response tells; called for each, errors too, in the thread that reserved the call.

        Args:
            headers: names in lower case, or a mapping that does not mind.
            status: after a 429 no process makes a call of this key and model until `retry-after` seconds have passed.
        """

    def settle(self, model: str, input_tokens: int, output_tokens: int) -> None:
        """Gives back what the call that this thread reserved has not used, and takes what it has used beyond.

        Args:
            input_tokens: as the API counted them, without those read from the prompt cache: they do not count.
            output_tokens: as the API counted them; 0 where the API refused the call.
        """


def fingerprint(key: str, base_url: str | None) -> str:
    """A name for an API key that does not tell it."""
    return hashlib.sha256(f"{base_url or ''}\0{key}".encode()).hexdigest()[:16]
