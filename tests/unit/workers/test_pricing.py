"""Upper bounds of what a model call costs."""

from __future__ import annotations

from typing import Any

import pytest

from workers.pricing import worst_case

MODEL = "claude-opus-5-5"
"""Input $4, written for five minutes $5, for an hour $8; output $20; twice that if it is fast."""


@pytest.mark.parametrize(
    ("options", "tokens", "microdollars"),
    [
        ({}, 1100, 1000 * 5 + 100 * 20),
        ({"for_an_hour": True}, 1100, 1000 * 8 + 100 * 20),
        ({"for_an_hour": True, "in_batch": True}, 1100, (1000 * 8 + 100 * 20) / 2),
        ({"speed": "fast"}, 1100, 2 * (1000 * 5 + 100 * 20)),
        ({"speed": "standard"}, 1100, 1000 * 5 + 100 * 20),
        # A compaction is a call of its own, if the conversation may be long enough for one.
        ({"compacts_at": 1100}, 2200, 2 * (1000 * 5 + 100 * 20)),
        ({"compacts_at": 1101}, 1100, 1000 * 5 + 100 * 20),
    ],
)
def test_worst_case_has_the_highest_price(options: dict[str, Any], tokens: int, microdollars: float) -> None:
    reserved = worst_case(MODEL, 1000, 100, **options)
    assert (reserved.tokens, reserved.microdollars) == (tokens, microdollars)


def test_unknown_model_has_no_worst_case() -> None:
    assert worst_case("gateway-model", 1000, 100, for_an_hour=True).microdollars is None
