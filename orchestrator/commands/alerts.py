"""`minion alerts`: see, acknowledge and silence alerts."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from itertools import islice
from typing import Any, Literal

import typer

from orchestrator.commands.client import ACTOR, connect
from orchestrator.commands.durations import seconds_of
from orchestrator.commands.output import AS_JSON, console, local_time, print_json, print_table, stderr, styled
from shared.contracts.visible_text import one_line

app = typer.Typer(
    help="See, acknowledge and silence alerts: list, show, ack, silence, silences, unsilence, test.",
    invoke_without_command=True,
)
RULE = typer.Option(None, "--rule", help="Only this rule, such as unserved or anomaly.failures.")
AGENT = typer.Option(None, "--agent", "-a", help="Only alerts about this agent.")
CAPABILITY = typer.Option(None, "--capability", "-c", help="Only alerts about this capability.")
NAMESPACE = typer.Option(None, "--namespace", help="Only alerts of this namespace.")


def register(commands: typer.Typer) -> None:
    """Add the commands."""
    commands.add_typer(app, name="alerts")


@app.callback()
def _default(context: typer.Context, as_json: bool = AS_JSON) -> None:
    if context.invoked_subcommand is None:
        list_alerts(None, None, None, None, None, all_=False, limit=50, as_json=as_json)


@app.command("list")
def list_alerts(
    state: Literal["firing", "acknowledged", "silenced", "resolved"] | None = typer.Option(
        None, "--state", "-s", help="Only alerts in this state."
    ),
    rule: str | None = RULE,
    agent: str | None = AGENT,
    capability: str | None = CAPABILITY,
    namespace: str | None = NAMESPACE,
    all_: bool = typer.Option(False, "--all", help="Also those that are resolved."),
    limit: int = typer.Option(50, "--limit", "-n", min=1, max=100_000, help="How many alerts, the newest first."),
    as_json: bool = AS_JSON,
) -> None:
    """List alerts, the newest first."""
    with connect() as client:
        found = list(
            islice(
                client.alerts(
                    all=all_, state=state, rule=rule, agent=agent, capability=capability, namespace=namespace
                ),
                limit,
            )
        )
    if as_json:
        print_json(found)
        return
    print_table(
        ("id", "state", "rule", "since", "namespace", "alert"),
        ((a["id"], a["state"], a["rule"], local_time(a["first_seen"]), a["namespace"], a["sentence"]) for a in found),
        empty="No alerts.",
    )


@app.command()
def show(alert: str = typer.Argument(help="The alert's id.")) -> None:
    """Show an alert as JSON."""
    with connect() as client:
        print_json(client.alert(alert))


@app.command()
def ack(alerts: list[str] = typer.Argument(help="The alerts' ids."), actor: str | None = ACTOR) -> None:
    """Acknowledge alerts: they are not repeated, and receivers are notified once they are resolved."""
    with connect(actor) as client:
        for alert in alerts:
            console.print(f"{client.acknowledge_alert(alert)['id']} is acknowledged.")


@app.command()
def silence(
    reason: str = typer.Argument(help="Why."),
    lasts: str = typer.Option(..., "--for", help="How long, such as 2h or 3d."),
    rule: str | None = typer.Option(None, "--rule", help="A rule; anomaly.* for all that begin so, * for all."),
    agent: str | None = AGENT,
    capability: str | None = CAPABILITY,
    subject: str | None = typer.Option(None, "--subject", help="Only alerts with this subject."),
    namespace: str | None = NAMESPACE,
    actor: str | None = ACTOR,
    as_json: bool = AS_JSON,
) -> None:
    """Silence alerts for a while."""
    until = datetime.now(UTC) + timedelta(seconds=seconds_of(lasts, "--for"))
    matcher = {"rule": rule, "agent": agent, "capability": capability, "subject": subject, "namespace": namespace}
    with connect(actor) as client:
        added = client.add_silence(until=until, reason=reason, **matcher)
    if as_json:
        print_json(added)
    else:
        console.print(f"Silenced until {local_time(added['until'])}: {added['id']}")


@app.command()
def silences(as_json: bool = AS_JSON) -> None:
    """List the silences that have not ended."""
    with connect() as client:
        found = list(client.silences())
    if as_json:
        print_json(found)
        return
    print_table(
        ("id", "matches", "namespace", "until", "by", "reason"),
        ((s["id"], _matcher(s), s["namespace"], local_time(s["until"]), s["created_by"], s["reason"]) for s in found),
        empty="No silences.",
    )


@app.command()
def unsilence(silence: str = typer.Argument(help="The silence's id."), actor: str | None = ACTOR) -> None:
    """End a silence. Alerts that still fire are sent and repeated again."""
    with connect(actor) as client:
        client.remove_silence(silence)
    console.print(f"{silence} is ended.")


@app.command("test")
def send_test(as_json: bool = AS_JSON) -> None:
    """Send a test message to each address of MINION_ALERT_URLS; the exit code is 1 if one does not accept it."""
    with connect() as client:
        sent = client.test_alerts()
    if as_json:
        print_json(sent)
    elif not sent:
        console.print("MINION_ALERT_URLS is not set. `minion webhooks test` tests a webhook.")
    for each in sent if not as_json else ():
        if each["delivered"]:
            console.print(f"{each['receiver']}: delivered")
        else:
            stderr.print(styled((f"{each['receiver']}: not delivered: ", "bold red"), one_line(str(each["error"]))))
    if not all(each["delivered"] for each in sent):
        raise typer.Exit(1)


def _matcher(silence: dict[str, Any]) -> str:
    names = ("rule", "agent", "capability", "subject")
    return ", ".join(f"{name} {silence[name]}" for name in names if silence[name] is not None)
