"""Commands for decisions that a task waits for: approve, reject, answer.

A decision refers to what was shown. At a terminal the command shows the proposal, asks, and sends the short hash of
that proposal. A script names the step, or accepts the current proposal with `--yes`.
"""

from __future__ import annotations

import sys
from typing import Any

import typer

from minions import Client
from orchestrator.commands.client import ACTOR, connect
from orchestrator.commands.output import AS_JSON, console, interactive, print_json, stderr
from orchestrator.commands.task_ids import TASK
from orchestrator.commands.tasks import plain, read_input
from shared.errors import Conflict

STEP = typer.Option(None, "--step", min=1, help="The number of the step to decide about; skips the question.")
PROPOSAL = typer.Option(
    None, "--proposal", metavar="HASH", help="The proposal, as `minion why` shows it; skips the question."
)
YES = typer.Option(False, "--yes", "-y", help="Decide about the step that waits now; skips the question.")
REASON = typer.Option(None, "--reason", help="The reason, for the record.")
WAITING = ("approval", "answer")
DONE = {
    "approve": "Approved",
    "reject": "Rejected",
    "result": "Recorded the result of",
    "again": "Retrying",
    "fail": "Failed",
}


def register(app: typer.Typer) -> None:
    """Add the commands."""
    for command in (approve, reject, answer):
        app.command()(command)


def approve(
    task_id: str = TASK,
    edit: str | None = typer.Option(None, "--edit", help="Arguments that replace all of the proposed ones, as JSON."),
    step: int | None = STEP,
    proposal: str | None = PROPOSAL,
    yes: bool = YES,
    reason: str | None = REASON,
    actor: str | None = ACTOR,
    as_json: bool = AS_JSON,
) -> None:
    """Approve the call that a task proposes."""
    value = None if edit is None else read_input(edit)
    _decide(task_id, "approve", value, reason, _Seen(step, proposal, yes), actor, as_json)


def reject(
    task_id: str = TASK,
    step: int | None = STEP,
    proposal: str | None = PROPOSAL,
    yes: bool = YES,
    reason: str | None = REASON,
    actor: str | None = ACTOR,
    as_json: bool = AS_JSON,
) -> None:
    """Reject the call that a task proposes; a model receives the reason, and may try something else."""
    _decide(task_id, "reject", None, reason, _Seen(step, proposal, yes), actor, as_json)


def answer(
    task_id: str = TASK,
    result: str | None = typer.Option(None, "--result", help="It happened, and this JSON is what it returned."),
    again: bool = typer.Option(False, "--again", help="It did not happen: do it now."),
    fail: bool = typer.Option(False, "--fail", help="It did not happen, and must not: fail the step."),
    step: int | None = STEP,
    proposal: str | None = PROPOSAL,
    yes: bool = YES,
    reason: str | None = REASON,
    actor: str | None = ACTOR,
    as_json: bool = AS_JSON,
) -> None:
    """State the outcome of an unsafe step that was interrupted."""
    verdicts = [name for name, said in (("result", result is not None), ("again", again), ("fail", fail)) if said]
    if len(verdicts) != 1:
        raise typer.BadParameter("give one of --result JSON, --again and --fail")
    value = None if result is None else read_input(result)
    _decide(task_id, verdicts[0], value, reason, _Seen(step, proposal, yes), actor, as_json)


class _Seen:
    """The proposal or step that the caller has seen, according to the options."""

    def __init__(self, step: int | None, proposal: str | None, yes: bool) -> None:
        self.step, self.proposal, self.yes = step, proposal, yes

    def address(self, client: Client, task_id: str, verdict: str, value: Any) -> dict[str, Any]:
        """Return the step or proposal that the decision is about; ask if neither is given.

        Raises:
            Conflict: the task waits for no decision.
        """
        if self.step is not None or self.proposal is not None:
            return {"step": self.step, "proposal": self.proposal}
        if not self.yes and not (interactive() and sys.stdin.isatty()):
            raise typer.BadParameter(
                "this is not a terminal, so nothing can be asked: give --step, --proposal or --yes"
            )
        why = client.why(task_id)
        if why["reason"] not in WAITING or "proposal" not in why["facts"]:
            raise Conflict(f"Task {task_id} is not waiting for a decision. {why['sentence']}")
        if not self.yes:
            _ask(why, verdict, value)
        return {"proposal": why["facts"]["proposal"]}


def _ask(why: dict[str, Any], verdict: str, value: Any) -> None:
    """Show the proposal and any replacement for it, and continue only after a yes."""
    facts = why["facts"]
    console.print(f"Step {facts['step']}, {facts['name']} (proposal {facts['proposal']}):")
    if "question" in facts:
        # A stranger's text, which must not control the terminal.
        console.print(f"The MCP server {facts['server']!r} asks: {facts['question']!r}", markup=False)
    print_json(facts.get("proposed", facts.get("request")))
    if value is not None:
        console.print("With this in its place:" if verdict == "approve" else "With this result:")
        print_json(value)
    if not typer.confirm(f"{verdict.capitalize()}?"):
        stderr.print("Nothing was decided.")
        raise typer.Exit(1)


def _decide(
    task_id: str, verdict: str, value: Any, reason: str | None, seen: _Seen, actor: str | None, as_json: bool
) -> None:
    with connect(actor) as client:
        task = client.decide(task_id, verdict, value, reason, **seen.address(client, task_id, verdict, value))
    if as_json:
        print_json(plain(task))
        return
    decided = task.decision or {}
    console.print(f"{DONE[verdict]} step {decided.get('step')}, {decided.get('name')}:")
    if decided.get("value") is not None:
        print_json(decided["value"])
    if verdict == "approve" and (missing := _missing(decided)):
        console.print(missing)
    console.print(f"{task.id} {task.state}")


def _missing(decided: dict[str, Any]) -> str | None:
    """Return a sentence about the approvals that a policy still requires."""
    given, people = decided.get("approvals"), decided.get("people")
    if given is None or people is None or given >= people:
        return None
    return f"{given} of {people}: another key must approve the same arguments."
