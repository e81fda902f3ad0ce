"""The orchestrator's process: starts the loops and the API, and stops them gracefully."""

from __future__ import annotations

import gc
import socket
from types import FrameType

import structlog
import uvicorn
from fastapi import FastAPI

from orchestrator.alerts.notifier import Notifier
from orchestrator.alerts.watch import AlertWatch
from orchestrator.api.app import create_app, release
from orchestrator.api.server import listen, server_config
from orchestrator.batches.batcher import Batcher
from orchestrator.bulk.runner import BulkRunner
from orchestrator.dispatcher import Dispatcher
from orchestrator.ingress import Ingress
from orchestrator.loops.loop import Loop
from orchestrator.maintenance.budget_keeper import BudgetKeeper
from orchestrator.maintenance.cache_keeper import CacheKeeper
from orchestrator.maintenance.canary_keeper import CanaryKeeper
from orchestrator.maintenance.clock import Clock
from orchestrator.maintenance.evaluator import Evaluator
from orchestrator.maintenance.expirer import Expirer
from orchestrator.maintenance.healer import Healer
from orchestrator.maintenance.lost_workers import LostWorkers
from orchestrator.maintenance.remote_poller import RemotePoller
from orchestrator.maintenance.republisher import Republisher
from orchestrator.maintenance.resumer import Resumer
from orchestrator.maintenance.sealer import Sealer
from orchestrator.maintenance.standing_budget_keeper import StandingBudgetKeeper
from orchestrator.maintenance.threat_watch import ThreatWatch
from orchestrator.maintenance.waker import Waker
from orchestrator.mcp import site as mcp_site
from orchestrator.monitors import Monitors
from orchestrator.observe.statistician import Statistician
from orchestrator.pages import site
from orchestrator.retention.pruner import Pruner
from orchestrator.schedules.scheduler import Scheduler
from orchestrator.tracing.tracer import Tracer
from orchestrator.webhooks.deliverer import Webhooks
from shared.broker import make_app
from shared.database.connections import get_engine
from shared.database.schema import wait_for_database
from shared.notifications import wait_for_broker
from shared.settings import Settings

log = structlog.get_logger(__name__)


def serve(settings: Settings) -> None:
    """Run the orchestrator until SIGTERM or SIGINT.

    Raises:
        Unavailable: the database or the broker is unavailable at startup, or the API's port is taken.
        NotConfigured: a setting is missing, or the schema is older than this release.
    """
    # A wrong setting is reported at once, not after a wait.
    settings.require_redis_url()
    settings.require_server_api_key()
    wait_for_database(settings)
    wait_for_broker(settings)
    listener = listen(settings)
    loops = make_loops(settings)
    for loop in loops:
        loop.start()
    try:
        _serve_api(settings, listener)
    finally:
        log.info("stopping")
        # All loops are asked to stop before waiting for one, so that their last rounds run in parallel.
        for loop in loops:
            loop.stopping.set()
        for loop in loops:
            loop.stop()


def make_loops(settings: Settings) -> list[Loop]:
    """Create the orchestrator's loops without starting them."""
    engine, app = get_engine(), make_app(settings)
    monitors = Monitors(app)
    return [
        Dispatcher(settings, engine, app),
        Waker(engine),
        Clock(settings, engine),
        Scheduler(settings, engine),
        BulkRunner(settings, engine),
        LostWorkers(settings, engine, monitors),
        Republisher(settings, engine, app),
        Expirer(settings, engine, monitors),
        BudgetKeeper(settings, engine, monitors),
        StandingBudgetKeeper(settings, engine),
        Batcher(settings, engine),
        RemotePoller(settings, engine),
        Resumer(settings, engine),
        Healer(settings, engine),
        Ingress(settings, engine),
        Pruner(settings, engine),
        CacheKeeper(settings, engine),
        Sealer(settings, engine),
        ThreatWatch(engine),
        Statistician(settings, engine),
        CanaryKeeper(settings, engine),
        Evaluator(settings, engine),
        *([Tracer(settings, engine)] if settings.traces_endpoint() else []),
        Webhooks(settings, engine),
        AlertWatch(settings, engine),
        Notifier(settings, engine),
        # The last one, because it also sends the events of loops that are stopping.
        monitors,
    ]


def _serve_api(settings: Settings, listener: socket.socket) -> None:
    app = create_app(settings)
    mcp_site.add_to(app)
    site.add_to(app)
    server = _Server(server_config(app, settings), app)
    # The garbage collector then visits what large requests create, not the program itself again and again.
    gc.freeze()
    server.run(sockets=[listener])


class _Server(uvicorn.Server):
    """Uvicorn with three changes: it reports its address once a signal stops it gracefully, waiting requests end when
    it is asked to stop, and the signal is not raised again afterwards, because the loops still have to be stopped.
    """

    def __init__(self, config: uvicorn.Config, app: FastAPI) -> None:
        super().__init__(config)
        self._app = app

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        """Accept requests, and report the address."""
        await super().startup(sockets)
        for each in sockets or ():
            log.info("api_listening", address=f"http://{self._app.state.settings.api_host}:{each.getsockname()[1]}")

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        """Handle SIGTERM or SIGINT."""
        release(self._app)
        super().handle_exit(sig, frame)
        self._captured_signals.clear()
