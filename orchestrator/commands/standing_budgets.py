"""Commands about standing budgets."""

from __future__ import annotations

from typing import Any, Literal

import typer

from orchestrator.commands.client import ACTOR, connect
from orchestrator.commands.output import AS_JSON, console, local_time, print_json, print_table
from shared.tasks.targets import describe

Scope = Literal["installation", "namespace", "agent", "key", "model"]
Period = Literal["hour", "day", "month"]
SCOPE = typer.Argument(help="The kind of NAME; `installation` has none.")
NAME = typer.Argument(None, help="Its name.")
PERIOD = typer.Option(..., "--per", help="The period of the budget.")
NAMESPACE = typer.Option(None, "--namespace", help="The namespace of the agent, key or model; `default` if left out.")

budgets_app = typer.Typer(
    help="Limit what models use in an hour, a day or a month.",
    invoke_without_command=True,
)


def register(app: typer.Typer) -> None:
    """Add the commands."""
    app.add_typer(budgets_app, name="budgets")


@budgets_app.callback()
def _default(context: typer.Context, as_json: bool = AS_JSON) -> None:
    if context.invoked_subcommand is None:
        list_budgets(as_json=as_json)


@budgets_app.command("list")
def list_budgets(as_json: bool = AS_JSON) -> None:
    """List the budgets, with what is used in the current period."""
    with connect() as client:
        found = client.budgets()
    if as_json:
        print_json(found)
        return
    rows = (
        (
            _names(budget),
            budget["period"],
            _use(budget["dollars"], "$"),
            _use(budget["tokens"]),
            budget["on_breach"],
            ", ".join(f"{alert['percent']} %" for alert in budget["alerts"]),
            local_time(budget["period_end"]),
        )
        for budget in found
    )
    heads = ("budget of", "per", "dollars", "tokens", "on breach", "alerts", "period ends")
    print_table(heads, rows, empty="No standing budgets.")


@budgets_app.command("set")
def set_budget(
    scope: Scope = SCOPE,
    name: str | None = NAME,
    period: Period = PERIOD,
    dollars: float | None = typer.Option(None, "--dollars", help="Dollars in each period."),
    tokens: int | None = typer.Option(None, "--tokens", help="Tokens in each period."),
    on_breach: Literal["wait", "fail", "alert"] = typer.Option(
        "wait",
        "--on-breach",
        help="What happens to a task whose next call does not fit: it waits, fails, or only an alert is raised.",
    ),
    timezone: str = typer.Option("UTC", "--timezone", help="The time zone of the period, such as Europe/Berlin."),
    namespace: str | None = NAMESPACE,
    actor: str | None = ACTOR,
) -> None:
    """Limit what models use in each period, in place of the budget of that period."""
    with connect(actor) as client:
        budget = client.set_budget(
            scope,
            **_target(scope, name, namespace),
            period=period,
            dollars=dollars,
            tokens=tokens,
            on_breach=on_breach,
            timezone=timezone,
        )
        limits = (("$", "", budget["dollars"]["limit"]), ("", " tokens", budget["tokens"]["limit"]))
        said = " and ".join(f"{before}{_number(limit)}{after}" for before, after, limit in limits if limit is not None)
        console.print(f"Models may use {said} per {period} for {_names(budget)}; on breach: {on_breach}.")
        if scope == "agent" and name not in (known := {each["name"] for each in client.agents()}):
            console.print(f"There is no agent of that name yet; there are: {', '.join(sorted(known)) or 'none'}.")


@budgets_app.command("remove")
def remove_budget(
    scope: Scope = SCOPE, name: str | None = NAME, period: Period = PERIOD, namespace: str | None = NAMESPACE
) -> None:
    """Remove a budget; tasks that wait for it continue."""
    with connect() as client:
        client.remove_budget(scope, **_target(scope, name, namespace), period=period)
    console.print(f"The budget per {period} is removed.")


def _target(scope: str, name: str | None, namespace: str | None) -> dict[str, str | None]:
    """The name of a namespace is its `namespace`."""
    if scope == "namespace" and namespace is None:
        return {"name": None, "namespace": name}
    return {"name": name, "namespace": namespace}


def _names(budget: dict[str, Any]) -> str:
    return describe(budget["scope"], budget["namespace"], budget["name"])


def _use(amount: dict[str, Any], unit: str = "") -> str | None:
    if amount["limit"] is None:
        return None
    held = f" (+{unit}{_number(amount['reserved'])})" if amount["reserved"] else ""
    return f"{unit}{_number(amount['spent'])}{held} of {unit}{_number(amount['limit'])}"


def _number(amount: float) -> str:
    return f"{amount:,.6f}".rstrip("0").rstrip(".")
