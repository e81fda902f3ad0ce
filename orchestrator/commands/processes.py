"""Commands that start processes: orchestrator, worker, flower, up, demo."""

from __future__ import annotations

import os
import sys
from importlib import import_module

import typer

from orchestrator.capabilities import parse_capabilities
from orchestrator.commands.client import connect
from orchestrator.commands.definitions import store, tell
from orchestrator.commands.output import AS_JSON, console, on_a_terminal
from shared.imports import without_collector
from shared.settings import get_settings


def register(app: typer.Typer) -> None:
    """Add the commands."""
    for command in (demo, up, orchestrator, worker, flower):
        app.command()(command)


def orchestrator() -> None:
    """Run an orchestrator: it serves the API, dispatches, rescues and schedules tasks. More than one may run."""
    with without_collector():
        from orchestrator.service import serve
        from shared.telemetry import configure

    settings = get_settings()
    configure(settings, component="orchestrator")
    serve(settings)


def worker(
    capabilities: str = typer.Argument(
        help="The capabilities it serves, separated by commas.", parser=parse_capabilities, metavar="CAPABILITIES"
    ),
    concurrency: int = typer.Option(2, "--concurrency", "-c", min=1, help="How many tasks at once."),
    name: str | None = typer.Option(None, "--name", "-n", help="The node's name, as Celery's -n."),
    pool: str = typer.Option("prefork", "--pool", "-P", help="Celery's pool. Time limits apply to prefork only."),
) -> None:
    """Run a pool of minions for some capabilities."""
    with without_collector():
        from shared.database.schema import wait_for_database
        from shared.telemetry import configure

    settings = get_settings()
    settings.require_redis_url()
    configure(settings, component="worker")
    wait_for_database(settings)
    node = name or f"{capabilities.replace(',', '+')}-{os.getpid()}@%h"
    _celery(
        "worker",
        "-Q",
        capabilities,
        "-c",
        str(concurrency),
        "-P",
        pool,
        "-n",
        node,
        "--without-mingle",
        "--without-gossip",
    )


def flower(
    port: int = typer.Option(5555, min=1, max=65535, help="The port it listens on."),
    address: str = typer.Option("127.0.0.1", help="The address it listens on."),
    allow_actions: bool = typer.Option(
        False, "--allow-actions", help="Let its users control workers, for example stop them."
    ),
) -> None:
    """Run Flower, which shows Celery's workers and tasks. Its user is `minions`; MINION_FLOWER_PASSWORD is its
    password."""
    with without_collector():
        from orchestrator.flower import serve
        from shared.telemetry import configure

    settings = get_settings()
    configure(settings, component="flower")
    serve(settings, address=address, port=port, allow_actions=allow_actions)


def up(
    pool: list[str] = typer.Option(
        [],
        "--pool",
        "-p",
        metavar="CAPABILITIES[=N]",
        help="A worker pool; by default one pool of 2 for each capability.",
    ),
    with_flower: bool = typer.Option(True, "--flower/--no-flower", help="Start Flower too."),
) -> None:
    """Run everything on this machine: private servers, orchestrator, a pool for each capability, Flower."""
    from orchestrator.local.system import LocalSystem, parse_pool
    from shared.access.login_links import SECONDS

    with LocalSystem(
        get_settings(), [parse_pool(text) for text in pool], flower=with_flower, say=console.print
    ) as system:
        for name, url in system.places().items():
            console.print(f"{name:8} {url}")
        if on_a_terminal():  # not into a file, where others may find it
            console.print(f"Log in   {system.login_link()}", soft_wrap=True)
            console.print(f"         (works once, in this machine's browser, within {SECONDS // 60} minutes)")
            console.print(
                "Try it   `minion demo` in another terminal audits the installed packages; the pages show it live"
            )
        else:
            console.print("Log in   with an API key, or with the link that `minion up` prints to a terminal")
        console.print("Everything is running. Stop it with Ctrl-C.")
        system.supervise()


def demo(as_json: bool = AS_JSON) -> None:
    """Run the demo: audit every Python distribution that is installed here."""
    from orchestrator.local.system import LocalSystem, Pool, running_system

    settings = get_settings()
    quiet = console.print if not as_json else _say_nothing
    places = running_system(settings)
    if places is not None:
        sys.exit(_demo(as_json, places))
    pools = [Pool("inspect", 2), Pool("classify", 2), Pool("report,default", 1)]
    with LocalSystem(settings, pools, flower=True, say=quiet):
        # The API and Flower stop with this command, so their addresses are not printed.
        code = _demo(as_json, {})
    quiet("Everything is stopped. `make up` (or `minion up`) keeps it running, with the API's pages and Flower.")
    sys.exit(code)


def _demo(as_json: bool, places: dict[str, str]) -> int:
    from orchestrator.demo.run import run

    settings = get_settings()
    with connect() as client:
        return run(
            client,
            console=console,
            data_dir=settings.data_dir,
            apply=lambda path: _say_nothing(store(str(path))) if as_json else tell(store(str(path))),
            places=places,
            as_json=as_json,
        )


def _say_nothing(*_: object) -> None:
    """Print nothing: with --json only the result is printed."""


def _celery(*arguments: str) -> None:
    """Run Celery's own command line in this process."""
    with without_collector():
        from celery.__main__ import main

        # Imported by name: the orchestrator must not import the workers. Celery would search the current folder first.
        import_module("workers.app")
    sys.argv = ["celery", "-A", "workers.app", *arguments]
    main()
