"""`minion doctor`: checks everything that the system needs, and says how to repair it."""

from __future__ import annotations

import platform
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import typer

from orchestrator.commands.output import AS_JSON, print_json, print_table
from shared.errors import MinionError
from shared.settings import Settings, get_settings


@dataclass(frozen=True)
class Finding:
    """Result of one check. `verdict` is ok, warning or failed."""

    what: str
    verdict: str
    found: str
    advice: str = ""


def register(app: typer.Typer) -> None:
    """Add the command."""
    app.command()(doctor)


def doctor(as_json: bool = AS_JSON) -> None:
    """Check this machine and what it is configured to use."""
    settings = get_settings()
    findings = [finding for check in CHECKS for finding in _safely(check, settings)]
    if as_json:
        print_json([vars(finding) for finding in findings])
    else:
        rows = ((f.what, f.verdict, f.found, f.advice) for f in findings)
        print_table(("what", "verdict", "found", "what to do"), rows, empty="")
    if any(finding.verdict == "failed" for finding in findings):
        raise typer.Exit(1)


def _safely(check: Callable[[Settings], Iterator[Finding]], settings: Settings) -> list[Finding]:
    name = check.__name__.strip("_")
    try:
        return list(check(settings))
    except MinionError as error:
        return [Finding(name, "failed", error.message)]
    except Exception as error:
        return [Finding(name, "failed", f"{type(error).__name__}: {' '.join(str(error).split())[:300]}")]


def _python(settings: Settings) -> Iterator[Finding]:
    yield Finding("python", "ok", f"{platform.python_version()} on {platform.system()} {platform.machine()}")
    yield Finding("data folder", "ok", str(settings.data_dir))


def _database(settings: Settings) -> Iterator[Finding]:
    from sqlalchemy import text

    from shared.database.connections import get_engine
    from shared.database.schema import check_schema_is_current

    with get_engine().connect() as connection:
        version = str(connection.scalar(text("SHOW server_version")))
        recent = int(version.split(".")[0].split()[0]) >= 15
        yield Finding(
            "database", "ok" if recent else "failed", f"PostgreSQL {version}", "" if recent else "needs 15 or later"
        )
        encoding = str(connection.scalar(text("SHOW server_encoding")))
        if encoding != "UTF8":
            yield Finding("encoding", "failed", encoding, "recreate the database with ENCODING 'UTF8'")
        check_schema_is_current(connection)
        yield Finding("schema", "ok", "current")


def _broker(settings: Settings) -> Iterator[Finding]:
    from shared.notifications import make_redis
    from shared.tasks import set_aside

    with make_redis() as broker:
        facts: Any = broker.info()
        aside = set_aside.counts(broker)
    version = facts.get("valkey_version") or facts["redis_version"]
    yield Finding("broker", "ok", f"{facts.get('server_name', 'redis')} {version}")
    policy = facts.get("maxmemory_policy", "noeviction")
    advice = "" if policy == "noeviction" else "set maxmemory-policy noeviction, or messages are evicted"
    yield Finding("broker memory", "warning" if advice else "ok", f"maxmemory-policy {policy}", advice)
    if aside:
        found = ", ".join(f"{count:,} of {queue}" for queue, count in sorted(aside.items()))
        advice = f"find out what else writes to this Redis; the newest messages are in its list {set_aside.SAMPLES}"
        yield Finding("messages set aside", "warning", found, advice)


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


def _audit_log(settings: Settings) -> Iterator[Finding]:
    from shared.audit.signing import Signer

    signed = Signer.find(settings) is not None
    advice = "" if signed else "set MINION_SECRET_KEY: `minion secrets key` makes one"
    yield Finding("audit log", "ok" if signed else "warning", "signed" if signed else "not signed", advice)


def _integrations(settings: Settings) -> Iterator[Finding]:
    key = "set" if settings.anthropic_api_key else "not set: `model: auto` means the offline planner"
    yield Finding("anthropic key", "ok", key)
    yield _sentry(settings)


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


CHECKS: tuple[Callable[[Settings], Iterator[Finding]], ...] = (
    _python,
    _database,
    _broker,
    _api,
    _sandbox,
    _audit_log,
    _integrations,
    _traces,
)
