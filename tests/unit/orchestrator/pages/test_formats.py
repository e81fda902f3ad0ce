"""How pages write values."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta

import pytest

from orchestrator.pages import formats
from orchestrator.pages.formats import LONGEST_TEXT, Shown


@pytest.mark.parametrize(
    ("seconds", "text"),
    [(None, "–"), (0, "0 ms"), (0.25, "250 ms"), (3.2, "3.2 s"), (59, "59 s"), (61, "1 min 1 s"), (3600, "1 h"),
     (3661, "1 h 1 min"), (90_000, "1 d 1 h"), (86_400, "1 d"), (-5, "0 ms")],
)  # fmt: skip
def test_duration_has_two_units_at_most(seconds: float | None, text: str) -> None:
    assert formats.duration(seconds) == text


@pytest.mark.parametrize(("microdollars", "text"), [(None, "$0"), (0, "$0"), (1200, "$0.0012"), (2_500_000, "$2.50")])
def test_money_is_in_dollars(microdollars: int | None, text: str) -> None:
    assert formats.money(microdollars) == text


def test_time_is_absolute_and_relative() -> None:
    written = formats.moment(datetime.now(UTC) - timedelta(hours=2))
    assert " UTC <span" in written
    assert "(2 h ago)" in written
    assert "in 59 min" in formats.moment(datetime.now(UTC) + timedelta(minutes=59, seconds=59))


def test_payload_is_shown_exactly() -> None:
    assert (
        Shown({"n": 2**70, "text": "a\u202eb\x1b"}).text
        == '{\n  "n": 1180591620717411303424,\n  "text": "a\\u202eb\\u001b"\n}'
    )
    assert Shown("plain <b>").text == "plain <b>"


def test_large_payload_is_cut() -> None:
    shown = Shown("x" * (LONGEST_TEXT + 1))
    assert (shown.is_cut, len(shown.text)) == (True, LONGEST_TEXT)
    assert Shown(["x"] * LONGEST_TEXT).is_cut


def test_code_in_a_sentence_cannot_become_markup() -> None:
    assert formats.with_code("run `minion why <x>` & wait") == "run <code>minion why &lt;x&gt;</code> &amp; wait"
    assert formats.with_code("one ` only") == "one  only"
    assert formats.with_code(None) == ""


@pytest.mark.parametrize(
    ("count", "text"), [(None, "–"), (0, "0 B"), (999, "999 B"), (123_456_789, "123 MB"), (5e15, "5,000.0 TB")]
)
def test_size_has_a_unit_of_thousands(count: float | None, text: str) -> None:
    assert formats.size(count) == text
