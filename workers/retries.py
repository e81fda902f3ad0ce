"""Retry policy of an agent version: decides whether and when a failed task runs again."""

from __future__ import annotations

from minions.backoff import jittered
from shared.contracts.documents import AgentConfig
from shared.errors import MinionError
from shared.tasks.records import StepRecord


def is_retried(error: MinionError, config: AgentConfig) -> bool:
    """Return whether an error is retryable, attempts permitting.

    `retry_on` lists the retryable codes; without it the error itself decides. `no_retry_on` lists codes never retried.
    """
    if error.code in config.no_retry_on:
        return False
    return error.retryable if config.retry_on is None else error.code in config.retry_on


def delay(error: MinionError, config: AgentConfig, attempts: int) -> float:
    """Return the seconds until the next attempt.

    Args:
        error: its `retry_after`, in seconds, takes precedence over every curve.
        attempts: charged failures before this one.
    """
    asked = error.detail.get("retry_after")
    if asked is not None:
        return float(asked)
    factor = {"exponential": 2.0 ** min(attempts, 60), "linear": attempts + 1.0, "constant": 1.0}[config.retry_curve]
    longest = min(config.retry_backoff_max, config.retry_backoff * factor)
    return jittered(longest, config.retry_jitter)


def make_again(steps: list[StepRecord], error: MinionError) -> list[StepRecord]:
    """Return the steps with the failed one reopened for a retry: the journal reads final failures back."""
    for index in range(len(steps) - 1, -1, -1):
        failure = steps[index].get("error")
        if failure and failure.get("type") == error.code:
            again: StepRecord = {**steps[index], "error": {**failure, "retryable": True}}
            return [*steps[:index], again, *steps[index + 1 :]]
    return steps
