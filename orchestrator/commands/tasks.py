"""Commands about tasks: submit, follow, tasks, show, why, cancel, signal, capabilities, workers."""

from __future__ import annotations

import sys
from datetime import datetime
from pathlib import Path
from typing import Any

import typer

from minions import Client, Task
from orchestrator.commands.client import connect
from orchestrator.commands.following import print_lines, show_events
from orchestrator.commands.output import AS_JSON, console, local_time, print_json, print_table, stderr, styled, zoned
from shared.errors import InvalidInput
from shared.json_values import parse
from shared.visible_text import one_line

COLUMNS = ("id", "agent", "state", "capability", "attempts", "created", "finished")


def register(app: typer.Typer) -> None:
    """Adds the commands."""
    for command in (submit, follow, tasks, show, why, cancel, signal, capabilities, workers):
        app.command()(command)


def submit(
    agent: str = typer.Argument(help="The agent's name; - routes by --message or --capability."),
    input: str = typer.Argument("{}", help="The input as JSON; @FILE reads a file, - standard input."),
    message: list[str] = typer.Option([], "--message", "-m", help="Text for the agent, instead of an input."),
    capability: str | None = typer.Option(None, help="Run on this capability's queue."),
    wait: bool = typer.Option(False, "--wait", "-w", help="Wait for the outcome and print the output."),
    timeout: float | None = typer.Option(None, help="Seconds to wait at most."),
    following: bool = typer.Option(False, "--follow", "-f", help="Show what happens, then as --wait."),
    idempotency_key: str | None = typer.Option(None, help="The same key and payload give the same task."),
    key: str | None = typer.Option(None, help="The tenant."),
    label: list[str] = typer.Option([], "--label", "-l", metavar="NAME=VALUE", help="A label; may be repeated."),
    priority: int | None = typer.Option(None, min=-100, max=100, help="Higher runs sooner."),
    run_at: datetime | None = typer.Option(None, help="Not before this local time."),
    conversation_id: str | None = typer.Option(None, help="The conversation that the messages belong to."),
    unique_key: str | None = typer.Option(None, help="While a task holds this key, that task is the answer."),
    unique_while: str | None = typer.Option(None, help="Until when it holds it: pending, or running (the default)."),
    budget: str | None = typer.Option(None, help="What it may use: JSON such as '{\"dollars\": 0.5}'."),
    as_json: bool = AS_JSON,
) -> None:
    """Hand in a task."""
    if following and timeout is not None:
        raise typer.BadParameter("--timeout goes with --wait")
    options: dict[str, Any] = {
        "capability": capability,
        "idempotency_key": idempotency_key,
        "key": key,
        "labels": labels_of(label) or None,
        "priority": priority,
        "run_at": zoned(run_at),
        "conversation_id": conversation_id,
        "unique_key": unique_key,
        "unique_while": unique_while,
        "budget": None if budget is None else read_input(budget),
    }
    if message:
        options["messages"] = [{"role": "user", "content": text} for text in message]
    else:
        options["input"] = read_input(input)
    given = {name: value for name, value in options.items() if value is not None or name == "input"}
    with connect() as client:
        task = client.submit(None if agent == "-" else agent, **given)
        if following:
            _follow(client, task.id, as_json)
            return
        if wait:
            task = client.wait(task.id, timeout=timeout)
    _print_submitted(task, wait=wait, as_json=as_json)


def follow(
    task_id: str = typer.Argument(help="The task's id."),
    after: int = typer.Option(0, min=0, help="The id of the last event that was seen."),
    as_json: bool = typer.Option(False, "--json", help="Print each event as a line of JSON."),
) -> None:
    """Show what happens to a task, as it happens, up to its end."""
    with connect() as client:
        _follow(client, task_id, as_json, after)


