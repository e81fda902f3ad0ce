"""`minion doctor`: checks everything that the system needs, and says how to repair it."""

from __future__ import annotations

import os
import platform
import stat
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import typer

from orchestrator.commands.findings import Finding, judged
from orchestrator.commands.output import AS_JSON, print_json, print_table
from shared.errors import MinionError
from shared.providers import ANTHROPIC, split
from shared.settings import Settings, get_settings, secret_variables

Check = Callable[[Settings], Iterator[Finding]]
PATIENCE = 30.0
"""Seconds that a check may take."""


def register(app: typer.Typer) -> None:
    """Add the command."""
    app.command()(doctor)


def doctor(as_json: bool = AS_JSON) -> None:
    """Check this machine and what it is configured to use."""
    settings = get_settings()
    findings = [finding for check in CHECKS for finding in _in_time(check, settings)]
    if as_json:
        print_json([vars(finding) for finding in findings])
    else:
        rows = ((f.what, f.verdict, f.found, f.advice) for f in findings)
        print_table(("what", "verdict", "found", "what to do"), rows, empty="")
    if any(finding.verdict == "failed" for finding in findings):
        raise typer.Exit(1)


def _in_time(check: Check, settings: Settings) -> list[Finding]:
    """Return what a check finds, within a time: a frozen server, or a lock, must not stop the other checks."""
    found: list[Finding] = []
    checking = threading.Thread(target=lambda: found.extend(_safely(check, settings)), daemon=True)
    checking.start()
    checking.join(PATIENCE)
    if checking.is_alive():
        advice = "what it asks is frozen, overloaded or locked: look at it, or try again"
        return [*found, Finding(_name(check), "failed", f"no answer within {PATIENCE:g} s", advice)]
    return found


def _safely(check: Check, settings: Settings) -> Iterator[Finding]:
    try:
        yield from check(settings)
    except MinionError as error:
        yield Finding(_name(check), "failed", error.message)
    except Exception as error:
        yield Finding(_name(check), "failed", f"{type(error).__name__}: {' '.join(str(error).split())[:300]}")


def _name(check: Check) -> str:
    return check.__name__.strip("_")


def _python(settings: Settings) -> Iterator[Finding]:
    yield Finding("python", "ok", f"{platform.python_version()} on {platform.system()} {platform.machine()}")
    yield Finding("data folder", "ok", str(settings.data_dir))


def _secrets(settings: Settings) -> Iterator[Finding]:
    held = [variable for variable in secret_variables() if os.environ.get(variable)]
    files = [Path(path) for variable in secret_variables() if (path := os.environ.get(f"{variable}_FILE"))]
    readable = [str(path) for path in files if path.stat().st_mode & stat.S_IROTH]
    advice = f"every user of this machine can read {', '.join(readable)}: `chmod o-r` them" if readable else ""
    yield judged("secrets", f"{len(held)} from the environment, {len(files)} from files", warning=advice)


def _database(settings: Settings) -> Iterator[Finding]:
    # Imported on use, as below: other commands go over HTTP and need no database layer.
    from orchestrator.commands.database_checks import database

    yield from database(settings)


def _broker(settings: Settings) -> Iterator[Finding]:
    from orchestrator.commands.broker_checks import broker

    yield from broker(settings)


def _api(settings: Settings) -> Iterator[Finding]:
    from orchestrator.commands.client import connect

    with connect() as client:
        ready = client.ready()
        advice = "" if ready else "start `minion orchestrator` (or `minion up`), or set MINION_API_URL"
        yield Finding("api", "ok" if ready else "failed", settings.require_api_url(), advice)
        for capability in client.capabilities() if ready else []:
            served = capability["served"]
            advice = "" if served else f"start `minion worker {capability['name']}`"
            slots = f"{capability['slots']} slots, {capability['pending']} pending"
            yield Finding(f"capability {capability['name']}", "ok" if served else "warning", slots, advice)


def _sandbox(settings: Settings) -> Iterator[Finding]:
    from shared.functions.runner import get_sandbox
    from shared.sandbox import levels

    sandbox = get_sandbox()
    level = sandbox.level
    advice = levels.explain_strong(sandbox.notes) if level == "strong" else "; ".join(sandbox.notes)
    yield Finding("sandbox", "ok" if level != "insecure" else "failed", f"level {level}", advice)
    for name in sandbox.packages:
        yield Finding(f"package {name}", "ok", "preloaded")
    for name, why in sandbox.failed_packages.items():
        yield Finding(f"package {name}", "failed", why, "fix it, or remove it from MINION_SANDBOX_PRELOAD")


def _secret_key(settings: Settings) -> Iterator[Finding]:
    from shared.audit.signing import Signer
    from shared.secret_store import SecretStore

    if Signer.find(settings) is None:
        advice = "tools have no secrets, and the audit log can be forged: set MINION_SECRET_KEY (`minion secrets key`)"
        yield Finding("audit log", "warning", "not signed", advice)
        return
    yield Finding("audit log", "ok", "signed")
    SecretStore(settings)  # raises if the key is none


def _integrations(settings: Settings) -> Iterator[Finding]:
    means_claude = split(settings.default_model)[0] == ANTHROPIC
    without = "not set: `model: auto` means the offline planner" if means_claude else "not set"
    yield Finding("anthropic key", "ok", "set" if settings.anthropic_api_key else without)
    yield _sentry(settings)


def _providers(settings: Settings) -> Iterator[Finding]:
    from orchestrator.commands.provider_checks import providers

    yield from providers(settings)


def _provider_answers(settings: Settings) -> Iterator[Finding]:
    from orchestrator.commands.provider_checks import answers

    yield from answers(settings)


def _mcp_servers(settings: Settings) -> Iterator[Finding]:
    from orchestrator.commands.mcp_checks import mcp_servers

    yield from mcp_servers()


def _traces(settings: Settings) -> Iterator[Finding]:
    from orchestrator.commands.trace_check import check_endpoint

    verdict, found, advice = check_endpoint(settings)
    yield Finding("traces", verdict, found, advice)


def _sentry(settings: Settings) -> Finding:
    from sentry_sdk.utils import BadDsn, Dsn

    if not settings.sentry_dsn:
        return Finding("sentry", "ok", "off (SENTRY_DSN is not set)")
    try:
        Dsn(settings.sentry_dsn.get_secret_value())
    except BadDsn:
        return Finding(
            "sentry",
            "failed",
            "SENTRY_DSN is not an address like https://key@host/project",
            "correct it or unset it: no process starts with it",
        )
    return Finding("sentry", "ok", "on")


CHECKS: tuple[Check, ...] = (
    _python,
    _secrets,
    _database,
    _broker,
    _api,
    _sandbox,
    _secret_key,
    _integrations,
    _providers,
    _provider_answers,
    _mcp_servers,
    _traces,
)
