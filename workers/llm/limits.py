"""Limits of requests and tokens per minute for a model: configured by people, and reported by the API.

Configured limits (`minion limits set model NAME …`) are stored in PostgreSQL and apply to a namespace, whatever the
key. Limits that the API reports in headers, such as `anthropic-ratelimit-*`, apply to the key of the call; they are
kept in Redis, for all processes, and forgotten after an hour without a call. Both apply together, in the one limiter.

Before the first answer nothing is known about a key, and calls pass. While Redis is unavailable, the reported limits
are unknown: calls pass, and the API refuses excess ones. Configured limits are never exceeded: no call begins then.
"""

from __future__ import annotations

import hashlib
import math
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from uuid import uuid4

import redis
import structlog

from shared.database.connections import persistently
from shared.errors import ModelUnavailable, Unavailable
from shared.notifications import make_redis
from shared.retry_after import retry_after
from shared.tasks import throttles
from shared.tasks.throttles import ModelRate
from workers.limiter import PREFIX, Bucket, Correction, Flight, Limiter
from workers.outcomes import IN_PLACE_SECONDS, Postponed

log = structlog.get_logger(__name__)

KINDS = ("requests", "input-tokens", "output-tokens", "tokens")
"""Names as in the headers; `tokens` covers both."""

FACTS = ("limit", "remaining", "reset")
PERIOD_SECONDS = 60.0
LEARNED_SECONDS = 3600
MAX_HELD_SECONDS = 3600.0
FLIGHT_SECONDS = 900.0
"""Longer than a call lasts: a call that has not reported its end by then was killed."""

LIMITER_AWAY_SECONDS = 1.0
APART_SECONDS = 0.1
"""Between two waiting calls, so that they do not all retry at the same moment."""

LONGEST_WAIT_SECONDS = 60.0
"""Maximum wait before asking again: finished calls may have returned capacity, and the limit may have been changed."""


Costs = dict[str, float]
"""Amount of each kind of limit that a call uses."""


def _costs(requests: float, input_tokens: float, output_tokens: float) -> Costs:
    return dict(zip(KINDS, (requests, input_tokens, output_tokens, input_tokens + output_tokens), strict=True))


NOTHING = _costs(0, 0, 0)


@dataclass(frozen=True, slots=True)
class _RateLimit:
    """Limit of an amount per period in seconds, reported by the API or configured."""

    name: str
    kind: str
    rate: float
    period: float
    of_api: bool = False

    def __str__(self) -> str:
        by = "as the API says" if self.of_api else "`minion limits`"
        return f"{self.rate:g} {self.kind.replace('-', ' ')} in {self.period:g} s ({by})"

    def bucket(self, costs: Costs) -> Bucket:
        """Return the limiter's bucket for this limit."""
        return Bucket(self.name, self.rate, self.period, costs[self.kind])


@dataclass(frozen=True, slots=True)
class _Refusal:
    """Seconds to wait, and the reason; 0 if nothing is refused."""

    wait: float
    why: str


GRANTED = _Refusal(0.0, "")


@dataclass
class _Call:
    """A call from its reservation to its end; `taken` holds the limits that it uses, by name."""

    model: str
    input_tokens: int
    output_tokens: int
    id: str = field(default_factory=lambda: uuid4().hex)
    taken: dict[str, _RateLimit] = field(default_factory=dict)

    def take(self, limits: Iterable[_RateLimit]) -> None:
        """Add limits that the call also uses."""
        self.taken |= {limit.name: limit for limit in limits}

    def costs(self) -> Costs:
        """Amounts that the call uses."""
        return _costs(1, self.input_tokens, self.output_tokens)


@dataclass(frozen=True, slots=True)
class Report:
    """A response's report about one kind of limit; `full_after` is in seconds until it is fully replenished."""

    limit: float
    remaining: float
    full_after: float

    @property
    def period(self) -> float:
        """Seconds in which the whole limit is replenished: a minute, or more if the API says so."""
        used = self.limit - self.remaining
        # The API reports the time in whole seconds.
        if used <= 0 or self.full_after <= PERIOD_SECONDS * used / self.limit + 1:
            return PERIOD_SECONDS
        return self.full_after * self.limit / used


def read_reports(headers: Mapping[str, str]) -> dict[str, Report]:
    """Parse the limits in the headers of the Anthropic API; unreadable ones are left out."""
    now = _moment(headers.get("date")) or datetime.now(UTC)
    reported: dict[str, Report] = {}
    for kind in KINDS:
        limit, remaining, reset = (headers.get(f"anthropic-ratelimit-{kind}-{what}") for what in FACTS)
        if limit and limit.isdecimal() and int(limit) > 0 and remaining and remaining.isdecimal():
            full_at = _moment(reset) or now
            reported[kind] = Report(int(limit), int(remaining), max(0.0, (full_at - now).total_seconds()))
    return reported


