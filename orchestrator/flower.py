"""Flower for Minions: behind its own password, read-only by default, with all queues.

It never shows the broker's password.
"""

from __future__ import annotations

import atexit
import hmac
import signal
import sys
from base64 import b64decode
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
from tornado.httputil import HTTPServerRequest
from tornado.web import RequestHandler

from minions import Client
from minions.errors import MinionsError
from shared.broker import SUBMIT_QUEUE, make_app
from shared.errors import NotConfigured, Unavailable
from shared.settings import SHORTEST_API_KEY, Settings

log = structlog.get_logger(__name__)

USER = "minions"
HEALTH = "/healthcheck"
"""The only page without a password; it says `OK`."""
MAX_TASKS = 20_000
API_SECONDS = 2.0
MASK = "**"


def serve(settings: Settings, *, address: str, port: int, allow_actions: bool) -> None:
    """Run Flower until SIGTERM or SIGINT. Its other options may also come from the environment, as `FLOWER_…`.

    Args:
        allow_actions: whether users of Flower may change what workers do.

    Raises:
        NotConfigured: there is no password, or no broker's address.
        Unavailable: the port is taken, or the address does not belong to this machine.
    """
    settings.require_redis_url()
    options.max_tasks = MAX_TASKS
    apply_env_options()
    # No variable opens it.
    options.basic_auth = _credentials(settings, options.basic_auth or [])
    options.read_only = not allow_actions
    options.address, options.port = address, port
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
            f"Flower cannot listen on {address} port {port}: {error.strerror}. Set --address and --port, or stop the "
            "process that uses the port."
        ) from None
    log.info("flower_listening", address=f"http://{address}:{port}", read_only=options.read_only)
    monitor.start()


def _credentials(settings: Settings, given: list[str]) -> list[str]:
    """Return the users and passwords: those of `FLOWER_BASIC_AUTH`, or else ours."""
    given = [each for each in given if each]
    for each in given:
        user, _, password = each.partition(":")
        if not user or len(password) < SHORTEST_API_KEY:
            raise NotConfigured(
                f"FLOWER_BASIC_AUTH must be USER:PASSWORD, with a password of at least {SHORTEST_API_KEY} characters. "
                "Or leave it out, and set MINION_FLOWER_PASSWORD."
            )
    return given or [f"{USER}:{settings.require_flower_password()}"]


def _exit(number: int, frame: object) -> None:
    sys.exit(0)


class Monitor(Flower):
    """Flower with our queues and without the broker's password."""

    def __init__(self, settings: Settings) -> None:
        super().__init__(capp=make_app(settings), options=options, **tornado_settings)
        self.minions = settings
        self.inspector = DiscreetInspector(self.io_loop, self.capp, options.inspect_timeout / 1000)
        self.capabilities: set[str] = set()
        self.prefix = f"/{options.url_prefix.strip('/')}" if options.url_prefix else ""
        handlers = [(f"{self.prefix}/broker", BrokerPage), (f"{self.prefix}/api/queues/length", QueueLengths)]
        self.add_handlers(".*", handlers)

    def get_handler_delegate(
        self, request: HTTPServerRequest, target_class: type[RequestHandler], *arguments: Any, **named: Any
    ) -> Any:
        """Refuse every request without the password, also for pages that Flower leaves open, such as `/metrics`."""
        if request.path == f"{self.prefix}{HEALTH}" or self._knows_password(request):
            return super().get_handler_delegate(request, target_class, *arguments, **named)
        return super().get_handler_delegate(request, NoPassword)

    def _knows_password(self, request: HTTPServerRequest) -> bool:
        scheme, _, encoded = request.headers.get("Authorization", "").partition(" ")
        try:
            shown = b64decode(encoded, validate=True)
        except ValueError:
            return False
        known = [hmac.compare_digest(each.encode(), shown) for each in options.basic_auth]
        return scheme.lower() == "basic" and any(known)

    async def look_up_capabilities(self) -> None:
        """Ask the API for all capabilities. While it is unavailable, the previous answer is kept."""
        self.capabilities = await self.io_loop.run_in_executor(None, self._capabilities)

    def _capabilities(self) -> set[str]:
        try:
            url, key = self.minions.require_api_url(), self.minions.require_api_key()
            with Client(url, key, timeout=API_SECONDS, retries=0) as client:
                return {entry["name"] for entry in client.capabilities()}
        except MinionsError as error:
            log.warning("capabilities_unknown", reason=error.message)
            return self.capabilities


class NoPassword(RequestHandler):
    """The answer to a request without the password."""

    def prepare(self) -> None:
        """Refuse it."""
        self.set_status(401)
        self.set_header("WWW-Authenticate", 'Basic realm="flower"')
        self.finish("Access denied")

    def check_xsrf_cookie(self) -> None:
        """Refuse it with 401 rather than 403."""


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
