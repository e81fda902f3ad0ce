"""The systems under test, one module each. What their workers run is in `benchmarks.apps`."""

from benchmarks.systems.celery import CeleryLate, CeleryPostgres, CeleryRedis
from benchmarks.systems.dbos import Dbos
from benchmarks.systems.dramatiq import Dramatiq
from benchmarks.systems.huey import Huey
from benchmarks.systems.minions import MinionsFunction, MinionsTool
from benchmarks.systems.pgqueuer import PgQueuer
from benchmarks.systems.procrastinate import Procrastinate
from benchmarks.systems.rq import Rq
from benchmarks.systems.system import System

SYSTEMS: tuple[type[System], ...] = (
    MinionsTool,
    MinionsFunction,
    CeleryRedis,
    CeleryLate,
    CeleryPostgres,
    Procrastinate,
    PgQueuer,
    Dbos,
    Dramatiq,
    Rq,
    Huey,
)
BASE = CeleryRedis.name

__all__ = ["BASE", "SYSTEMS", "System"]
