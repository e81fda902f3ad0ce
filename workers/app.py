"""The Celery application of the minions, with its tasks.

Start one with `minion worker CAPABILITY -c N`, or as plain Celery: `celery -A workers.app worker -Q CAPABILITY -c N`.
"""

from __future__ import annotations

import atexit
import sys
from typing import Any

import structlog
from celery import Celery, signals

from shared.broker import RUN_PACK, RUN_TASK, make_app
from shared.database.connections import close_engine, forget_engine
from shared.database.schema import wait_for_database
from shared.errors import MinionError
from shared.notifications import forget_publisher, wait_for_broker
from shared.settings import get_settings
from shared.telemetry import configure
from workers import minion, monitoring, pack_request
from workers.claiming import forget_limiter
from workers.execution import execute
from workers.heartbeat import WORKER_ID, Heartbeat
from workers.lane.bootstep import LaneStep
from workers.shared_memory import share_memory

log = structlog.get_logger(__name__)


def _make_app() -> Celery:
    """Celery's application. A wrong setting ends the process: Celery's command line would show a traceback."""
    try:
        return make_app(get_settings())
    except MinionError as error:
        print(f"Error: {error.message}", file=sys.stderr)
        raise SystemExit(error.exit_code) from None


app: Celery = _make_app()
app.steps["worker"].add(LaneStep)
_heartbeats: list[Heartbeat] = []


@app.task(name=RUN_TASK, Request="workers.request:Request", resultrepr_maxsize=monitoring.LONGEST_REPORT)
def run(v: int, task_id: str, claim: int) -> str:
    """Handle a message of the orchestrator: `{v, task_id, claim}`. Return the report for Celery's monitors."""
    return execute(v, task_id, claim, WORKER_ID, run.request.timelimit)


@app.task(name=RUN_PACK, Strategy="workers.pack_request:strategy")
def pack_message(v: int, task_id: str, claim: int) -> None:
    """Register the task of a pack's message. It is never called: `workers.pack_request` handles the message."""


@signals.worker_shutting_down.connect
def _stop_packs(**_: Any) -> None:
    pack_request.stop_all()


@signals.setup_logging.connect
def _set_up_logging(**_: Any) -> None:
    configure(get_settings(), component="worker")


@signals.worker_init.connect
def _check_servers(**_: Any) -> None:
    """End the worker at startup, with a clear message, if the database or the broker is unavailable."""
    settings = get_settings()
    try:
        wait_for_database(settings)
        wait_for_broker(settings)
    except MinionError as error:
        # Not an exception: Celery logs exceptions of signal handlers and continues.
        log.critical("cannot_start", reason=error.message)
        raise SystemExit(error.exit_code) from None
    finally:
        close_engine()


@signals.worker_before_create_process.connect
def _before_fork(**_: Any) -> None:
    share_memory()


@signals.worker_process_init.connect
def _after_fork(**_: Any) -> None:
    forget_engine()
    forget_publisher()
    forget_limiter()
    minion.warm_up()


@signals.worker_ready.connect
def _begin_to_beat(sender: Any, **_: Any) -> None:
    worker = sender.controller
    if "prefork" not in str(worker.pool_cls):
        log.warning(
            "time_limits_not_enforced",
            pool=str(worker.pool_cls),
            why="Celery's soft and hard limits hold on the prefork pool only; here the limits of model calls and of "
            "the sandbox must do",
        )
    heartbeat = Heartbeat(get_settings(), worker)
    _heartbeats.append(heartbeat)
    heartbeat.start()


@signals.worker_shutdown.connect
def _hand_back(**_: Any) -> None:
    pack_request.give_back_all()
    while _heartbeats:
        _heartbeats.pop().stop()


# A cold shutdown sends no such signal. (Children of the pool end without their exit handlers.)
atexit.register(_hand_back)
