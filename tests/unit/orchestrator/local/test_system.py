"""The ports of `minion up`, and how another process finds the system."""

from __future__ import annotations

import json
import socket
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler
from pathlib import Path
from typing import Any

import pytest

from orchestrator.local import system
from orchestrator.local.system import LocalSystem, running_system
from shared.errors import NotConfigured, Unavailable
from shared.settings import RUN_FILE, Settings
from tests.support.http_server import answering


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


@pytest.fixture
def closed() -> str:
    """Return an address at which nothing listens."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        return f"http://127.0.0.1:{server.getsockname()[1]}"


def test_unreachable_system_of_this_installation_is_not_running(tmp_path: Path, closed: str) -> None:
    settings = Settings(api_key="key", data_dir=tmp_path)
    assert running_system(settings) is None
    (tmp_path / RUN_FILE).write_text(json.dumps({"api_url": closed, "places": {}}))
    assert running_system(settings) is None


def test_named_system_that_is_starting_is_awaited(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    answers = [503, 503, 200]

    class Starting(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self.send_response(answers.pop(0))
            self.send_header("content-length", "0")
            self.end_headers()

        def log_message(self, format: str, *args: Any) -> None:
            pass

    monkeypatch.setattr(system, "READY_POLL_SECONDS", 0.0)
    with answering(Starting) as port:
        url = f"http://127.0.0.1:{port}"
        assert running_system(Settings(api_url=url, api_key="key", data_dir=tmp_path)) == {"API": f"{url}/docs"}
    assert answers == []


def test_named_system_that_never_answers_is_an_error(tmp_path: Path, closed: str) -> None:
    with pytest.raises(Unavailable, match=f"MINION_API_URL is {closed}, and no system was ready there within 0 s"):
        running_system(Settings(api_url=closed, api_key="key", data_dir=tmp_path), patience=0.0)
