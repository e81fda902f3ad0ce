"""Flower for Minions: read-only by default, knows all queues, and never shows the broker's password."""

from __future__ import annotations

import atexit
import signal
import sys
from typing import Any
from urllib.parse import parse_qs, unquote, urlsplit

import structlog
from flower.api.tasks import GetQueueLengths
from flower.app import Flower
from flower.command import apply_env_options, extract_settings, setup_logging
from flower.inspector import Inspector
from flower.options import options
from flower.urls import settings as tornado_settings
from flower.views.broker import BrokerView

from minions import Client
from minions.errors import MinionsError
from shared.broker import SUBMIT_QUEUE, make_app
from shared.errors import Unavailable
from shared.settings import Settings

log = structlog.get_logger(__name__)

MAX_TASKS = 20_000
API_SECONDS = 2.0
MASK = "**"


def serve(settings: Settings, *, address: str, port: int, allow_actions: bool) -> None:
    """Run Flower until SIGTERM or SIGINT. Its options may also come from the environment, as `FLOWER_…`.

    Args:
        allow_actions: whether users of Flower may change what workers do.

    Raises:
        Unavailable: the port is taken, or the address does not belong to this machine.
    """
    options.read_only = True
    options.max_tasks = MAX_TASKS
    options.basic_auth = [f"minions:{settings.require_server_api_key()}"]
    apply_env_options()
    options.address, options.port = address, port
    if allow_actions:
        options.read_only = False
    extract_settings()
    setup_logging()
    monitor = Monitor(settings)
    atexit.register(monitor.stop)
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, _exit)
    try:
        monitor.start_http_server()
    except OSError as error:
        raise Unavailable(
            f"Flower cannot listen on {address} port {port}: {error.strerror}. Choose others with --address and "
            "--port, or stop the process that uses the port."
        ) from None
    log.info("flower_listening", address=f"http://{address}:{port}", read_only=options.read_only)
    monitor.start()


def _exit(number: int, frame: object) -> None:
    sys.exit(0)


class Monitor(Flower):
    """Flower with our queues and without the broker's password."""

    def __init__(self, settings: Settings) -> None:
        super().__init__(capp=make_app(settings), options=options, **tornado_settings)
        self.minions = settings
        self.inspector = DiscreetInspector(self.io_loop, self.capp, options.inspect_timeout / 1000)
        self.capabilities: set[str] = set()
        prefix = f"/{options.url_prefix.strip('/')}" if options.url_prefix else ""
        self.add_handlers(".*", [(f"{prefix}/broker", BrokerPage), (f"{prefix}/api/queues/length", QueueLengths)])

    async def look_up_capabilities(self) -> None:
        """Ask the API for all capabilities. While it is unavailable, the previous answer is kept."""
        self.capabilities = await self.io_loop.run_in_executor(None, self._capabilities)

    def _capabilities(self) -> set[str]:
        url, key = self.minions.require_api_url(), self.minions.require_api_key()
        try:
            with Client(url, key, timeout=API_SECONDS, retries=0) as client:
                return {entry["name"] for entry in client.capabilities()}
        except MinionsError as error:
            log.warning("capabilities_unknown", reason=error.message)
            return self.capabilities


class AllQueues:
    """Handler that shows all queues, with or without workers. (Flower knows only those of workers it has inspected.)"""

    application: Monitor

    async def prepare(self) -> None:
        """Refuse unauthorized requests before any lookup."""
        refusal = super().prepare()  # type: ignore[misc]
        if refusal is not None:
            await refusal
        if self.current_user:  # type: ignore[attr-defined]
            await self.application.look_up_capabilities()

    def get_active_queue_names(self) -> list[str]:
        """Return the queues of workers and of all capabilities, and the one for submissions."""
        workers = self.application.workers.values()
        served = {queue["name"] for worker in workers for queue in worker.get("active_queues", [])}
        return sorted(served | self.application.capabilities | {SUBMIT_QUEUE})


class BrokerPage(AllQueues, BrokerView):
    """The broker page."""


class QueueLengths(AllQueues, GetQueueLengths):
    """The same as JSON."""


class DiscreetInspector(Inspector):
    """Inspector that removes the broker's password from workers' self-descriptions: a socket URL may contain it."""

    def _on_update(self, workername: str, method: str, response: Any) -> None:
        super()._on_update(workername, method, mask(response, secrets_in(self.capp.conf.broker_url)))


def secrets_in(url: str) -> list[str]:
    """Return the passwords in a URL, both as written and decoded."""
    parts = urlsplit(url)
    written = [parts.password or "", *parse_qs(parts.query).get("password", [])]
    return sorted({form for secret in written for form in (secret, unquote(secret)) if form}, key=len, reverse=True)


def mask(value: Any, secrets: list[str]) -> Any:
    """Return JSON without these secrets."""
    match value:
        case str():
            for secret in secrets:
                value = value.replace(secret, MASK)
        case list():
            return [mask(item, secrets) for item in value]
        case dict():
            return {name: mask(item, secrets) for name, item in value.items()}
    return value
