from __future__ import annotations

from typing import Any

import pytest

from shared.model_usage import MOST, spent


@pytest.mark.parametrize(("reported", "counted"), [(7, 7), (-1, 0), (10**40, MOST), (True, 0), ("7", 0), (None, 0)])
def test_reported_number_is_counted_within_reason(reported: Any, counted: int) -> None:
    used = spent({"usage": {"output_tokens": reported}}, "claude-sonnet-4-5")
    assert used["output_tokens"] == counted
    assert (used["cost_microdollars"] > 0) == (counted > 0)