def tasks(
    state: str | None = typer.Option(None, "--state", "-s", help="Only in this state."),
    agent: str | None = typer.Option(None, "--agent", "-a", help="Only of this agent."),
    capability: str | None = typer.Option(None, help="Only on this capability's queue."),
    root: str | None = typer.Option(None, "--root", help="Only this task and what is below it."),
    limit: int = typer.Option(20, "--limit", "-n", min=1, max=100_000, help="How many, the newest first."),
    as_json: bool = AS_JSON,
) -> None:
    """List tasks, the newest first."""
    with connect() as client:
        found = []
        for task in client.tasks(state=state, agent=agent, capability=capability, root_id=root):
            found.append(task)
            if len(found) == limit:
                break
    if as_json:
        print_json([plain(task) for task in found])
    else:
        print_table(COLUMNS, (_row(task) for task in found), empty="No tasks.")


def show(task_id: str = typer.Argument(help="The task's id."), as_json: bool = AS_JSON) -> None:
    """Show a task with its steps and executions."""
    with connect() as client:
        task, steps, executions = client.get(task_id), list(client.steps(task_id)), list(client.executions(task_id))
    if as_json:
        print_json({**plain(task), "steps": steps, "executions": executions})
        return
    for name, value in plain(task).items():
        if value not in (None, {}, 0, False) or name in ("input", "output"):
            console.print(styled((f"{name:18}", "bold"), _short(value).replace("\n", f"\n{'':18}")))
    console.print()
    print_table(
        ("step", "kind", "name", "status", "output"),
        ((s["number"], s["kind"], s["name"], _status(s), _short(s.get("output"), 60)) for s in steps),
        empty="No steps.",
    )
    for step in steps:
        if step["name"] == "router" and isinstance(step.get("output"), dict):
            console.print(f"Step {step['number']} chose {_decision(step['output'])}")
    console.print()
    print_table(
        ("claim", "outcome", "worker", "started", "finished", "cpu s", "error"),
        (
            (
                e["claim"],
                e["outcome"],
                e["worker"],
                local_time(e["started_at"]),
                local_time(e["finished_at"]),
                None if e["cpu_seconds"] is None else round(e["cpu_seconds"], 3),
                _message(e["error"]),
            )
            for e in executions
        ),
        empty="No executions.",
    )


def cancel(
    task_ids: list[str] = typer.Argument(help="The tasks' ids."),
    reason: str | None = typer.Option(None, help="Why; it stands in the tasks' record."),
    as_json: bool = AS_JSON,
) -> None:
    """Cancel tasks and everything below them."""
    with connect() as client:
        ended = [client.cancel(task_id, reason) for task_id in task_ids]
    if as_json:
        print_json([plain(task) for task in ended])
        return
    for task in ended:
        console.print(f"{task.id} {task.state}" + (" (asked to stop)" if task.cancel_requested else ""))


def why(task_id: str = typer.Argument(help="The task's id."), as_json: bool = AS_JSON) -> None:
    """Tell why a task is where it is, and what would move it."""
    with connect() as client:
        found = client.why(task_id)
    if as_json:
        print_json(found)
        return
    console.print(styled((f"{found['state']}: ", "bold"), one_line(found["sentence"])))
    if found["todo"]:
        console.print(one_line(found["todo"]))


def signal(
    task_id: str = typer.Argument(help="The task's id."),
    name: str = typer.Argument(help="The signal's name."),
    payload: str = typer.Argument("null", help="JSON that it carries; @FILE reads a file, - standard input."),
    as_json: bool = AS_JSON,
) -> None:
    """Send a signal to a task. It is kept until the task waits for it."""
    with connect() as client:
        task = client.signal(task_id, name, read_input(payload))
    _print_submitted(task, wait=False, as_json=as_json)


def capabilities(as_json: bool = AS_JSON) -> None:
    """List capabilities: who offers them, who serves them, what waits."""
    with connect() as client:
        found = client.capabilities()
    if as_json:
        print_json(found)
        return
    print_table(
        ("capability", "served", "agents", "slots", "busy", "pending", "queued", "running"),
        (
            (
                c["name"],
                "yes" if c["served"] else "NOBODY",
                ", ".join(c["agents"]),
                c["slots"],
                c["busy"],
                c["pending"],
                c["queued"],
                c["running"],
            )
            for c in found
        ),
        empty="No capabilities.",
    )


