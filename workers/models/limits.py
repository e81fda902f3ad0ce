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
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from uuid import uuid4

import redis
import structlog

from shared import rules
from shared.database import get_engine, persist
from shared.errors import ModelUnavailable, Unavailable
from shared.hints import make_redis
from shared.limiter import PREFIX, Bucket, Correction, Flight, Limiter
from shared.retry_after import retry_after
from workers.outcomes import IN_PLACE_SECONDS, Snoozed

log = structlog.get_logger(__name__)

KINDS = ("requests", "input-tokens", "output-tokens", "tokens")
"""As the headers name them; `tokens` are both."""

FACTS = ("limit", "remaining", "reset")
PERIOD_SECONDS = 60.0
LEARNED_SECONDS = 3600
MOST_HELD_SECONDS = 3600.0
FLIGHT_SECONDS = 900.0
"""Longer than a call lasts: who has not told its end by then was killed."""

LIMITER_AWAY_SECONDS = 1.0
APART_SECONDS = 0.1
"""Between two that wait, so that not all come back at the same moment."""

LONGEST_WAIT_SECONDS = 60.0
"""Then one asks again: calls that have ended may have given much back, and the limit may have been changed."""


Costs = dict[str, float]
"""What a call takes of each kind of limit."""


def _costs(requests: float, input_tokens: float, output_tokens: float) -> Costs:
    return dict(zip(KINDS, (requests, input_tokens, output_tokens, input_tokens + output_tokens), strict=True))


NOTHING = _costs(0, 0, 0)


@dataclass(frozen=True, slots=True)
class _Limit:
    """So much of a kind in a period of so many seconds; of the API, or set by people."""

    name: str
    kind: str
    rate: float
    period: float
    of_api: bool = False

    def __str__(self) -> str:
        by = "as the API says" if self.of_api else "`minion limits`"
        return f"{self.rate:g} {self.kind.replace('-', ' ')} in {self.period:g} s ({by})"

    def bucket(self, costs: Costs) -> Bucket:
        """For the limiter."""
        return Bucket(self.name, self.rate, self.period, costs[self.kind])


@dataclass(frozen=True, slots=True)
class _Refusal:
    """Seconds to wait, and why; 0 where nothing is refused."""

    wait: float
    why: str


GRANTED = _Refusal(0.0, "")


@dataclass
class _Call:
    """A call from its reservation to its end; `taken` are the limits that it takes from, by name."""

    model: str
    input_tokens: int
    output_tokens: int
    id: str = field(default_factory=lambda: uuid4().hex)
    taken: dict[str, _Limit] = field(default_factory=dict)

    def take(self, limits: Iterable[_Limit]) -> None:
        """It takes from these limits too."""
        self.taken |= {limit.name: limit for limit in limits}

    def costs(self) -> Costs:
        """What it takes."""
        return _costs(1, self.input_tokens, self.output_tokens)


