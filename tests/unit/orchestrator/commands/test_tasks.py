"""How `minion show` describes steps."""

from __future__ import annotations

from typing import Any

import pytest

from orchestrator.commands.tasks import _status


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
