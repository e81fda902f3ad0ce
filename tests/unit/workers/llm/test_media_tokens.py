"""Tokens of images and documents, which an estimate must not take from the length of their base64."""

from __future__ import annotations

from typing import Any

import pytest

from shared.contracts.media import PAGE_TOKENS
from tests.support.media_files import b64, pdf, png
from workers.llm.base import ModelRequest


def estimate(*blocks: dict[str, Any]) -> int:
    return ModelRequest("m", "", [{"role": "user", "content": [*blocks]}], (), 1).estimated_tokens()


def of_base64(kind: str, media_type: str, data: bytes) -> dict[str, Any]:
    return {"type": kind, "source": {"type": "base64", "media_type": media_type, "data": b64(data)}}


@pytest.mark.parametrize(
    ("block", "tokens"),
    [
        (of_base64("image", "image/png", png(280, 56, padding=100_000)), 10 * 2),
        (of_base64("image", "image/png", png(7000, 7000)), 4784),
        ({"type": "image", "source": {"type": "url", "url": "https://example.org"}}, 4784),
        (of_base64("document", "application/pdf", pdf("a", "b", "c")), 3 * PAGE_TOKENS),
        ({"type": "document", "source": {"type": "url", "url": "https://example.org"}}, 10 * PAGE_TOKENS),
        ({"type": "document", "source": {"type": "text", "media_type": "text/plain", "data": "x" * 3000}}, 1000),
    ],
)
def test_estimate_counts_what_is_shown(block: dict[str, Any], tokens: int) -> None:
    assert tokens <= estimate(block) <= tokens + 80
    nested = {"type": "tool_result", "tool_use_id": "t", "content": [block]}
    assert tokens <= estimate(nested) <= tokens + 100
