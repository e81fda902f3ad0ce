"""The delay that a `Retry-After` header asks for, in every notation."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from shared.retry_after import retry_after


@pytest.mark.parametrize(
    ("headers", "seconds"),
    [
        ({"retry-after": "7"}, 7),
        ({"retry-after": " 0.5 "}, 0.5),
        ({"retry-after-ms": "1500", "retry-after": "7"}, 1.5),
        ({"retry-after": "-3"}, 0),
        ({"retry-after": "Wed, 21 Oct 2015 07:28:00 GMT"}, 0),
        ({"retry-after": "Wed, 21 Oct 2015 07:28:00 -0000"}, 0),
        ({"retry-after": "soon"}, None),
        ({"retry-after": "nan"}, None),
        ({"retry-after-ms": "inf", "retry-after": "1e999"}, None),
        ({"retry-after": ""}, None),
        ({"retry-after": "Mon, 1 Jan 99999999999999999999 00:00:00 GMT"}, None),
        ({"retry-after": "Mon, 1 Jan 2024 00:00:00 +99999999999999"}, None),
        ({}, None),
    ],
)
def test_header_is_read_as_seconds(headers: dict[str, str], seconds: float | None) -> None:
    assert retry_after(headers) == seconds


def test_future_date_is_read_as_seconds() -> None:
    for written in ("Wed, 21 Oct 2099 07:28:00 GMT", "2099-10-21T07:28:00Z"):
        seconds = retry_after({"retry-after": written})
        assert seconds is not None
        assert seconds > 1e9


DATES = st.text(st.sampled_from("0123456789,:+-. TZMonJanGMT"), max_size=60)


@given(st.one_of(st.text(), DATES, DATES.map(lambda text: f"Mon, 1 Jan {text}")))
def test_arbitrary_header_never_gives_a_negative_delay(written: str) -> None:
    assert (retry_after({"retry-after": written, "retry-after-ms": written}) or 0.0) >= 0
