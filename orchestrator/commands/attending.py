"""A task followed by a person, who decides in place about what it waits for, and compares it with the run before."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from minions import Client, Task, TaskEvent
from minions.errors import MinionsError
from orchestrator.commands.diff import print_comparison
from orchestrator.commands.following import show_events
from orchestrator.commands.output import console, fail, indent, print_json, stderr, styled
from orchestrator.commands.prompting import ask, json_from
from orchestrator.commands.task_ids import remember
from orchestrator.commands.tasks import message_of
from shared.contracts.visible_text import one_line
from shared.errors import InvalidInput

CHOICES = {
    "approval": "approve, edit [JSON], reject [REASON] or skip",
    "answer": "result JSON, again, fail or skip",
    "signal": "send [JSON] or skip",
}
VERDICTS = {
    "approve": "approve",
    "edit": "approve",
    "reject": "reject",
    "result": "result",
    "again": "again",
    "fail": "fail",
}


def attend(client: Client, task_id: str) -> Task:
    """Show what happens to a task until its end, and ask for the decisions that it waits for. Return the task.

    Raises:
        Unavailable: the API is still unavailable after the retries; the task continues.
    """
    show_events(task_id, _with_decisions(client, task_id))
    return client.get(task_id)


def replay_and_compare(client: Client, task_id: str, **how: Any) -> Task:
    """Replay a task, attend the replay, and print the comparison of both. Return the replay.

    Args:
        how: as for `Client.replay`.

    Raises:
        MinionsError: the task cannot be replayed like this.
    """
    made = client.replay(task_id, **how)
    remember(made.id)
    ended = attend(client, made.id)
    print_outcome(ended)
    print_comparison(client.diff(task_id, ended.id))
    return ended


def print_outcome(task: Task) -> None:
    """Print the output of a task, or why it did not succeed."""
    if task.succeeded:
        if (text := text_of(task.output)) is None:
            print_json(task.output)
        else:
            # No line of it can pass for one of ours.
            console.print(f"  {indent(text, 2)}")
    elif task.final:
        stderr.print(styled((f"{task.state}: ", "bold red"), indent(message_of(task.error))))
    else:
        stderr.print(f"Task {task.id} is {task.state}, and continues.")


def text_of(output: Any) -> str | None:
    """Return the text of an output that is one, or the `content` that is all of it; else None."""
    text = output.get("content") if isinstance(output, dict) and output.keys() == {"content"} else output
    return text if isinstance(text, str) else None


def _with_decisions(client: Client, task_id: str) -> Iterator[TaskEvent]:
    """Yield the task's events; whenever it waits for a person, ask before the next one."""
    skipped: set[Any] = set()
    for event in client.follow(task_id):
        yield event
        if event.type == "task.waiting":
            _decide_all(client, task_id, skipped)


def _decide_all(client: Client, task_id: str, skipped: set[Any]) -> None:
    """Ask about each decision that the task waits for now, except those that were skipped."""
    while True:
        why = client.why(task_id)
        wanted = _subject(why)
        if wanted is None or wanted in skipped:
            return
        stderr.print(one_line(why["sentence"]))
        if why["reason"] != "signal":
            stderr.print(f"Proposal {why['facts']['proposal']}, in full:")
            print_json(why["facts"].get("proposed", why["facts"].get("request")))
        if not _decide(client, task_id, why):
            skipped.add(wanted)


def _subject(why: dict[str, Any]) -> Any:
    """Return what distinguishes a decision from others; None if no decision is awaited."""
    if why["reason"] in ("approval", "answer") and "proposal" in why["facts"]:
        return why["facts"]["proposal"]
    return _signal(why) if why["reason"] == "signal" else None


def _signal(why: dict[str, Any]) -> str | None:
    return next((wait["signal"] for wait in why["facts"].get("waits", ()) if wait.get("signal")), None)


def _decide(client: Client, task_id: str, why: dict[str, Any]) -> bool:
    """Ask until there is a decision that the API accepts; return False if it was skipped."""
    choices = CHOICES[why["reason"]]
    while True:
        written = ask(f"{choices}> ")
        if written is None or written == "skip":
            stderr.print(f"Nothing was decided. `minion why {task_id}` shows how to do it later.")
            return False
        try:
            _do(client, task_id, why, *written.partition(" ")[::2])
        except MinionsError as error:
            fail(error)
            continue
        return True


def _do(client: Client, task_id: str, why: dict[str, Any], word: str, rest: str) -> None:
    allowed = {choice.split()[0] for choice in CHOICES[why["reason"]].replace(" or ", ", ").split(", ")}
    if word not in allowed:
        raise InvalidInput(f"{word[:50]!r} is none of the choices: type {CHOICES[why['reason']]}.")
    if word == "send":
        client.signal(task_id, str(_signal(why)), json_from(rest, None) if rest else None)
        return
    value = None
    if word in ("edit", "result"):
        value = json_from(rest, why["facts"].get("proposed", why["facts"].get("request")))
    reason = rest or None if word == "reject" else None
    client.decide(task_id, VERDICTS[word], value, reason, proposal=why["facts"]["proposal"])
