"""The sealer: gives the rows of the audit log their places in the chain, seconds after they were written."""

from __future__ import annotations

import structlog
from sqlalchemy import Engine

from orchestrator.loops.loop import Loop
from shared.audit import chain
from shared.audit.signing import Signer
from shared.settings import Settings

log = structlog.get_logger(__name__)

PAUSE_SECONDS = 2.0


class Sealer(Loop):
    """Chains new rows. Every orchestrator may run it: one at a time has the lock."""

    name = "sealer"

    def __init__(self, settings: Settings, engine: Engine) -> None:
        super().__init__()
        self.engine = engine
        self.signer = Signer.find(settings)
        if self.signer is None:
            log.warning(
                "audit_log_is_not_signed",
                todo="set MINION_SECRET_KEY (`minion secrets key` makes one): without it, a changed audit log looks "
                "like a true one",
            )

    def run_once(self) -> float:
        """Chain one batch, and log the head: it proves later that the end of the chain was not cut off."""
        if self.signer is None:
            return PAUSE_SECONDS
        with self.engine.begin() as connection:
            head = chain.seal(connection, self.signer)
        if head is None:
            return PAUSE_SECONDS
        log.info("audit_head", head=str(head))
        return 0.0
