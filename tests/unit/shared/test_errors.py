"""Errors as they are stored."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator

import pytest

from minions import errors as client
from shared import errors
from shared.errors import FunctionError, SubtaskFailed, ToolError, from_record
from shared.mcp.faults import McpFault
from tests.support.processes import ROOT


def test_unstorable_text_is_replaced() -> None:
    error = ToolError("It said a\0b\ud800", said=["\0", {"\udfff": 1.5}], status=500, at=None)
    assert error.as_dict() == {
        "type": "tool_error",
        "message": "It said a\ufffdb\ufffd",
        "said": ["\ufffd", {"\ufffd": 1.5}],
        "status": 500,
        "at": None,
    }
    assert str(error) == error.message


def test_error_read_from_a_record_keeps_its_type() -> None:
    for error in (FunctionError("It broke.", traceback="…"), SubtaskFailed("Deep.", cause={"type": "tool_error"})):
        again = from_record({**error.as_dict(), "retryable": True})
        assert (type(again), again.as_dict()) == (type(error), error.as_dict())


def test_unknown_error_type_is_read_as_tool_error() -> None:
    assert type(from_record({"type": "of_another_release", "message": "It broke."})) is ToolError


# Only callers of the API meet these: a forged webhook, an output of another type, an answer that is not JSON.
OF_THE_CLIENT = {"MinionsError", "InvalidSignature", "OutputMismatch", "ServerError"}
BOTH = {name for name, kind in vars(client).items() if isinstance(kind, type) and issubclass(kind, Exception)}
BOTH -= OF_THE_CLIENT


def test_every_server_error_is_a_client_error() -> None:
    assert issubclass(errors.MinionError, client.MinionsError)
    assert {"InvalidInput", "NotFound", "Unavailable", "TaskFailed"} <= BOTH


@pytest.mark.parametrize("name", sorted(BOTH))
def test_errors_with_one_name_have_one_code(name: str) -> None:
    ours, root = getattr(errors, name), getattr(client, name)
    assert issubclass(ours, root)
    assert ours.code == root.code
    kinds = {other for other in BOTH if issubclass(root, getattr(client, other))}
    assert {other for other in BOTH if issubclass(ours, getattr(errors, other))} == kinds


def test_server_error_keeps_details_named_status_and_code() -> None:
    error = ToolError("It broke.", status=404, code="gone")
    assert (error.status, error.code, error.detail) == (500, "tool_error", {"status": 404, "code": "gone"})


# In "The URL cannot be used: it begins with http://" the requirement reads like the reason.
OPPOSITE = re.compile(
    r"(cannot be (used|sent|stored)|is (no|not a|not the|none)\b[^.:;]*): (it|its \w+|a \w+) "
    r"(is|has|begins|ends|holds|takes) (?!neither|not)|\b(is|are) (a|an|always|written)\b[^.;]*, not \{"
)


# Words that the rule sheet for English replaces.
REPLACED = re.compile(
    r"\b(nobody|somebody|whoever|anew|meanwhile|for ever|so many|go(es|ne)? on|made again|of its own)\b", re.I
)
# Models read these texts, and the journals of running tasks hold the hash of what they have read.
KEPT = "Nobody has approved"


@pytest.mark.parametrize("wrong", [OPPOSITE, REPLACED], ids=["requirement_as_fault", "replaced_word"])
def test_texts_follow_the_rule_sheet(wrong: re.Pattern[str]) -> None:
    texts = [*_arguments_of_calls(), *_texts_of_sql()]
    assert [text for text in texts if wrong.search(text) and KEPT not in text] == []


def _arguments_of_calls() -> Iterator[str]:
    for folder in ("minions", "orchestrator", "shared", "workers"):
        for file in (ROOT / folder).rglob("*.py"):
            for node in ast.walk(ast.parse(file.read_text())):
                if isinstance(node, ast.Call):
                    values = [*node.args, *(keyword.value for keyword in node.keywords)]
                    yield from (
                        ast.unparse(value) for value in values if isinstance(value, ast.Constant | ast.JoinedStr)
                    )


def _texts_of_sql() -> Iterator[str]:
    for file in (ROOT / "shared" / "tasks" / "sql").glob("*.sql"):
        yield from (
            line for line in file.read_text().splitlines() if "'" in line and not line.lstrip().startswith("--")
        )


def test_recorded_fault_of_a_server_is_a_tool_error() -> None:
    again = from_record({**McpFault("Gone.", taken=None, status=404).as_dict(), "retryable": False})
    assert (type(again), again.message, again.detail) == (ToolError, "Gone.", {"status": 404})
