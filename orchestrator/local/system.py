"""The whole system on one machine, on the same real servers as in production.

Everything is stored in the installation's data folder: the servers' files, logs, reports, the API key, and `run.json`,
which holds the addresses for the other commands while it runs.
"""

from __future__ import annotations

import json
import os
import re
import secrets
import signal
import socket
import sys
import threading
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from types import TracebackType
from typing import Any, ClassVar, Self

import structlog

from minions import Client
from minions.errors import MinionsError
from orchestrator.capabilities import parse_capabilities
from orchestrator.local.child import Child
from orchestrator.local.embedded import EmbeddedServers
from shared.access.login_links import new_code
from shared.database.connections import close_engine, get_engine
from shared.database.schema import migrate
from shared.definitions.defaults import init
from shared.errors import InvalidInput, Unavailable
from shared.secret_store import new_key
from shared.settings import RUN_FILE, Settings, get_settings, read_secret_files

log = structlog.get_logger(__name__)

START_SECONDS = 90.0
STOP_SECONDS = 12.0
LOOK_SECONDS = 1.0
READY_POLL_SECONDS = 0.5
DEFAULT_CONCURRENCY = 2
FLOWER_PORT = 5555
OF_MODELS = ("ANTHROPIC_", "OPENAI_", "AWS_", "GOOGLE_", "MINION_PROVIDER_KEYS")
"""Prefixes of the variables of models' providers, which minions need. The orchestrator needs the first, for batches."""
OF_MINIONS = OF_MODELS[1:]
OF_API = (
    "MINION_OIDC_", "MINION_METRICS_TOKEN", "MINION_ALERT_URLS",
    "OTEL_EXPORTER_OTLP_HEADERS", "OTEL_EXPORTER_OTLP_TRACES_HEADERS",
)  # fmt: skip
"""Prefixes of the variables that only the orchestrator needs."""
OF_FLOWER = ("MINION_FLOWER_PASSWORD",)
"""Prefixes of the variables that only Flower needs."""


@dataclass(frozen=True)
class Pool:
    """A worker pool: capabilities separated by commas, and the number of concurrent tasks."""

    PREFIX: ClassVar[str] = "worker-"

    capabilities: str
    concurrency: int = DEFAULT_CONCURRENCY

    @property
    def name(self) -> str:
        return self.PREFIX + self.capabilities.replace(",", "+")


def parse_pool(text: str) -> Pool:
    """Parse a pool such as `inspect,classify=4`.

    Raises:
        InvalidInput: the text does not have that form.
    """
    capabilities, _, number = text.partition("=")
    if number and not re.fullmatch("0*[1-9][0-9]{0,4}", number):
        raise InvalidInput(f"The pool {text!r} is not valid: it must be CAPABILITIES=N, such as inspect,classify=4.")
    try:
        return Pool(parse_capabilities(capabilities), int(number) if number else DEFAULT_CONCURRENCY)
    except ValueError as error:
        raise InvalidInput(f"The pool {text!r} is not valid: {error}") from None


def running_system(settings: Settings, patience: float = START_SECONDS) -> dict[str, str] | None:
    """Return the places of the system that MINION_API_URL names, which may still be starting, or of this installation's
    `minion up`, if it answers.

    Args:
        patience: seconds in which the system that MINION_API_URL names must become ready.

    Raises:
        NotConfigured: there may be one, and this process has no API key for it.
        Unavailable: MINION_API_URL is set, and the system is not ready in time.
    """
    if settings.api_url:
        _wait_for(settings.api_url, settings.require_api_key(), patience)
        return {"API": f"{settings.api_url}/docs"}
    try:
        facts: dict[str, Any] = json.loads((settings.data_dir / RUN_FILE).read_text())
    except (OSError, ValueError):
        return None
    key = settings.require_api_key()
    try:
        with Client(facts["api_url"], key, timeout=5.0, retries=0) as client:
            return dict(facts["places"]) if client.ready() else None
    except (OSError, ValueError, KeyError, MinionsError):
        return None


