"""The act of a page with curl, on the command line, and in Python."""

from __future__ import annotations

import json
import shlex
from typing import Any

from fastapi import Request

from orchestrator.api.base_path import link
from shared.contracts.visible_text import visible

LONGEST = 2000
"""Characters of a request as JSON; a longer one is shown without its input or its messages."""


def snippets_of(request: Request, task: dict[str, Any]) -> list[tuple[str, str]]:
    """Return a name and a text for each way to submit such a task again."""
    asked = _asked(task)
    address = f"{request.app.state.cookies.origin}{link('/v1/tasks')}"
    return [
        (
            "curl",
            f'curl {address} -H "Authorization: Bearer $MINION_API_KEY" '
            f"-H 'Content-Type: application/json' --data {shlex.quote(json.dumps(asked, default=str))}",
        ),
        ("Command line", visible(f"{_command(asked)}\nminion show {task['id']}")),
        ("Python", _python(asked)),
    ]


def _asked(task: dict[str, Any]) -> dict[str, Any]:
    asked = {name: task[name] for name in ("agent", "messages", "key", "labels") if task[name]}
    if not task["agent"] and task["capability"]:
        asked["capability"] = task["capability"]
    if not task["messages"]:
        asked["input"] = task["input"]
    if len(json.dumps(asked, default=str)) > LONGEST:
        asked |= {"messages": [{"role": "user", "content": "…"}]} if task["messages"] else {"input": "…"}
    return asked


def _command(asked: dict[str, Any]) -> str:
    parts = ["minion", "submit", asked.get("agent") or "-"]
    if "input" in asked:
        parts.append(json.dumps(asked["input"], default=str))
    for message in asked.get("messages", ()):
        if not isinstance(message, dict) or message.get("role") != "user" or not isinstance(message["content"], str):
            return "# `minion submit` sends texts of a user only. Send these messages with curl or in Python."
        parts += ["--message", message["content"]]
    for name in ("key", "capability"):
        parts += [f"--{name}", asked[name]] if name in asked else []
    for label, value in asked.get("labels", {}).items():
        parts += ["--label", f"{label}={value}"]
    return shlex.join(parts)


def _python(asked: dict[str, Any]) -> str:
    given = [repr(asked["agent"])] if "agent" in asked else []
    given += [f"{name}={value!r}" for name, value in asked.items() if name != "agent"]
    return (
        "from minions import Client\n\nwith Client() as client:\n"
        f"    task = client.submit({', '.join(given)})\n    print(task.result())"
    )
