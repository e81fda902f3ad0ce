"""Errors as they are recorded."""

from __future__ import annotations

from shared.errors import ToolError


def test_what_cannot_be_stored_is_replaced() -> None:
    error = ToolError("It said a\0b\ud800", said=["\0", {"\udfff": 1.5}], status=500, at=None)
    assert error.as_dict() == {
        "type": "tool_error",
        "message": "It said a\ufffdb\ufffd",
        "said": ["\ufffd", {"\ufffd": 1.5}],
        "status": 500,
        "at": None,
    }
    assert str(error) == error.message
