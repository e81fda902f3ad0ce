"""`minion dev` and the scaffolds of agents, as an author uses them."""

from __future__ import annotations

import signal
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from orchestrator.local.embedded import scratch_dir
from tests.acceptance.conftest import System, all_pids, clean_environment, describe, run_minion, wait_until

SHOP = """
import minions
from pydantic import BaseModel

class Order(BaseModel):
    amount: int

@minions.function
def double(n: int) -> int:
    return n * 2

@minions.tool(effect="pure")
def ship(order: Order) -> Order:
    return Order(amount=order.amount + 1)

doubler = minions.Agent("doubler", function=double)
shipper = minions.Agent("shipper", tool=ship)
"""


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The author's folder."""
    folder = tmp_path_factory.mktemp("author")
    (folder / "shop.py").write_text(SHOP)
    return folder


@pytest.fixture(scope="module")
def dev(environment: dict[str, str], folder: Path) -> Iterator[System]:
    """`minion dev shop.py`, with one pool."""
    process = subprocess.Popen(
        [sys.executable, "-m", "orchestrator.cli", "dev", "shop.py", "--pool", "default=1"],
        cwd=folder,
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )
    said: list[str] = []
    assert process.stdout is not None
    reader = threading.Thread(target=said.extend, args=(process.stdout,))
    reader.start()
    system = System(process, environment, Path(environment["MINION_DATA_DIR"]), said, cwd=folder)
    wait_until(lambda: says(system, "Everything is running") or process.poll() is not None, seconds=120, what="start")
    yield system
    process.send_signal(signal.SIGINT)
    assert process.wait(60) == 0
    reader.join()
    process.stdout.close()
    assert not [pid for pid in all_pids() if str(system.folder).encode() in describe(pid)]


def says(system: System, words: str) -> bool:
    return words in "".join(system.said)


def save(system: System, folder: Path, text: str, then: str) -> None:
    """Write the module, and wait until the command has reported on it."""
    system.said.clear()
    (folder / "shop.py").write_text(text)
    wait_until(lambda: says(system, then), seconds=60, what=then)


def test_definitions_are_stored_at_every_save(dev: System, folder: Path):
    assert dev.run("submit", "doubler", '{"n": 4}', "--wait").stdout.strip() == "8"
    save(dev, folder, SHOP.replace("n * 2", "n * 3"), "function double version 2")
    assert dev.run("submit", "doubler", '{"n": 4}', "--wait").stdout.strip() == "12"


def test_tool_of_the_module_runs_as_it_was_saved(dev: System, folder: Path):
    save(dev, folder, SHOP.replace("order.amount + 1", "order.amount + 5"), "The workers were restarted")
    assert '"amount": 7' in dev.run("submit", "shipper", '{"order": {"amount": 2}}', "--wait").stdout


def test_half_saved_file_is_reported_and_mended(dev: System, folder: Path):
    save(dev, folder, SHOP + "\ndef half(:", "Error: shop.py: it cannot be imported: SyntaxError")
    save(dev, folder, SHOP.replace("n * 2", "1 / 0"), "agent doubler version")


def test_failing_task_is_shown_with_its_page(dev: System, folder: Path):
    save(dev, folder, SHOP.replace("n * 2", "n / 0"), "agent doubler version")
    task = dev.run("submit", "doubler", '{"n": 4}').stdout.strip()
    wait_until(lambda: says(dev, f"/tasks/{task}"), seconds=30, what="the page of the task")
    assert says(dev, "ZeroDivisionError: division by zero")


def test_applied_module_exports_as_yaml_that_is_unchanged(dev: System, folder: Path, tmp_path: Path):
    dev.run("export", str(tmp_path))
    assert {each["action"] for each in dev.json("apply", str(tmp_path))} == {"unchanged"}


def test_target_that_does_not_exist_ends_the_command(environment: dict[str, str], folder: Path):
    ended = run_minion(environment, "dev", "none.yaml", cwd=folder)
    assert (ended.returncode, "there is no such" in ended.stderr) == (74, True), ended.stderr


def test_scaffolds_of_agents_and_projects_pass_their_tests(tmp_path: Path):
    with scratch_dir() as private:
        environment = clean_environment(private / "data")
        shop = tmp_path / "shop"
        for place, *words in (
            (tmp_path, "project", "shop", "--python"),
            (shop, "agent", "desk"),
            (shop, "agent", "night-desk", "--python"),
            (shop, "project", "plain"),
        ):
            assert run_minion(environment, "new", *words, cwd=place).returncode == 0
        for file in (shop / "plain").glob("*plain.*"):
            file.rename(shop / file.name)
        ended = subprocess.run(
            [
                sys.executable,
                "-m",
                "pytest",
                "-q",
                "test_shop.py",
                "test_desk.py",
                "test_night_desk.py",
                "test_plain.py",
            ],
            cwd=shop,
            env=environment,
            capture_output=True,
            text=True,
        )
    assert "4 passed" in ended.stdout, ended.stdout + ended.stderr
