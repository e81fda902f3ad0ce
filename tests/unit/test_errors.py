"""Errors as they are recorded."""

from __future__ import annotations

from shared.errors import FunctionError, SubtaskFailed, ToolError, from_record


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


def test_an_error_read_from_a_record_is_of_the_same_kind() -> None:
    for error in (FunctionError("It broke.", traceback="…"), SubtaskFailed("Deep.", cause={"type": "tool_error"})):
        again = from_record({**error.as_dict(), "retryable": True})
        assert (type(again), again.as_dict()) == (type(error), error.as_dict())


def test_an_unknown_kind_of_error_is_a_tool_error() -> None:
    assert type(from_record({"type": "of_another_release", "message": "It broke."})) is ToolError