def workers(as_json: bool = AS_JSON) -> None:
    """List workers and their heartbeats."""
    with connect() as client:
        found = list(client.workers())
    if as_json:
        print_json(found)
        return
    print_table(
        ("worker", "status", "capabilities", "slots", "busy", "last seen"),
        (
            (w["name"], w["status"], ", ".join(w["capabilities"]), w["slots"], w["busy"], local_time(w["last_seen"]))
            for w in found
        ),
        empty="No workers.",
    )


def read_input(argument: str) -> Any:
    """The JSON that an argument holds: itself, `@FILE`, or - for standard input.

    Raises:
        InvalidInput: it cannot be read, or is no JSON.
    """
    try:
        if argument == "-":
            return parse(sys.stdin.buffer.read(), what="The input")
        if argument.startswith("@"):
            return parse(Path(argument[1:]).read_bytes(), what=f"The file {argument[1:]}")
    except OSError as error:
        raise InvalidInput(f"The input cannot be read: {error}.") from None
    return parse(argument, what="The input")


def labels_of(pairs: list[str]) -> dict[str, str]:
    """The labels that were given as NAME=VALUE."""
    if wrong := [pair for pair in pairs if "=" not in pair]:
        raise typer.BadParameter(f"a label is NAME=VALUE, not {wrong[0]!r}")
    return dict(pair.split("=", 1) for pair in pairs)


def _follow(client: Client, task_id: str, as_json: bool, after: int = 0) -> None:
    show = print_lines if as_json else show_events
    show(task_id, client.follow(task_id, after))
    ended = client.get(task_id)
    if not as_json:
        _print_submitted(ended, wait=True, as_json=False)
    elif not ended.succeeded:
        raise typer.Exit(1)


def _print_submitted(task: Task, *, wait: bool, as_json: bool) -> None:
    if as_json:
        print_json(plain(task))
    elif not wait:
        console.print(f"{task.id} {task.state}")
    elif task.succeeded:
        print_json(task.output)
    else:
        stderr.print(styled((f"Task {task.id} {task.state}: ", "bold red"), one_line(_message(task.error))))
    if wait and not task.succeeded:
        raise typer.Exit(1)


def plain(task: Any) -> dict[str, Any]:
    """A task as a dictionary."""
    return {name: getattr(task, name) for name in _fields(task)}


def _fields(task: Any) -> list[str]:
    from dataclasses import fields

    return [field.name for field in fields(task)]


def _status(step: dict[str, Any]) -> str:
    if not step.get("copied_from"):
        return str(step["status"])
    edited = ", edited" if "edited" in (step["usage"] or {}) else ""
    return f"{step['status']} (made by {step['copied_from']}{edited})"


def _row(task: Any) -> tuple[Any, ...]:
    return (task.id, task.agent, task.state, task.capability, task.attempts, task.created_at, task.finished_at)


def _decision(chosen: dict[str, Any]) -> str:
    """A router's choice, what has decided, and how the others fared."""
    scores = ", ".join(f"{name} {score:g}" for name, score in (chosen.get("scores") or {}).items())
    why = chosen.get("reason") or chosen.get("not_by_model")
    return f"{chosen.get('agent')}, by {chosen.get('by', 'text')}: {scores}" + (f" ({why})" if why else "")


def _message(error: dict[str, Any] | None) -> str:
    return str((error or {}).get("message") or "")


def _short(value: Any, most: int = 2000) -> str:
    import json

    if isinstance(value, datetime):
        return value.astimezone().strftime("%Y-%m-%d %H:%M:%S")
    text = value if isinstance(value, str) else json.dumps(value, ensure_ascii=False, default=str)
    return text if len(text) <= most else text[: most - 1] + "…"
