"""The keeper of canaries: one that fails more, costs more or scores less than its band allows is rolled back.

A decision, the end of the canary and the row of the audit log are one transaction, which holds the agent. Any number of
orchestrators may do this: each canary is rolled back once.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any
from uuid import UUID

import structlog
from sqlalchemy import Connection, Engine, RowMapping, text

from orchestrator.loops.loop import Loop, seconds_within_lease
from orchestrator.observe.bands import (
    IsWorse,
    Sample,
    alpha_of,
    costs_more,
    fails_more,
    look,
    scores_less,
)
from orchestrator.observe.canaries import COST, FAILURES, SCORE, described, figures_of
from shared.access.actors import orchestrator
from shared.database.connections import autocommit
from shared.definitions import canaries
from shared.settings import Settings

log = structlog.get_logger(__name__)

CANARIES = text("SELECT id, agent_id FROM canaries WHERE ended_at IS NULL ORDER BY id")
# A disabled agent gets no tasks: its canary is compared once it accepts tasks again.
TAKE = text("SELECT 1 FROM agents WHERE id = :agent AND status <> 'disabled' FOR NO KEY UPDATE SKIP LOCKED")
# An orchestrator of release 0.2 may have activated another version.
OPEN = text(
    """
    SELECT c.*, a.name, a.namespace, a.active_version_id, v.number AS version, b.number AS baseline
        FROM canaries c JOIN agents a ON a.id = c.agent_id
        JOIN agent_versions v ON v.id = c.version_id JOIN agent_versions b ON b.id = c.baseline_id
        WHERE c.id = :canary AND c.ended_at IS NULL
    """
)
LOOKED = text(
    "UPDATE canaries SET looks = looks || jsonb_build_object(CAST(:measure AS text), CAST(:number AS integer)) "
    "WHERE id = :canary"
)
# The agent keeps its version until another text of it is applied: see `DefinitionStore`.
HOLD = text(
    """
    UPDATE agents SET status = 'rolled_back', status_reason = :reason
        WHERE id = :agent
    """
)


@dataclass(frozen=True, slots=True)
class Measure:
    """A measure that a canary is compared by.

    Attributes:
        band: the field of the canary with its band.
    """

    is_worse: IsWorse
    band: str


MEASURES = {
    FAILURES: Measure(fails_more, "max_failures"),
    COST: Measure(costs_more, "max_cost"),
    SCORE: Measure(scores_less, "max_score_drop"),
}


class CanaryKeeper(Loop):
    """Compares canaries with the versions beside them."""

    name = "canary_keeper"

    def __init__(self, settings: Settings, engine: Engine) -> None:
        super().__init__()
        self.settings = settings
        self.engine = engine

    def run_once(self) -> float:
        """Look at every open canary."""
        with autocommit(self.engine).connect() as connection:
            found = connection.execute(CANARIES).all()
        for canary, agent in found:
            with self.engine.begin() as connection:
                keep(connection, canary, agent)
        return seconds_within_lease(self.settings)


def keep(connection: Connection, canary: UUID, agent: UUID) -> None:
    """End a canary that is out of its bands, or whose baseline is no longer the active version."""
    if connection.execute(TAKE, {"agent": agent}).first() is None:
        return
    row = connection.execute(OPEN, {"canary": canary}).mappings().one_or_none()
    if row is None:
        return
    if row["active_version_id"] != row["baseline_id"]:
        completed = row["active_version_id"] == row["version_id"]
        _end(connection, row, "completed" if completed else "ended", "Another version was activated.")
        return
    figures = figures_of(connection, canary)
    for measure, sides in figures.items():
        number = look(min(sample.count for sample in sides.values()), row["min_tasks"])
        if number > row["looks"].get(measure, 0):
            connection.execute(LOOKED, {"canary": canary, "measure": measure, "number": number})
            if why := compare(row, measure, sides[True], sides[False], alpha_of(number)):
                _end(connection, row, "rolled_back", why, described(figures))
                # All who read the agent see this, so it has no figures.
                held = f"The canary, version {row['version']}, was rolled back."
                if row["version"] > row["baseline"]:
                    connection.execute(HOLD, {"agent": agent, "reason": held})
                return


def compare(row: RowMapping, measure: str, canary: Sample, baseline: Sample, alpha: float) -> str | None:
    """Return in a sentence how a canary is out of a band; None if it is not."""
    kind = SCORE if measure.startswith(SCORE) else measure
    judge = MEASURES[kind]
    if not judge.is_worse(canary, baseline, row[judge.band], alpha):
        return None
    return " ".join(_sentence(row, measure, canary, baseline))


def _sentence(row: RowMapping, measure: str, canary: Sample, baseline: Sample) -> Iterator[str]:
    new, old = f"version {row['version']}", f"version {row['baseline']}"
    match measure:
        case "failures":
            yield f"Tasks of {new} fail {canary.mean:.1%} of the time, those of {old} {baseline.mean:.1%};"
            yield f"at most {row['max_failures']:.3g} more was allowed."
        case "cost":
            yield f"A task of {new} costs {canary.mean:.6f} dollars on average, one of {old} {baseline.mean:.6f};"
            yield f"at most {row['max_cost']:.0%} more was allowed."
        case _:
            yield f"{measure.removeprefix(SCORE)} scores tasks of {new} {canary.mean:.3f} on average, those of {old}"
            yield f"{baseline.mean:.3f}; at most {row['max_score_drop']:.3g} less was allowed."
    yield f"Compared: {canary.count} and {baseline.count} tasks."


def _end(
    connection: Connection, row: RowMapping, outcome: str, reason: str, figures: dict[str, Any] | None = None
) -> None:
    about = {"namespace": row["namespace"], "outcome": outcome, "reason": reason, "figures": figures}
    canaries.end(connection, orchestrator(), row["agent_id"], row["name"], **about)
    tell = log.warning if outcome == "rolled_back" else log.info
    tell("canary_ended", agent=row["name"], version=row["version"], outcome=outcome, reason=reason)
