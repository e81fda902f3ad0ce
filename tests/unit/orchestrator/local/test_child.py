"""A child process of `minion up` receives the environment without the secrets that it does not need."""

from __future__ import annotations

import signal
from pathlib import Path
from typing import Any

import pytest

from orchestrator.local import child as children
from orchestrator.local.child import Child
from orchestrator.local.system import LocalSystem
from shared.settings import Settings

TRACE_HEADERS = {"OTEL_EXPORTER_OTLP_HEADERS", "OTEL_EXPORTER_OTLP_TRACES_HEADERS"}
SECRETS = {
    "ANTHROPIC_API_KEY",
    "ANTHROPIC_CUSTOM_HEADERS",
    "DATABASE_URL",
    "MINION_API_KEY",
    "MINION_FLOWER_PASSWORD",
    "MINION_ALERT_URLS",
    "MINION_METRICS_TOKEN",
    "MINION_OIDC_CLIENT_SECRET",
    "MINION_PROVIDER_KEYS",
    "MINION_SECRET_KEY",
    *TRACE_HEADERS,
}


@pytest.fixture
def started(monkeypatch: pytest.MonkeyPatch) -> dict[str, set[str]]:
    """Return the secrets that each process was started with, by its subcommand."""
    seen: dict[str, set[str]] = {}

    def start(command: list[str], *, env: dict[str, str], **_: Any) -> None:
        seen[command[4]] = SECRETS & env.keys()

    monkeypatch.setattr(children.subprocess, "Popen", start)
    for name in SECRETS:
        monkeypatch.setenv(name, "{}" if name == "MINION_PROVIDER_KEYS" else "secret")
    return seen


def test_child_receives_all_but_the_withheld_secrets(started: dict[str, set[str]], tmp_path: Path) -> None:
    Child("a", ["a"], {}, tmp_path, orphaned=signal.SIGTERM).start()
    Child("b", ["b"], {}, tmp_path, orphaned=signal.SIGTERM, withheld=("ANTHROPIC_",)).start()
    assert started == {"a": SECRETS, "b": SECRETS - {"ANTHROPIC_API_KEY", "ANTHROPIC_CUSTOM_HEADERS"}}


def test_each_process_receives_only_the_secrets_that_it_needs(
    started: dict[str, set[str]], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MINION_FLOWER_URL", "")  # the system sets it
    system = LocalSystem(Settings(data_dir=tmp_path), [], flower=True, say=print)
    for step in (
        "catch_signals",
        "start_servers",
        "prepare_database",
        "wait_for_api",
        "write_facts",
        "wait_for_workers",
    ):
        monkeypatch.setattr(system, f"_{step}", lambda: None)
    monkeypatch.setattr(system, "_offered", lambda: {"work"})
    system.logs.mkdir()
    try:
        system._start()
    finally:
        for claim in system._claims:
            claim.close()
    assert started == {
        "orchestrator": SECRETS - {"MINION_FLOWER_PASSWORD", "MINION_PROVIDER_KEYS"},
        "worker": SECRETS
        - {
            "MINION_ALERT_URLS",
            "MINION_FLOWER_PASSWORD",
            "MINION_METRICS_TOKEN",
            "MINION_OIDC_CLIENT_SECRET",
            *TRACE_HEADERS,
        },
        "flower": {"MINION_API_KEY", "MINION_FLOWER_PASSWORD"},
    }
