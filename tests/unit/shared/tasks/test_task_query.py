"""The query language of task lists."""

from __future__ import annotations

from contextlib import suppress
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as some

from shared.errors import InvalidInput
from shared.tasks.task_query import LONGEST, TERMS, parse_query, task_id_in, written_query

NOW = datetime(2026, 11, 29, 12, tzinfo=UTC)


@pytest.mark.parametrize(
    ("query", "fields"),
    [
        ("", {}),
        ("   ", {}),
        ("agent:triage", {"agent": "triage"}),
        ("AGENT:triage", {"agent": "triage"}),
        ("state:failed state:expired", {"state": ["failed", "expired"]}),
        ('agent:"my \\"own\\" agent"  key:acme', {"agent": 'my "own" agent', "key": "acme"}),
        ("since:1d", {"created_after": NOW - timedelta(days=1)}),
        (
            "since:90m until:5s",
            {"created_after": NOW - timedelta(minutes=90), "created_before": NOW - timedelta(seconds=5)},
        ),
        ("since:2026-11-22", {"created_after": datetime(2026, 11, 22, tzinfo=UTC)}),
        ("since:2026-11-22T18:00+01:00", {"created_after": datetime(2026, 11, 22, 17, tzinfo=UTC)}),
        ("label:env=prod label:a=b=c label:x=", {"label": ["env:prod", "a:b=c", "x:"]}),
        ("cost:>0.5 cost:<2", {"cost": [">0.5", "<2"]}),
        ("is:unreplayed error:f00", {"unreplayed": True, "error_fingerprint": "f00"}),
        ("conversation:a:b", {"conversation_id": "a:b"}),
        ("since:999999d", {"created_after": NOW - timedelta(days=36_500)}),
    ],
)
def test_query_is_read(query: str, fields: dict[str, Any]) -> None:
    assert parse_query(query, NOW) == fields


@pytest.mark.parametrize(
    ("query", "said"),
    [
        ("triage", "must have a name before it, like `agent:triage`"),
        ("failed", "state:failed"),
        ("agents:triage", "Did you mean `agent:`?"),
        ("zzz:1", "There are: agent, state"),
        ("agent:a agent:b", "must be in a query once"),
        ("state:Failed", "must be one of"),
        ("since:tomorrow", "is not a time"),
        ("since:1w", "is not a time"),
        ("label:env", "label:env=prod"),
        ("label:a:b=c", "has a colon"),
        ("is:blue", "is:unreplayed"),
        ("tokens:>5", "no index carries it"),
        ("cost:0.5", "must be `cost:>0.5` or `cost:<0.5`"),
        ("cost:>1e3", "must be `cost:>0.5` or `cost:<0.5`"),
        ("cost:>0.0000001", "must be `cost:>0.5` or `cost:<0.5`"),
        ("cost:", "quote the term"),
        ('agent:"a b', "must end with a quote"),
        ("agent:", "`agent:` must have a value"),
        ("a" * (LONGEST + 1), "too long"),
    ],
)
def test_wrong_query_is_explained(query: str, said: str) -> None:
    with pytest.raises(InvalidInput) as refused:
        parse_query(query, NOW)
    assert said in refused.value.message


@given(some.text(max_size=80) | some.from_regex(r"(\w+:\S* ?){1,4}", fullmatch=True))
def test_every_text_is_read_or_explained(query: str) -> None:
    with suppress(InvalidInput):
        assert parse_query(query, NOW).keys() <= {field for field, _ in TERMS.values()}


@pytest.mark.parametrize("written", ["01a228a7", "01a228a7-d85b-720e-9bd0-9c1e826491e2", " 01A228A7D85B "])
def test_id_alone_is_a_task(written: str) -> None:
    assert task_id_in(written) == written.strip()


@pytest.mark.parametrize("written", ["01a228a", "agent:01a228a7", "deadbeef cafe", "g1a228a7", ""])
def test_other_text_is_no_task(written: str) -> None:
    assert task_id_in(written) is None


@given(some.text(max_size=200))
def test_written_query_has_the_same_terms(value: str) -> None:
    assert parse_query(written_query({"agent": value, "key": value})) == {"agent": value, "key": value}