def _wait_for(url: str, key: str, seconds: float) -> None:
    deadline = time.monotonic() + seconds
    with Client(url, key, timeout=5.0, retries=0) as client:
        while not client.ready():
            if time.monotonic() > deadline:
                raise Unavailable(
                    f"MINION_API_URL is {url}, and no system was ready there within {seconds:g} s: start its "
                    "orchestrator and look at its /readyz, or unset MINION_API_URL to start a separate system."
                )
            time.sleep(READY_POLL_SECONDS)


class LocalSystem:
    """Starts everything, keeps it running, stops everything."""

    def __init__(
        self,
        settings: Settings,
        pools: list[Pool],
        *,
        flower: bool,
        say: Callable[[str], object],
        of_workers: Mapping[str, str] | None = None,
    ) -> None:
        """Start nothing before the `with` block.

        Args:
            pools: worker pools; if empty, one for each capability that an agent offers, including agents stored later.
            say: reports progress to the terminal.
            of_workers: further environment variables of the workers.
        """
        self.settings = settings
        self.pools = pools
        self.automatic = not pools
        self.flower = flower
        self.say = say
        self.of_workers = dict(of_workers or {})
        self.logs = settings.data_dir / "logs"
        self.servers: EmbeddedServers | None = None
        self.children: list[Child] = []
        self.facts: dict[str, Any] = {}
        self._claims: list[socket.socket] = []
        self._stopping = threading.Event()
        self._handlers: dict[signal.Signals, Any] = {}

    def __enter__(self) -> Self:
        try:
            self._start()
        except BaseException:
            self.stop()
            raise
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.stop()

    def places(self) -> dict[str, str]:
        """Addresses, by name."""
        return dict(self.facts["places"])

    def login_link(self) -> str:
        """Return an address that logs a browser of this machine in, once: a secret for the terminal only."""
        return f"{self.facts['api_url']}/login/link?code={new_code(os.environ['MINION_API_KEY'].encode())}"

    def supervise(self, look: Callable[[], object] | None = None, *, seconds: float = LOOK_SECONDS) -> None:
        """Keep everything running until SIGTERM or SIGINT. Call `look`, if given, each time: every `seconds`."""
        while not self._stopping.wait(seconds):
            self._keep_servers()
            for child in self.children:
                child.revive()
            if self.automatic:
                self._add_pools()
            if look is not None:
                look()

    def restart_pools(self) -> None:
        """Restart all workers, so that they load the code of builtin tools again. They hand back running tasks."""
        workers = [child for child in self.children if child.name.startswith(Pool.PREFIX)]
        for child in workers:
            child.signal(signal.SIGQUIT)
        for child in workers:
            if not child.wait(STOP_SECONDS):
                child.signal(signal.SIGKILL)
                child.wait(STOP_SECONDS)
            child.start()

    def stop(self) -> None:
        """Stop the children in order, then the servers; idempotent."""
        if self.facts.get("started"):  # otherwise the file belongs to a system that is already running in this folder
            (self.settings.data_dir / RUN_FILE).unlink(missing_ok=True)
        self._stop_children()
        close_engine()
        if self.servers is not None:
            self.servers.stop()
        while self._claims:
            self._claims.pop().close()
        for number, handler in self._handlers.items():
            signal.signal(number, handler)
        self._handlers = {}

    def _start(self) -> None:
        began = time.monotonic()
        self._catch_signals()
        self._start_servers()
        self._choose_places()
        self._prepare_database()
        self._start_child("orchestrator", ["orchestrator"], signal.SIGTERM, withheld=(*OF_FLOWER, *OF_MINIONS))
        self._wait_for_api()
        self._write_facts()
        for pool in self.pools:
            self._start_pool(pool)
        if self.automatic:
            self._add_pools()
        if self.flower:
            port = str(self.facts["flower_port"])
            withheld = (*OF_MODELS, *OF_API, "DATABASE_URL", "MINION_SECRET_KEY")
            self._start_child("flower", ["flower", "--port", port], signal.SIGTERM, withheld=withheld)
        self._wait_for_workers()
        self.say(f"Started in {time.monotonic() - began:.1f} s; logs in {self.logs}")

    def _catch_signals(self) -> None:
        for number in (signal.SIGTERM, signal.SIGINT):
            self._handlers[number] = signal.signal(number, self._on_signal)

    def _on_signal(self, number: int, frame: object) -> None:
        if self._stopping.is_set() or not self.facts.get("started"):
            raise KeyboardInterrupt
        self._stopping.set()

    def _start_servers(self) -> None:
        """Start the private servers that the environment does not replace."""
        read_secret_files()
        environment: dict[str, str] = {}
        if self.settings.database_url is None or self.settings.redis_url is None:
            self.servers = EmbeddedServers(self.settings.data_dir)
            addresses = self.servers.start()
            environment = {"DATABASE_URL": addresses.database_url, "REDIS_URL": addresses.redis_url}
        for name, value in environment.items():
            _set_default(name, value)
        self.settings.data_dir.mkdir(parents=True, exist_ok=True)
        self.logs.mkdir(exist_ok=True)
        os.environ["MINION_DATA_DIR"] = str(self.settings.data_dir)
        _set_default("MINION_API_KEY", self._key("api_key", secrets.token_urlsafe(32)))
        _set_default("MINION_SECRET_KEY", self._key("secret_key", new_key()))
        # Flower reads it from the file; no other process needs it.
        self._key("flower_password", secrets.token_urlsafe(32))
        get_settings.cache_clear()

    def _key(self, name: str, made: str) -> str:
        """Return a key in the data folder, created at the first start; only its owner may read it."""
        file = self.settings.data_dir / name
        try:
            with os.fdopen(os.open(file, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "w") as new:
                new.write(made + "\n")
        except FileExistsError:
            pass
        return file.read_text().strip()

    def _prepare_database(self) -> None:
        migrate(get_engine())
        init(get_engine())

    def _choose_places(self) -> None:
        api = self._take_port("The API", self.settings.api_port)
        url = f"http://127.0.0.1:{api}"
        self.facts = {"api_url": url, "api_port": api, "places": {"Pages": url, "API": f"{url}/docs"}}
        if self.flower:
            self.facts["flower_port"] = self._take_port("Flower", FLOWER_PORT)
            self.facts["places"]["Flower"] = f"http://127.0.0.1:{self.facts['flower_port']}"
            _set_default("MINION_FLOWER_URL", self.facts["places"]["Flower"])

    def _take_port(self, who: str, preferred: int) -> int:
        """Return the preferred port if it is free, else any free one, and report it. No other `minion up` takes it."""
        for wanted in (preferred, 0):
            port = _free_port(wanted)
            claim = _reserve_port(port) if port else None
            if port and claim:
                self._claims.append(claim)
                if preferred not in (0, port):
                    self.say(f"Port {preferred} is in use. {who} listens on http://127.0.0.1:{port} instead.")
                return port
        raise Unavailable("There is no free port on 127.0.0.1.")

    def _write_facts(self) -> None:
        """Write `run.json`. It holds the servers' passwords, so only its owner may read it."""
        facts = {
            **self.facts,
            "pid": os.getpid(),
            "database_url": os.environ["DATABASE_URL"],
            "redis_url": os.environ["REDIS_URL"],
        }
        target = self.settings.data_dir / RUN_FILE
        fresh = target.with_suffix(".new")
        fresh.unlink(missing_ok=True)
        with os.fdopen(os.open(fresh, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "w") as file:
            json.dump(facts, file)
        fresh.replace(target)
        os.environ["MINION_API_URL"] = self.facts["api_url"]
        get_settings.cache_clear()
        self.facts["started"] = True

    def _start_child(
        self,
        name: str,
        arguments: list[str],
        orphaned: signal.Signals,
        *,
        withheld: tuple[str, ...] = (),
        environment: Mapping[str, str] | None = None,
    ) -> Child:
        environment = {
            "MINION_API_PORT": str(self.facts["api_port"]),
            "MINION_API_HOST": "127.0.0.1",
            **(environment or {}),
        }
        child = Child(name, arguments, environment, self.logs, orphaned=orphaned, withheld=withheld)
        child.start()
        self.children.append(child)
        return child

    def _start_pool(self, pool: Pool) -> None:
        # An orphaned worker shuts down within its soft time: SIGTERM would wait for its tasks.
        arguments = ["worker", pool.capabilities, "-c", str(pool.concurrency)]
        self._start_child(
            pool.name, arguments, signal.SIGQUIT, withheld=OF_API + OF_FLOWER, environment=self.of_workers
        )

    def _add_pools(self) -> None:
        """Add a pool for each capability that an agent offers and no pool serves."""
        served = {name for pool in self.pools for name in pool.capabilities.split(",")}
        for name in sorted(self._offered() - served):
            pool = Pool(name)
            self.pools.append(pool)
            self._start_pool(pool)
            log.info("pool_started", capability=name)

    def _offered(self) -> set[str]:
        try:
            with self._client() as client:
                return {entry["name"] for entry in client.capabilities() if entry["agents"]}
        except MinionsError:
            return set()

    def _client(self) -> Client:
        return Client(self.facts["api_url"], os.environ["MINION_API_KEY"], timeout=5.0, retries=1)

    def _wait_for_api(self) -> None:
        with self._client() as client:
            self._wait("the orchestrator", client.ready)

    def _wait_for_workers(self) -> None:
        wanted = {name for pool in self.pools for name in pool.capabilities.split(",")}

        def served() -> bool:
            with self._client() as client:
                return wanted <= {entry["name"] for entry in client.capabilities() if entry["served"]}

        self._wait("the workers", served)

    def _wait(self, what: str, ready: Callable[[], bool]) -> None:
        deadline = time.monotonic() + START_SECONDS
        while True:
            for child in self.children:
                if not child.running:
                    raise Unavailable(f"{child.name} did not start. The end of {child.log_file}:\n{child.last_words()}")
            try:
                if ready():
                    return
            except MinionsError as error:
                log.debug("not_ready", what=what, reason=error.message)
            if time.monotonic() > deadline:
                raise Unavailable(f"{what} did not become ready within {START_SECONDS:.0f} s; see {self.logs}.")
            time.sleep(0.05)

    def _keep_servers(self) -> None:
        if self.servers is not None:
            self.servers.start()

    def _stop_children(self) -> None:
        """Stop children gracefully, then forcibly: SIGTERM, for workers SIGQUIT, finally SIGKILL."""
        for number, seconds in ((signal.SIGTERM, STOP_SECONDS), (signal.SIGQUIT, STOP_SECONDS), (signal.SIGKILL, 5.0)):
            for child in self.children:
                child.signal(number)
            deadline = time.monotonic() + seconds
            ended = [child.wait(deadline - time.monotonic()) for child in self.children]
            if all(ended):
                break
        self.children = []


def _set_default(name: str, value: str) -> None:
    """Set an environment variable that is not set or empty."""
    os.environ[name] = os.environ.get(name) or value


def _free_port(wanted: int) -> int | None:
    """Return the wanted port (0: any) if it is free on the loopback interface."""
    with socket.socket() as probe:
        # Like the servers: connections of a system that has just stopped do not block the port.
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind(("127.0.0.1", wanted))
        except OSError:
            return None
        return int(probe.getsockname()[1])


def _reserve_port(port: int) -> socket.socket | None:
    """Claim a port that its user binds only later, through a name that the kernel gives to one process at a time
    (Linux). Return None if another system that is starting now has it.
    """
    claim = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
    try:
        if sys.platform == "linux":
            claim.bind(f"\0minions-port-{port}")
    except OSError:
        claim.close()
        return None
    return claim
