"""Liveness and readiness, for load balancers: no key, no details."""

from __future__ import annotations

from typing import Any, Literal

import redis
import structlog
from fastapi import APIRouter, Request, Response
from pydantic import BaseModel
from redis.backoff import NoBackoff
from redis.retry import Retry
from sqlalchemy import Engine
from sqlalchemy.exc import SQLAlchemyError

from orchestrator.api.parameters import Statements
from shared.database.connections import reason
from shared.database.schema import check_schema_is_current
from shared.errors import MinionError
from shared.settings import Settings

log = structlog.get_logger(__name__)

Verdict = Literal["ok", "unavailable", "outdated", "unknown"]

router = APIRouter(tags=["health"])


class Health(BaseModel):
    """The process answers."""

    status: Literal["ok"] = "ok"


class Readiness(BaseModel):
    """Availability of the services that the process needs. `outdated`: the schema is older than this release needs."""

    status: Literal["ready", "not_ready"]
    database: Verdict
    migrations: Verdict
    broker: Verdict


@router.get("/healthz")
async def healthz() -> Health:
    """Report that the process is alive."""
    return Health()


@router.get("/readyz", responses={503: {"model": Readiness, "description": "Not ready"}})
def readyz(request: Request, database: Statements, response: Response) -> Readiness:
    """Report whether the database and the broker answer and the schema is current."""
    reached, migrations = _check_database(database)
    broker = _check_broker(request.app.state.settings)
    ready = reached == migrations == broker == "ok"
    response.status_code = 200 if ready else 503
    return Readiness(status="ready" if ready else "not_ready", database=reached, migrations=migrations, broker=broker)


def _check_database(database: Engine) -> tuple[Verdict, Verdict]:
    try:
        with database.connect() as connection:
            check_schema_is_current(connection)
    except MinionError as error:
        log.warning("not_ready", what="schema", reason=error.message)
        return "ok", "outdated"
    except SQLAlchemyError as error:
        log.warning("not_ready", what="database", reason=reason(error))
        return "unavailable", "unknown"
    return "ok", "ok"


def _check_broker(settings: Settings) -> Verdict:
    retry: Any = Retry(NoBackoff(), 0)
    try:
        with redis.Redis.from_url(
            settings.require_redis_url(), socket_timeout=2.0, socket_connect_timeout=2.0, retry=retry
        ) as broker:
            broker.ping()
    except (redis.RedisError, OSError, MinionError) as error:
        log.warning("not_ready", what="broker", reason=str(error))
        return "unavailable"
    return "ok"
