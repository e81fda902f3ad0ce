"""The example receiver does what the documentation requires."""

from __future__ import annotations

import json
import socket
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import httpx2
import pytest

from minions.webhooks import sign
from tests.support.processes import ROOT, Process, killed_on_exit, wait_until
from tests.support.webhook_receiver import SECRET

BODY = json.dumps({"type": "task.succeeded", "data": {"id": "some task"}}).encode()
Send = Callable[..., int]


@pytest.fixture
def example(tmp_path: Path) -> Iterator[tuple[Process, str]]:
    """The running example on a free port, and its address."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = str(free.getsockname()[1])
    source = (ROOT / "examples" / "webhooks" / "receiver.py").read_text()
    assert "8800" in source
    script = tmp_path / "receiver.py"
    script.write_text(source.replace("8800", port))
    env = {"MINION_WEBHOOK_SECRET": SECRET, "PYTHONPATH": str(ROOT)}
    process = Process([sys.executable, str(script)], tmp_path / "receiver.log", env)
    with killed_on_exit(process):
        wait_until(lambda: process.running and answers(f"http://127.0.0.1:{port}/"), "the receiver")
        yield process, f"http://127.0.0.1:{port}/"


def answers(url: str) -> bool:
    try:
        httpx2.get(url, trust_env=False)
    except httpx2.TransportError:
        return False
    return True


def send(url: str, id: str, body: bytes = BODY) -> int:
    """Posts a message that was signed for `BODY`; the status of the answer."""
    now = int(time.time())
    headers = {"webhook-id": id, "webhook-timestamp": str(now), "webhook-signature": sign(SECRET, id, now, BODY)}
    return httpx2.post(url, content=body, headers=headers, trust_env=False).status_code


def test_the_example_verifies_and_drops_repeats(example: tuple[Process, str]) -> None:
    process, url = example
    assert send(url, "first") == 204
    assert send(url, "first") == 204
    assert send(url, "second") == 204
    assert send(url, "third", BODY + b" ") == 401
    said = [line for line in process.output().splitlines() if line.startswith("task.")]
    assert said == ["task.succeeded {'id': 'some task'}"] * 2
