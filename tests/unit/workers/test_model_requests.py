"""Token estimates of model requests."""

from __future__ import annotations

import pytest

from workers.llm.base import ModelRequest


@pytest.mark.parametrize(
    ("said", "tokens"),
    [
        ("Short words. " * 1000, 3000),
        ("\u6f22\u5b57" * 8000, 16_000),
        ("\U0001f600" * 1000, 1000),
        ("\ud800" * 1000, 1000),
    ],
)
def test_estimate_is_not_too_low(said: str, tokens: int) -> None:
    request = ModelRequest("claude-sonnet-5-5", "", [{"role": "user", "content": said}], (), max_tokens=1)
    assert request.estimated_tokens() >= tokens
