"""Commands that control when tasks may start or continue: pause, stop-all, resume, pauses, stops, limits."""

from __future__ import annotations

from typing import Any, Literal

import typer

from minions import Client
from orchestrator.commands.client import ACTOR, connect
from orchestrator.commands.output import AS_JSON, console, local_time, print_json, print_table
from shared.tasks.scopes import as_options, describe

Scope = Literal["capability", "agent", "key"]
LimitScope = Literal["capability", "agent", "key", "model"]
SCOPE = typer.Argument(help="The kind of NAME.")
NAME = typer.Argument(help="Its name.")
AGENT = typer.Option(None, "--agent", help="Only the tasks of this agent.")
KEY = typer.Option(None, "--key", help="Only the tasks of this tenant key.")
NAMESPACE = typer.Option(None, "--namespace", help="Only this namespace; with --agent or --key: theirs.")
EACH_NAME = typer.Argument(help="Its name; * applies to each one without its own limit.")

limits_app = typer.Typer(
    help="Limit how many tasks run at once or start in a period, and how much models are asked for.",
    invoke_without_command=True,
)


def register(app: typer.Typer) -> None:
    """Add the commands."""
    for command in (pause, stop_all, resume, pauses, stops):
        app.command()(command)
    app.add_typer(limits_app, name="limits")


def pause(
    scope: Scope = SCOPE,
    name: str = NAME,
    reason: str | None = typer.Option(None, "--reason", help="The reason, for the record."),
    actor: str | None = ACTOR,
) -> None:
    """Keep the tasks of a capability, an agent or a key from starting; running ones continue."""
    with connect(actor) as client:
        client.pause(scope, name, reason)
        console.print(f"The {scope} {name} is paused; `minion resume {scope} {name}` lets its tasks start again.")
        _warn_if_unknown(client, scope, name)


def stop_all(
    agent: str | None = AGENT,
    key: str | None = KEY,
    namespace: str | None = NAMESPACE,
    reason: str | None = typer.Option(None, "--reason", help="The reason, for the record and for `minion why`."),
    actor: str | None = ACTOR,
) -> None:
    """Kill switch: no model call and no unsafe effect begins any more, until `minion resume` with the same options."""
    _one_scope(agent, key)
    with connect(actor) as client:
        stop = client.stop_all(reason, agent=agent, key=key, namespace=namespace)
        what, options = _names(stop), as_options(stop["scope"], stop["namespace"], stop["name"])
        console.print(f"No model call and no unsafe effect of {what} begins; `minion resume{options}` lifts the stop.")
        if agent is not None:
            _warn_if_unknown(client, "agent", agent)


def resume(
    scope: Scope | None = typer.Argument(None, help="To undo a pause: the kind of NAME."),
    name: str | None = typer.Argument(None, help="Its name."),
    agent: str | None = typer.Option(None, "--agent", help="To lift the stop of this agent."),
    key: str | None = typer.Option(None, "--key", help="To lift the stop of this tenant key."),
    namespace: str | None = typer.Option(None, "--namespace", help="To lift the stop of this namespace."),
) -> None:
    """Undo a pause (SCOPE NAME), or lift a stop (the options of `stop-all`; without any: that of the installation)."""
    _one_scope(agent, key)
    if scope is None:
        with connect() as client:
            client.lift_stop(agent=agent, key=key, namespace=namespace)
        console.print("The stop is lifted; its tasks continue.")
        return
    if name is None:
        raise typer.BadParameter(f"give the name of the {scope} after its kind; --{scope} NAME lifts a stop")
    if (agent, key, namespace) != (None, None, None):
        raise typer.BadParameter("give SCOPE and NAME to undo a pause, or the options of `stop-all` to lift a stop")
    with connect() as client:
        client.resume(scope, name)
    console.print(f"The {scope} {name} is not paused any more.")


