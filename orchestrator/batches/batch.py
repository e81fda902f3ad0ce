"""A Message Batch as the API shows it, and the two ways in which a request about batches fails."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime


class Refused(Exception):
    """The API did not do what it was asked.

    Attributes:
        status: of HTTP; 0: it was not reached.
        reason: in the API's own words.
        retry_after: seconds that it asked to wait, if it did.
    """

    def __init__(self, message: str, status: int = 0, reason: str = "", retry_after: float | None = None) -> None:
        super().__init__(message)
        self.status = status
        self.reason = reason
        self.retry_after = retry_after


class Lost(Exception):
    """The answer was lost: the API may or may not have done what it was asked."""


@dataclass(frozen=True, slots=True)
class Batch:
    """A batch of this key, ours or not.

    Attributes:
        requests: their number.
        has_results: false if they have been archived.
    """

    id: str
    created_at: datetime
    ended_at: datetime | None
    requests: int
    has_results: bool
