"""Content that the scripted server refuses, as the Messages API does."""

from __future__ import annotations

from typing import Any

import pytest

from minions.content_faults import content_fault
from tests.support.media_files import b64, pdf, png


def image(data: bytes, media_type: str = "image/png") -> dict[str, Any]:
    return {"type": "image", "source": {"type": "base64", "media_type": media_type, "data": b64(data)}}


def paper(**more: Any) -> dict[str, Any]:
    source = {"type": "base64", "media_type": "application/pdf", "data": b64(pdf("x"))}
    return {"type": "document", "source": source, **more}


CITED = {"citations": {"enabled": True}}
CALL = {"type": "tool_use", "id": "t1", "name": "f", "input": {}}
RESULT = {"type": "tool_result", "tool_use_id": "t1", "content": "x"}


def ask(*blocks: Any, role: str = "user") -> dict[str, Any]:
    return {"messages": [{"role": role, "content": list(blocks)}]}


def calls(call: Any, *blocks: Any) -> dict[str, Any]:
    return {"messages": [*ask(call, role="assistant")["messages"], *ask(*blocks)["messages"]]}


@pytest.mark.parametrize(
    ("body", "said"),
    [
        (ask(image(png(), "image/tiff")), "messages.0.content.0.image.source.base64.media_type: Input should be"),
        (ask(image(png(), "image/gif")), "appears to be a image/png image"),
        (ask(image(b"no")), "Could not process image"),
        (ask(image(png(9000, 1))), "max allowed size: 8000 pixels"),
        (ask(image(png(padding=4_000_000))), "image exceeds 5 MB maximum"),
        (ask(*[image(png(2001, 1))] * 21), "many-image requests: 2000 pixels"),
        (ask(*[image(png())] * 601), "601 images > 600 maximum"),
        (ask(paper(), paper(**CITED)), "citations must be enabled on all documents or on none"),
        (
            {**ask(paper(**CITED)), "output_config": {"format": {"type": "json_schema"}}},
            "cannot be used with citations",
        ),
        (ask({"type": "image", "source": {"type": "url", "url": "http://x.org"}}), "Only HTTPS URLs"),
        (ask({"type": "image", "source": {"type": "file", "file_id": "file_" + "a" * 64}}), "File not found"),
        (
            {"messages": [*ask(CALL, role="assistant")["messages"], {"role": "user", "content": "x"}]},
            "without `tool_result` blocks immediately after: t1",
        ),
        (calls(CALL, RESULT, RESULT), "each tool_use must have a single result"),
        (calls(CALL, {"type": "text", "text": "x"}, RESULT), "without `tool_result` blocks immediately after: t1"),
        (ask(CALL, CALL, role="assistant"), "`tool_use` ids must be unique"),
        (ask(RESULT), "unexpected `tool_use_id` found in `tool_result` blocks: t1"),
        (ask({**RESULT, "content": [image(b"no")]}), "messages.0.content.0.tool_result.content.0.image.source"),
    ],
)
def test_content_is_refused_in_the_words_of_the_api(body: dict[str, Any], said: str) -> None:
    assert said in str(content_fault(body))


def test_valid_content_is_taken() -> None:
    messages = [*ask(image(png()), paper(**CITED))["messages"], *ask(CALL, role="assistant")["messages"]]
    assert content_fault({"messages": [*messages, *ask(RESULT)["messages"]]}) is None