def _moment(written: str | None) -> datetime | None:
    """Parse a timestamp in RFC 3339, as in the limits' headers, or in the format of HTTP."""
    for parse in (datetime.fromisoformat, parsedate_to_datetime):
        try:
            moment = parse(written or "")
            return moment if moment.tzinfo else moment.replace(tzinfo=UTC)
        except ValueError:
            continue
    return None


ReadReports = Callable[[Mapping[str, str]], dict[str, Report]]


class ModelLimits:
    """The limits of one API key, shared by all processes that use it. A thread makes one call at a time.

    Args:
        key: the API key; only its fingerprint leaves this object.
        base_url: of the API, because another API has other limits.
        client: Redis client for the limits; by default that of the settings.
        read: returns the limits that a response's headers report, by kind.
    """

    def __init__(
        self,
        key: str,
        base_url: str | None = None,
        client: redis.Redis | None = None,
        read: ReadReports = read_reports,
    ) -> None:
        self._read = read
        self._account = fingerprint(key, base_url)
        self._redis = client or make_redis()
        self._limiter = Limiter(self._redis)
        self._thread = threading.local()

    def admit(
        self,
        model: str,
        input_tokens: int,
        output_tokens: int,
        namespace: str = "default",
        rates: list[ModelRate] | None = None,
    ) -> None:
        """Reserve a call, as `reserve` does, and wait in place if the wait is short.

        Args:
            rates: the configured limits, if they were read just now. They are read again after a wait.

        Raises:
            Postponed: the wait is longer; the task must be suspended for that time, uncharged.
        """
        patience = time.monotonic() + IN_PLACE_SECONDS
        while (refusal := self._reserve(model, input_tokens, output_tokens, namespace, rates)).wait > 0:
            rates = None
            if time.monotonic() + refusal.wait > patience:
                log.info("model_limit", model=model, why=refusal.why, seconds=round(refusal.wait, 3))
                raise Postponed(refusal.wait, "model_limit", ModelUnavailable(refusal.why, model=model))
            time.sleep(refusal.wait)

    def reserve(self, model: str, input_tokens: int, output_tokens: int, namespace: str = "default") -> float:
        """Reserve one request and its tokens, under all limits or none.

        Args:
            input_tokens: counted or estimated.
            output_tokens: the most that the call may produce, which is its `max_tokens`.
            namespace: of the task; configured limits belong to a namespace.

        Returns:
            Seconds to wait before asking again; 0 if it is reserved and the call may be made.
        """
        return self._reserve(model, input_tokens, output_tokens, namespace).wait

    def _reserve(
        self, model: str, input_tokens: int, output_tokens: int, namespace: str, rates: list[ModelRate] | None = None
    ) -> _Refusal:
        call = _Call(model, input_tokens, output_tokens)
        call.take(_configured_limits(model, namespace, rates))
        nothing_set = not call.taken
        try:
            refusal = self._admit(call)
        except (Unavailable, redis.RedisError, OSError) as error:
            log.warning("limiter_away", model=model, reason=str(error))
            return GRANTED if nothing_set else _Refusal(LIMITER_AWAY_SECONDS, "The limiter's Redis does not answer")
        self._thread.call = None if refusal.wait else call
        return refusal

    def learn(self, model: str, headers: Mapping[str, str], status: int) -> None:
        """Process a response's limits. Call it for every response, including errors, in the thread that reserved the
        call.

        Args:
            headers: names in lower case, or a case-insensitive mapping.
            status: after a 429 no process makes a call with this key and model until `retry-after` seconds have passed.
                After any error the output tokens are returned, and nothing is left to settle.
        """
        reported, call = self._read(headers), self._current(model)
        learned = [self._limit(model, kind, facts.limit, facts.period) for kind, facts in reported.items()]
        call.take(learned)
        output = _costs(0, 0, call.output_tokens)
        with _redis_may_be_away(model):
            self._remember(model, learned)
            if status == 429:
                self._hold(model, retry_after(headers) or 0.0)
            if status < 300:
                self._correct(call, reported, flying=output)
            else:
                self._thread.call = None
                self._correct(call, reported, back=output)

    def settle(self, model: str, input_tokens: int, output_tokens: int) -> None:
        """Return the unused part of this thread's reservation, and take any usage beyond it.

        Args:
            input_tokens: as counted by the API, without those read from the prompt cache, which do not count.
            output_tokens: as counted by the API.
        """
        call = self._current(model)
        self._thread.call = None
        back = _costs(0, call.input_tokens - input_tokens, call.output_tokens - output_tokens)
        with _redis_may_be_away(model):
            self._correct(call, {}, back=back)

    def calling(self) -> str | None:
        """Return the model of the call that this thread has reserved, and that has not ended; None if it has none."""
        call: _Call | None = getattr(self._thread, "call", None)
        return call.model if call else None

    def _admit(self, call: _Call) -> _Refusal:
        """Reserve the call: in one round trip if no limit applies, which is recorded then too."""
        flight = self._flight(call, call.costs())
        names = (self._name(what, call.model) for what in ("hold", "learned"))
        held, learned = self._limiter.enter(flight, *names, limited=bool(call.taken))
        if held:
            wait = min(held, LONGEST_WAIT_SECONDS)
            return _Refusal(wait, f"The API asked for a pause of calls to {call.model!r}")
        facts = {kind: value.split() for kind, value in learned.items()}
        call.take(self._limit(call.model, kind, float(rate), float(period)) for kind, (rate, period) in facts.items())
        return self._acquire(call, flight) if call.taken else GRANTED

    def _remember(self, model: str, learned: list[_RateLimit]) -> None:
        if learned:
            with self._redis.pipeline() as commands:
                for limit in learned:
                    commands.hset(self._key("learned", model), limit.kind, f"{limit.rate} {limit.period}")
                commands.expire(self._key("learned", model), LEARNED_SECONDS)
                commands.execute()

    def _hold(self, model: str, seconds: float) -> None:
        """Allow no call for this time; a longer existing hold is kept."""
        key, milliseconds = self._key("hold", model), math.ceil(min(seconds, MAX_HELD_SECONDS) * 1000)
        if milliseconds > max(0, self._redis.pttl(key)):
            self._redis.set(key, "429", px=milliseconds)

    def _acquire(self, call: _Call, flight: Flight) -> _Refusal:
        """Take from all limits and record the call, or take from none."""
        buckets = {limit.name: limit.bucket(call.costs()) for limit in call.taken.values()}
        verdict = self._limiter.acquire(list(buckets.values()), flight)
        if verdict.blocking is None:
            return GRANTED
        wait, why = verdict.wait, f"The model {call.model!r} is at its limit of {call.taken[verdict.blocking]}"
        if wait >= IN_PLACE_SECONDS:
            bucket = buckets[verdict.blocking]
            wait = self._limiter.line_up(bucket, wait, apart=APART_SECONDS, longest=LONGEST_WAIT_SECONDS)
        return _Refusal(wait, why)

    def _correct(
        self, call: _Call, reported: dict[str, Report], *, flying: Costs | None = None, back: Costs | None = None
    ) -> None:
        """Report the outcome of a call to the limiter. Without limits, all that counts is that the call is over.

        Args:
            reported: reported by the API; its own limits are reduced to the reported remainder.
            flying: amounts that the call may still use; None if it is over.
            back: amounts that it reserved in excess.
        """
        if not call.taken:
            if flying is None:
                self._limiter.leave(self._flight(call, None))
            return
        corrections = [
            Correction(
                limit.bucket(NOTHING),
                back=(back or NOTHING)[limit.kind],
                room=reported[limit.kind].remaining if limit.of_api and limit.kind in reported else None,
                kind=KINDS.index(limit.kind),
            )
            for limit in call.taken.values()
        ]
        self._limiter.correct(self._flight(call, flying), corrections)

    def _current(self, model: str) -> _Call:
        """The call reserved by this thread, or an empty one if it has reserved none."""
        call: _Call | None = getattr(self._thread, "call", None)
        return call if call and call.model == model else _Call(model, 0, 0)

    def _limit(self, model: str, kind: str, rate: float, period: float) -> _RateLimit:
        return _RateLimit(f"model:{self._account}:{model}:{kind}", kind, rate, period, of_api=True)

    def _flight(self, call: _Call, costs: Costs | None) -> Flight:
        return Flight(f"{self._account}:{call.model}", call.id, tuple((costs or {}).values()), FLIGHT_SECONDS)

    def _key(self, what: str, model: str) -> str:
        return PREFIX + self._name(what, model)

    def _name(self, what: str, model: str) -> str:
        return f"{what}:{self._account}:{model}"


def fingerprint(key: str, base_url: str | None) -> str:
    """Return a name for an API key that does not reveal the key."""
    return hashlib.sha256(f"{base_url or ''}\0{key}".encode()).hexdigest()[:16]


def _configured_limits(model: str, namespace: str, rates: list[ModelRate] | None) -> list[_RateLimit]:
    if rates is None:
        rates = persistently(throttles.model_rates, model, namespace=namespace)
    return [_RateLimit(f"set:{namespace}:{model}:{kind}", kind, rate, seconds) for kind, rate, seconds in rates]


@contextmanager
def _redis_may_be_away(model: str) -> Iterator[None]:
    """Log errors of Redis: the next response reports the same limits again."""
    try:
        yield
    except (Unavailable, redis.RedisError, OSError) as error:
        log.warning("limiter_away", model=model, reason=str(error))
