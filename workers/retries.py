"""Whether and when a task that failed runs again: its agent version's retry policy."""

from __future__ import annotations

from typing import Any

from minions.backoff import jittered
from shared.errors import MinionError
from shared.schemas import AgentConfig


def is_retried(error: MinionError, config: AgentConfig) -> bool:
    """Whether an error is one to try again after, attempts permitting.

    `retry_on` lists the codes that are; without it the error itself says. `no_retry_on` lists those that are not.
    """
    if error.code in config.no_retry_on:
        return False
    return error.retryable if config.retry_on is None else error.code in config.retry_on


def delay(error: MinionError, config: AgentConfig, attempts: int) -> float:
    """Seconds until the next attempt.

    Args:
        error: its `retry_after`, in seconds, comes before every curve.
        attempts: charged failures before this one.
    """
    asked = error.detail.get("retry_after")
    if asked is not None:
        return float(asked)
    factor = {"exponential": 2.0 ** min(attempts, 60), "linear": attempts + 1.0, "constant": 1.0}[config.retry_curve]
    longest = min(config.retry_backoff_max, config.retry_backoff * factor)
    return jittered(longest, config.retry_jitter)


def make_again(steps: list[dict[str, Any]], error: MinionError) -> list[dict[str, Any]]:
    """The steps with the one that failed open to be made again: the journal reads final failures back."""
    for index in range(len(steps) - 1, -1, -1):
        failure = steps[index].get("error")
        if failure and failure.get("type") == error.code:
            again = {**steps[index], "error": {**failure, "retryable": True}}
            return [*steps[:index], again, *steps[index + 1 :]]
    return steps