@dataclass(frozen=True, slots=True)
class _Told:
    """What a response tells of one kind of limit; `full_after` are seconds until all of it is back."""

    limit: float
    remaining: float
    full_after: float

    @property
    def period(self) -> float:
        """Seconds in which the whole limit comes back: a minute, or more where the API says so."""
        used = self.limit - self.remaining
        # The moment is told in whole seconds.
        if used <= 0 or self.full_after <= PERIOD_SECONDS * used / self.limit + 1:
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
        while (refusal := self._reserve(model, input_tokens, output_tokens, namespace)).wait > 0:
            if time.monotonic() + refusal.wait > patience:
                log.info("model_limit", model=model, why=refusal.why, seconds=round(refusal.wait, 3))
                raise Snoozed(refusal.wait, "model_limit", ModelUnavailable(refusal.why, model=model))
            time.sleep(refusal.wait)

    def reserve(self, model: str, input_tokens: int, output_tokens: int, namespace: str = "default") -> float:
        """Reserves one request and its tokens, under all limits or none.

        Args:
            input_tokens: counted or estimated.
            output_tokens: the most that the call may produce, its `max_tokens`.
            namespace: of the task; limits that people set belong to one.

        Returns:
            seconds to wait before asking again; 0: it is reserved, and the call may be made.
        """
        return self._reserve(model, input_tokens, output_tokens, namespace).wait

    def _reserve(self, model: str, input_tokens: int, output_tokens: int, namespace: str) -> _Refusal:
        call = _Call(model, input_tokens, output_tokens)
        call.take(_set_by_people(model, namespace))
        nothing_set = not call.taken
        try:
            held, learned = self._known(model)
            call.take(learned)
            refusal = (
                _Refusal(held, f"The API asked for a pause of calls to {model!r}") if held else self._acquire(call)
            )
        except (Unavailable, redis.RedisError, OSError) as error:
            log.warning("limiter_away", model=model, reason=str(error))
            return GRANTED if nothing_set else _Refusal(LIMITER_AWAY_SECONDS, "The limiter's Redis does not answer")
        self._thread.call = None if refusal.wait else call
        return refusal

    def learn(self, model: str, headers: Mapping[str, str], status: int) -> None:
        """Takes in what a response tells; called for each, errors too, in the thread that reserved the call.

        Args:
            headers: names in lower case, or a mapping that does not mind.
            status: after a 429 no process makes a call of this key and model until `retry-after` seconds have passed.
                After any error the output tokens are given back, and nothing is left to settle.
        """
        told, call = _told(headers), self._current(model)
        learned = [self._limit(model, kind, facts.limit, facts.period) for kind, facts in told.items()]
        call.take(learned)
        output = _costs(0, 0, call.output_tokens)
        with _redis_may_be_away(model):
            self._remember(model, learned)
            if status == 429:
                self._hold(model, retry_after(headers) or 0.0)
            if status < 400:
                self._correct(call, told, flying=output)
            else:
                self._thread.call = None
                self._correct(call, told, back=output)

    def settle(self, model: str, input_tokens: int, output_tokens: int) -> None:
        """Gives back what the call that this thread reserved has not used, and takes what it has used beyond.

        Args:
            input_tokens: as the API counted them, without those read from the prompt cache: they do not count.
            output_tokens: as the API counted them.
        """
        call = self._current(model)
        self._thread.call = None
        back = _costs(0, call.input_tokens - input_tokens, call.output_tokens - output_tokens)
        with _redis_may_be_away(model):
            self._correct(call, {}, back=back)

    def _known(self, model: str) -> tuple[float, list[_Limit]]:
        """Seconds for which the API wants no call, and the limits that it told of."""
        with self._redis.pipeline(transaction=False) as commands:
            commands.pttl(self._key("hold", model))
            commands.hgetall(self._key("learned", model))
            held, learned = commands.execute()
        facts = {kind.decode(): value.split() for kind, value in learned.items()}
        limits = [self._limit(model, kind, float(rate), float(period)) for kind, (rate, period) in facts.items()]
        return min(max(0, held) / 1000, LONGEST_WAIT_SECONDS), limits

    def _remember(self, model: str, learned: list[_Limit]) -> None:
        if learned:
            with self._redis.pipeline() as commands:
                for limit in learned:
                    commands.hset(self._key("learned", model), limit.kind, f"{limit.rate} {limit.period}")
                commands.expire(self._key("learned", model), LEARNED_SECONDS)
                commands.execute()

    def _hold(self, model: str, seconds: float) -> None:
        """No call before then; a longer hold stays."""
        key, milliseconds = self._key("hold", model), math.ceil(min(seconds, MOST_HELD_SECONDS) * 1000)
        if milliseconds > max(0, self._redis.pttl(key)):
            self._redis.set(key, "429", px=milliseconds)

    def _acquire(self, call: _Call) -> _Refusal:
        """Takes from all limits and notes the call, or from none."""
        flight = self._flight(call, call.costs())
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
        self, call: _Call, told: dict[str, _Told], *, flying: Costs | None = None, back: Costs | None = None
    ) -> None:
        """Tells the limiter what became of a call.

        Args:
            told: by the API; of its own limits no more is left than that.
            flying: what the call may still take; None: it is over.
            back: what it had taken too much.
        """
        corrections = [
            Correction(
                limit.bucket(NOTHING),
                back=(back or NOTHING)[limit.kind],
                most=told[limit.kind].remaining if limit.of_api and limit.kind in told else None,
                kind=KINDS.index(limit.kind),
            )
            for limit in call.taken.values()
        ]
        self._limiter.correct(self._flight(call, flying), corrections)

    def _current(self, model: str) -> _Call:
        """The call that this thread has reserved; one that took nothing, where it has reserved none."""
        call: _Call | None = getattr(self._thread, "call", None)
        return call if call and call.model == model else _Call(model, 0, 0)

    def _limit(self, model: str, kind: str, rate: float, period: float) -> _Limit:
        return _Limit(f"model:{self._account}:{model}:{kind}", kind, rate, period, of_api=True)

    def _flight(self, call: _Call, costs: Costs | None) -> Flight:
        return Flight(f"{self._account}:{call.model}", call.id, tuple((costs or {}).values()), FLIGHT_SECONDS)

    def _key(self, what: str, model: str) -> str:
        return f"{PREFIX}{what}:{self._account}:{model}"


def fingerprint(key: str, base_url: str | None) -> str:
    """A name for an API key that does not tell it."""
    return hashlib.sha256(f"{base_url or ''}\0{key}".encode()).hexdigest()[:16]


def _set_by_people(model: str, namespace: str) -> list[_Limit]:
    def read() -> list[tuple[str, int, float]]:
        with get_engine().connect() as connection:
            return rules.model_rates(connection, model, namespace=namespace)

    return [_Limit(f"set:{namespace}:{model}:{kind}", kind, rate, seconds) for kind, rate, seconds in persist(read)]


@contextmanager
def _redis_may_be_away(model: str) -> Iterator[None]:
    """What could not be told is told again by the next response."""
    try:
        yield
    except (Unavailable, redis.RedisError, OSError) as error:
        log.warning("limiter_away", model=model, reason=str(error))


def _told(headers: Mapping[str, str]) -> dict[str, _Told]:
    """What the headers tell of each kind; what cannot be read is not told."""
    now = _moment(headers.get("date")) or datetime.now(UTC)
    told: dict[str, _Told] = {}
    for kind in KINDS:
        limit, remaining, reset = (headers.get(f"anthropic-ratelimit-{kind}-{what}") for what in FACTS)
        if limit and limit.isdecimal() and int(limit) > 0 and remaining and remaining.isdecimal():
            full_at = _moment(reset) or now
            told[kind] = _Told(int(limit), int(remaining), max(0.0, (full_at - now).total_seconds()))
    return told


def _moment(written: str | None) -> datetime | None:
    """From RFC 3339, as in the limits' headers, or the form of HTTP."""
    for parse in (datetime.fromisoformat, parsedate_to_datetime):
        try:
            moment = parse(written or "")
            return moment if moment.tzinfo else moment.replace(tzinfo=UTC)
        except ValueError:
            continue
    return None
