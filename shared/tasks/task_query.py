"""The query language of task lists: `agent:triage state:failed since:1d label:env=prod`.

Terms are separated by spaces, and a task must match all of them. A value with spaces is put in double quotes.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from datetime import UTC, datetime, timedelta
from difflib import get_close_matches
from typing import Any

from shared.contracts.durations import SECONDS
from shared.errors import InvalidInput
from shared.tasks.states import State

LONGEST = 1000
PRIVATE = "private."
"""How the names of private labels begin."""
TERM = re.compile(r'\s*(?:([A-Za-z_]+):("(?:[^"\\]|\\.)*"|[^\s"]+)|(\S+))')
PLAIN = re.compile(r'[^\s"]+')
COST = re.compile(r"[<>][0-9]{1,9}(\.[0-9]{1,6})?")
"""A bound of a task's own cost in dollars, without those of the tasks below it."""
DURATION = re.compile(r"([0-9]{1,6})([smhd])")
TASK_ID = re.compile(r"[0-9a-f]{8}[0-9a-f-]{0,28}", re.IGNORECASE)
MOST_DAYS = 36_500
NOT_CARRIED = {
    "tokens": "no index carries it. `minion stats --by agent` lists what costs most",
    "text": "contents are not searched",
    "output": "contents are not searched",
    "input": "contents are not searched",
}
"""Names that users try, and why there is no such filter."""

Fields = dict[str, Any]


def parse_query(written: str, now: datetime | None = None) -> Fields:
    """Return the filters that a query names: the query parameters of `GET /v1/tasks`.

    Args:
        now: what `since:1d` counts from.

    Raises:
        InvalidInput: a term is wrong; the message says how to write it.
    """
    if len(written) > LONGEST:
        raise InvalidInput(f"The query is too long: it must have at most {LONGEST:,} characters.")
    fields: Fields = {}
    for name, value, bare in TERM.findall(written.strip()):
        if bare:
            raise InvalidInput(_about_bare(bare))
        _add(fields, name.lower(), _unquoted(value), now or datetime.now(UTC))
    return fields


def written_query(terms: Mapping[str, str]) -> str:
    """Return the query that has these terms, by name. The opposite of `parse_query`."""
    return " ".join(f"{name}:{_quoted(value)}" for name, value in terms.items())


def names_private_label(fields: Fields) -> bool:
    """Return whether a parsed query has a label whose values not every reader may know."""
    return any(label.startswith(PRIVATE) for label in fields.get("label", ()))


def task_id_in(written: str) -> str | None:
    """Return the task's id, or the beginning of one, if the query is nothing else."""
    return written.strip() if TASK_ID.fullmatch(written.strip()) else None


def _add(fields: Fields, name: str, value: str, now: datetime) -> None:
    if name not in TERMS:
        raise InvalidInput(_about_unknown(name))
    field, read = TERMS[name]
    if field in REPEATED:
        fields.setdefault(field, []).append(read(value, now))
    elif field in fields:
        raise InvalidInput(f"`{name}:` must be in a query once. Only `{':`, `'.join(REPEATED)}:` may be repeated.")
    else:
        fields[field] = read(value, now)


def _text(value: str, now: datetime) -> str:
    return value


def _state(value: str, now: datetime) -> str:
    if value not in set(State):
        raise InvalidInput(f"There is no state {value[:50]!r}. `state:` must be one of {', '.join(State)}.")
    return value


def _label(value: str, now: datetime) -> str:
    label, separator, wanted = value.partition("=")
    if not label or not separator:
        raise InvalidInput(f"`label:{value[:50]}` must have a name and a value, like `label:env=prod`.")
    if ":" in label:
        raise InvalidInput(f"The label {label[:50]!r} has a colon, which a query cannot name.")
    return f"{label}:{wanted}"


def _cost(value: str, now: datetime) -> str:
    if not COST.fullmatch(value):
        raise InvalidInput(
            f"`cost:{value[:50]}` must be `cost:>0.5` or `cost:<0.5`: more or less than an amount in dollars. Give "
            "both for a range: `cost:>0.5 cost:<2`."
        )
    return value


def _moment(value: str, now: datetime) -> datetime:
    duration = DURATION.fullmatch(value)
    if duration is not None:
        ago = int(duration[1]) * SECONDS[duration[2]]
        return now - timedelta(seconds=min(ago, MOST_DAYS * 86_400))
    try:
        moment = datetime.fromisoformat(value)
    except ValueError:
        raise InvalidInput(
            f"{value[:50]!r} is not a time. Write how long ago, like `since:90m` or `since:7d`, or a time in UTC, like "
            "`since:2026-11-22` or `since:2026-11-22T18:00`."
        ) from None
    return moment if moment.tzinfo else moment.replace(tzinfo=UTC)


def _unreplayed(value: str, now: datetime) -> bool:
    if value != "unreplayed":
        raise InvalidInput(f"`is:{value[:50]}` must be `is:unreplayed`: tasks without a replay.")
    return True


TERMS: dict[str, tuple[str, Callable[[str, datetime], Any]]] = {
    "agent": ("agent", _text),
    "state": ("state", _state),
    "since": ("created_after", _moment),
    "until": ("created_before", _moment),
    "capability": ("capability", _text),
    "key": ("key", _text),
    "label": ("label", _label),
    "cost": ("cost", _cost),
    "namespace": ("namespace", _text),
    "conversation": ("conversation_id", _text),
    "error": ("error_fingerprint", _text),
    "root": ("root_id", _text),
    "parent": ("parent_id", _text),
    "replay_of": ("replay_of", _text),
    "is": ("unreplayed", _unreplayed),
}
"""The terms: the filter that each sets, and how its value is read."""
REPEATED = ("state", "label", "cost")


def _quoted(value: str) -> str:
    escaped = re.sub(r'(["\\])', r"\\\1", value)
    return value if PLAIN.fullmatch(value) else f'"{escaped}"'


def _unquoted(value: str) -> str:
    return re.sub(r"\\(.)", r"\1", value[1:-1]) if value.startswith('"') else value


def _about_bare(bare: str) -> str:
    example = "A query is like `agent:triage state:failed since:1d`."
    if bare.lower() in set(State):
        return f"{bare[:50]!r} must have a name before it: `state:{bare.lower()}`. {example}"
    if '"' in bare:
        return f'{bare[:50]!r}: a value in quotes must end with a quote, like `agent:"my agent"`.'
    if bare.endswith(":") and (name := bare[:-1].lower()) in TERMS:
        quoted = " A shell takes `>` and `<` for itself: quote the term, like `'cost:>0.5'`." if name == "cost" else ""
        return f"`{name}:` must have a value.{quoted} {example}"
    return f"{bare[:50]!r} must have a name before it, like `agent:{bare[:50].strip(':') or 'triage'}`. {example}"


def _about_unknown(name: str) -> str:
    if name in NOT_CARRIED:
        return f"Lists have no filter `{name}:`: {NOT_CARRIED[name]}."
    similar = get_close_matches(name, TERMS, n=1)
    suggestion = f" Did you mean `{similar[0]}:`?" if similar else ""
    return f"There is no filter `{name[:50]}:`.{suggestion} There are: {', '.join(TERMS)}."
