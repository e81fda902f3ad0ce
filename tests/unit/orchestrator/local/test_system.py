"""The ports of `minion up`, and how another process finds the system."""

from __future__ import annotations

import socket
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from orchestrator.local import system
from orchestrator.local.system import LocalSystem, running_system
from shared.errors import NotConfigured
from shared.settings import Settings


@pytest.fixture
def messages() -> list[str]:
    return []


@pytest.fixture
def local(messages: list[str], monkeypatch: pytest.MonkeyPatch) -> Iterator[LocalSystem]:
    monkeypatch.setenv("MINION_FLOWER_URL", "")  # the system sets it
    local = LocalSystem(Settings(api_port=0), [], flower=True, say=messages.append)
    yield local
    local.stop()


def test_ports_in_use_are_reported_with_their_replacements(
    local: LocalSystem, messages: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    with socket.create_server(("127.0.0.1", 0)) as api, socket.create_server(("127.0.0.1", 0)) as flower:
        wanted = [one.getsockname()[1] for one in (api, flower)]
        monkeypatch.setattr(system, "FLOWER_PORT", wanted[1])
        local.settings = Settings(api_port=wanted[0])
        local._choose_places()
    places: dict[str, Any] = local.places()
    assert places["API"] == f"{local.facts['api_url']}/docs"
    assert messages == [
        f"Port {wanted[0]} is in use. The API listens on {local.facts['api_url']} instead.",
        f"Port {wanted[1]} is in use. Flower listens on {places['Flower']} instead.",
    ]


def test_free_ports_are_not_reported(local: LocalSystem, messages: list[str]) -> None:
    local.flower = False
    local._choose_places()
    assert messages == []


def test_closed_connections_of_a_stopped_system_free_its_port(local: LocalSystem) -> None:
    """The side that closes first keeps its half of the connection for a minute."""
    with socket.create_server(("127.0.0.1", 0)) as server, socket.create_connection(server.getsockname()) as client:
        port = server.getsockname()[1]
        accepted, _ = server.accept()
        accepted.close()
        client.recv(1)
    assert local._take_port("The API", port) == port


def test_running_system_without_an_api_key_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("MINION_API_KEY", raising=False)
    with pytest.raises(NotConfigured, match="No API key"):
        running_system(Settings(api_url="http://127.0.0.1:9", data_dir=tmp_path))


def test_unreachable_system_is_not_running(tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as closed:
        url = f"http://127.0.0.1:{closed.getsockname()[1]}"
    assert running_system(Settings(api_url=url, api_key="key", data_dir=tmp_path)) is None
    assert running_system(Settings(data_dir=tmp_path)) is None
