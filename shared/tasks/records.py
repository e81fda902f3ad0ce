"""The JSON that the functions in `shared/tasks/sql/` take and return, as types."""

from __future__ import annotations

from typing import Any, Literal, NotRequired, TypedDict

from shared.contracts.strict_json import JsonValue


class NewTask(TypedDict, total=False):
    """A task to insert, as `minion_accept` describes it. Ids and times are text.

    Attributes:
        validated: the agent version whose input schema the input was checked against.
        new_keys: a replay's calls get new idempotency keys.
    """

    agent: str
    capability: str
    input: JsonValue
    messages: list[dict[str, Any]]
    namespace: str
    idempotency_key: str
    key: str
    labels: dict[str, str]
    priority: int
    run_at: str
    deadline: str
    conversation_id: str
    replay_of: str
    new_keys: bool
    agent_version_id: str
    traceparent: str
    submitted_by: str
    unique_key: str
    unique_while: Literal["pending", "running"]
    budget: dict[str, Any]
    validated: str


class ErrorRecord(TypedDict):
    """An error as `MinionError.as_dict` gives it; `retryable` is recorded with failed steps."""

    type: str
    message: str
    retryable: NotRequired[bool]
