"""How `minion show` describes steps."""

from __future__ import annotations

from typing import Any

import pytest

from minions.testing import code_execution, web_search
from orchestrator.commands.journal_views import name_of, place_of
from orchestrator.commands.tasks import _server_tool_uses, _status


@pytest.mark.parametrize(
    ("step", "text"),
    [
        ({"status": "finished", "usage": None}, "finished"),
        (
            {"status": "finished", "usage": {"cached": {"task_id": "t1", "step": 2}}},
            "finished (cached by step 2 of t1)",
        ),
        ({"status": "finished", "usage": {}, "copied_from": "t1"}, "finished (copied from t1)"),
    ],
    ids=["own", "cached", "copied"],
)
def test_origin_of_a_step_is_shown(step: dict[str, Any], text: str) -> None:
    assert _status(step) == text


@pytest.mark.parametrize(
    ("step", "name", "place"),
    [
        ({"number": 2, "name": "act"}, "act", ""),
        ({"number": 2, "name": "run_program", "program": 2, "line": None}, "run_program", ""),
        ({"number": 3, "name": "act", "program": 2, "line": 7}, "  act (line 7)", "line 7 of the program of step 2"),
        ({"number": 3, "name": "act", "program": 2, "line": None}, "  act", "the program of step 2"),
    ],
)
def test_call_of_a_program_is_shown_below_it(step: dict[str, Any], name: str, place: str) -> None:
    assert (name_of(step), place_of(step)) == (name, place)


def test_uses_of_the_api_are_one_line_each() -> None:
    content = [
        *web_search("boats\n\u001b[2Jships", ("Boats", "https://a.example")),
        *web_search("ships", error="max_uses_exceeded"),
        *code_execution("false", return_code=1, files=("file_1",)),
        {
            "type": "server_tool_use",
            "id": "srvtoolu_unanswered",
            "name": "web_fetch",
            "input": {"url": "https://b.example"},
        },
    ]
    assert list(_server_tool_uses({"content": content})) == [
        'Searches the web: boats\\n\\u001b[2Jships → ["Boats: https://a.example"]',
        "Searches the web: ships failed → max_uses_exceeded",
        'Runs a command: false failed → {"exit code": 1, "files": ["file_1"]}',
        "Fetches a page: https://b.example",
    ]
    assert list(_server_tool_uses("(masked)")) == []
