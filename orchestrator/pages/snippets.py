"""How to do from elsewhere what a page shows: with curl, on the command line, and in Python."""

from __future__ import annotations

import json
import shlex
from typing import Any

from fastapi import Request

from orchestrator.api.base_path import link
from shared.contracts.visible_text import visible

LONGEST_INPUT = 2000


def snippets_of(request: Request, task: dict[str, Any]) -> list[tuple[str, str]]:
    """Return a name and a text for each way to submit such a task again."""
    asked = {name: task[name] for name in ("agent", "capability", "input", "messages", "key", "labels") if task[name]}
    if task["agent"]:
        asked.pop("capability", None)
    written = json.dumps(asked, ensure_ascii=True, default=str)
    if len(written) > LONGEST_INPUT:
        asked = {"agent": task["agent"], "input": "…"}
        written = json.dumps(asked, ensure_ascii=False)
    origin = request.app.state.cookies.origin
    given = json.dumps(asked.get("input"), ensure_ascii=True, default=str)
    agent = str(task["agent"] or "-")
    return [
        (
            "curl",
            f'curl {origin}{link("/v1/tasks")} -H "Authorization: Bearer $MINION_API_KEY" '
            f"-H 'Content-Type: application/json' --data {shlex.quote(written)}",
        ),
        ("Command line", f"minion submit {shlex.quote(agent)} {shlex.quote(given)}\nminion show {task['id']}"),
        (
            "Python",
            "from minions import Client\n\nwith Client() as client:\n"
            f"    task = client.submit({visible(agent)!r}, {asked.get('input')!r})\n    print(task.result())",
        ),
    ]