def pauses(as_json: bool = AS_JSON) -> None:
    """List the capabilities, agents and keys that are paused."""
    with connect() as client:
        found = client.pauses()
    if as_json:
        print_json(found)
        return
    rows = ((p["scope"], p["name"], local_time(p["created_at"]), p["created_by"], p["reason"]) for p in found)
    print_table(("scope", "name", "since", "by", "reason"), rows, empty="Nothing is paused.")


def stops(as_json: bool = AS_JSON) -> None:
    """List the stops: where no model call and no unsafe effect begins."""
    with connect() as client:
        found = client.stops()
    if as_json:
        print_json(found)
        return
    rows = ((_names(s), local_time(s["created_at"]), s["created_by"], s["reason"]) for s in found)
    print_table(("stopped", "since", "by", "reason"), rows, empty="Nothing is stopped.")


@limits_app.callback()
def _default(context: typer.Context, as_json: bool = AS_JSON) -> None:
    if context.invoked_subcommand is None:
        list_limits(as_json=as_json)


@limits_app.command("list")
def list_limits(as_json: bool = AS_JSON) -> None:
    """List limits."""
    with connect() as client:
        found = client.limits()
    if as_json:
        print_json(found)
        return
    rows = ((r["scope"], r["name"], r["max_running"], ", ".join(_rates(r)), r["created_by"]) for r in found)
    print_table(("scope", "name", "at once", "rate", "by"), rows, empty="No limits.")


@limits_app.command("set")
def set_limit(
    scope: LimitScope = SCOPE,
    name: str = EACH_NAME,
    max_running: int | None = typer.Option(None, "--max-running", min=0, help="How many tasks run at once."),
    rate: str | None = typer.Option(
        None, "--rate", help="How many tasks start in a period: 10/s, 100/5m, 1000/h. For a model: requests."
    ),
    input_tokens: str | None = typer.Option(
        None, "--input-tokens", help="For a model, input tokens in a period: 40000/m."
    ),
    output_tokens: str | None = typer.Option(
        None, "--output-tokens", help="For a model, output tokens in a period: 8000/m."
    ),
    actor: str | None = ACTOR,
) -> None:
    """Limit a capability, an agent, a key or a model, in place of the limit that it has."""
    with connect(actor) as client:
        limit = client.set_limit(
            scope, name, max_running=max_running, rate=rate, input_tokens=input_tokens, output_tokens=output_tokens
        )
        said = [f"{limit['max_running']} at once"] if limit["max_running"] is not None else []
        console.print(f"The {scope} {name} is limited to {', '.join([*said, *_rates(limit)])}.")
        _warn_if_unknown(client, scope, name)


@limits_app.command("remove")
def remove_limit(scope: LimitScope = SCOPE, name: str = EACH_NAME) -> None:
    """Remove a limit."""
    with connect() as client:
        client.remove_limit(scope, name)
    console.print(f"The {scope} {name} has no limit any more.")


def _one_scope(agent: str | None, key: str | None) -> None:
    if agent is not None and key is not None:
        raise typer.BadParameter("give --agent or --key, not both")


def _names(stop: dict[str, Any]) -> str:
    return describe(stop["scope"], stop["namespace"], stop["name"])


def _warn_if_unknown(client: Client, scope: str, name: str) -> None:
    """Warn about an unknown name: it may be defined later, or be misspelt."""
    names = {
        "capability": lambda: {each["name"] for each in client.capabilities()},
        "agent": lambda: {each["name"] for each in client.agents()},
    }
    if name != "*" and scope in names and name not in (known := names[scope]()):
        console.print(f"There is no {scope} of that name yet; there are: {', '.join(sorted(known)) or 'none'}.")


def _rates(limit: dict[str, Any]) -> list[str]:
    rates = (
        (limit["rate"], " requests" if limit["scope"] == "model" else "", limit["period_seconds"]),
        (limit["input_tokens"], " input tokens", limit["input_tokens_seconds"]),
        (limit["output_tokens"], " output tokens", limit["output_tokens_seconds"]),
    )
    return [f"{count}{unit} in {seconds:g} s" for count, unit, seconds in rates if count]
