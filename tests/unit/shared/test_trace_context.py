"""Trace context: callers' traces are read to the letter, and span ids are derived from rows."""

from __future__ import annotations

from uuid import UUID

import pytest
from hypothesis import given
from hypothesis import strategies as st

from shared.trace_context import Trace, claim_span, read_header, step_span, task_span

TRACE, SPAN = "a" * 32, "b" * 16
TASK = UUID("01890a5d-ac96-774b-bcce-b302099a8057")


@pytest.mark.parametrize(
    ("given", "stored"),
    [
        (f"00-{TRACE}-{SPAN}-01", f"00-{TRACE}-{SPAN}-01"),
        (f"00-{TRACE}-{SPAN}-00", f"00-{TRACE}-{SPAN}-00"),
        (f"00-{TRACE}-{SPAN}-03", f"00-{TRACE}-{SPAN}-01"),
        (f"01-{TRACE}-{SPAN}-01", f"00-{TRACE}-{SPAN}-01"),
        (f"cc-{TRACE}-{SPAN}-01-what-the-future-will-be-like", f"00-{TRACE}-{SPAN}-01"),
    ],
)
def test_valid_header_is_read(given: str, stored: str) -> None:
    assert read_header(given) == stored


@pytest.mark.parametrize(
    "given",
    [
        None,
        "",
        "x",
        f"ff-{TRACE}-{SPAN}-01",
        f"00-{'0' * 32}-{SPAN}-01",
        f"00-{TRACE}-{'0' * 16}-01",
        f"00-{TRACE.upper()}-{SPAN}-01",
        f"00-{TRACE}-{SPAN}-01-more",
        f"00-{TRACE}-{SPAN}-01-",
        f"00-{TRACE}-{SPAN}",
        f"00-{TRACE[1:]}-{SPAN}-01",
        f" 00-{TRACE}-{SPAN}-01",
        f"00-{TRACE}-{SPAN}-01\n",
        f"cc-{TRACE}-{SPAN}-01.more",
        f"cc-{TRACE}-{SPAN}-01-{'x' * 100_000}",
        f"00-{'١' * 32}-{SPAN}-01",
    ],
)
def test_invalid_header_is_ignored(given: str | None) -> None:
    assert read_header(given) is None


@given(st.text())
def test_no_text_is_an_error(text: str) -> None:
    assert read_header(text) is None
    assert Trace.of(TASK, text) == Trace(TASK.bytes)


def test_trace_of_a_task_without_a_caller_is_its_root() -> None:
    trace = Trace.of(TASK, None)
    assert (trace.id, trace.caller, trace.sampled) == (TASK.bytes, b"", True)
    assert trace.parent(b"\1" * 8) == f"00-{TASK.hex}-{'01' * 8}-01"


def test_trace_of_a_caller_keeps_its_decision() -> None:
    trace = Trace.of(TASK, f"00-{TRACE}-{SPAN}-00")
    assert (trace.id.hex(), trace.caller.hex(), trace.sampled) == (TRACE, SPAN, False)
    assert trace.parent(trace.caller) == f"00-{TRACE}-{SPAN}-00"


def test_span_ids_differ_and_stay_the_same() -> None:
    ids = [task_span(TASK), *(claim_span(TASK, n) for n in range(9)), *(step_span(TASK, n) for n in range(9))]
    assert len(set(ids)) == 19
    assert {len(each) for each in ids} == {8}
    # Spans of earlier releases must not change.
    assert (task_span(TASK).hex(), claim_span(TASK, 1).hex(), step_span(TASK, 1).hex()) == (
        "7f2f5385db28339b",
        "c21ac0a3b07172c8",
        "d80e55edf67f432e",
    )
