"""The tutorial and the how-to guides, followed from the pages alone: one system, which the tutorial starts."""

from __future__ import annotations

import os
import socket
import sys
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest

from orchestrator.local.embedded import scratch_dir
from tests.acceptance.conftest import clean_environment
from tests.support.documented_commands import Terminal, blocks_of, read, replay

ROOT = Path(__file__).resolve().parent.parent.parent
TUTORIAL = ROOT / "docs" / "tutorial.md"
GUIDES = [*sorted((ROOT / "docs" / "how-to").glob("*.md")), ROOT / "docs" / "upgrading.md"]


def free_port() -> str:
    with socket.create_server(("127.0.0.1", 0)) as server:
        return str(server.getsockname()[1])


@pytest.fixture(scope="module")
def tutorial() -> Iterator[Terminal]:
    """Terminal of a reader who has followed the tutorial, and whose system still runs."""
    ports = {"8787": free_port(), "8700": free_port()}
    with scratch_dir() as folder, ExitStack() as stack:
        environment = clean_environment(folder / "data") | {
            "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}",
            "MINION_API_PORT": ports["8700"],
            "PYTHONPATH": "",
        }
        (desk := folder / "desk").mkdir()
        yield stack.enter_context(read(TUTORIAL, desk, environment, ports))


def test_tutorial_works_from_an_empty_folder(tutorial):
    tutorial.run("minion tasks --state succeeded --agent refund-desk")


@pytest.mark.parametrize("page", GUIDES, ids=lambda page: page.stem)
def test_guide_works_beside_the_tutorial(tutorial, page):
    replay(page, tutorial)


def test_only_what_needs_other_machines_is_not_run():
    directions = [
        (page.stem, block.direction.removeprefix("not run: "))
        for page in (TUTORIAL, *GUIDES)
        for block in blocks_of(page)
        if block.direction.startswith("not run")
    ]
    assert {reason for _, reason in directions} <= {
        "the tests run in an installation",
        "needs a cluster",
        "needs npm",
        "needs the servers of a production system",
    }
