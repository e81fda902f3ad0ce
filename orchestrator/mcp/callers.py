"""The caller of a request: its protocol era, what its client can do, and what its key may."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Any

from mcp.server.context import ServerRequestContext
from mcp.shared.exceptions import MCPError
from mcp_types import MISSING_REQUIRED_CLIENT_CAPABILITY
from mcp_types.version import MODERN_PROTOCOL_VERSIONS

from minions.aio.task import AsyncTask
from minions.errors import InvalidInput
from orchestrator.api.rights import RULES, Reach
from orchestrator.mcp.api import Api
from shared.access.roles import Permission
from shared.mcp.protocol import IDEMPOTENCY_KEY, TASKS, TRACE_KEY
from shared.trace_context import read_header

IDEMPOTENCY_HEADER = "idempotency-key"
Connect = Callable[[ServerRequestContext], Api]


@dataclass(frozen=True, slots=True)
class Caller:
    """The caller of one request.

    Attributes:
        api: the API with the caller's key.
        has_tasks: the client has declared the tasks extension for this request.
        has_forms: the client has declared that it can ask its user to fill in a form, for this request.
        is_modern: the request is of the era without sessions, from 2026-07-28 on.
    """

    api: Api
    has_tasks: bool
    has_forms: bool
    is_modern: bool

    @classmethod
    def of(cls, context: ServerRequestContext, connect: Connect) -> Caller:
        """Return the caller of a request."""
        declared = context.session.client_capabilities
        modern = context.protocol_version in MODERN_PROTOCOL_VERSIONS
        # A client of an earlier era gets neither tasks nor forms: its results have other shapes.
        forms = declared.elicitation if declared and modern else None
        return cls(
            connect(context),
            has_tasks=modern and declared is not None and TASKS in (declared.extensions or {}),
            has_forms=forms is not None and (forms.form is not None or forms.url is None),
            is_modern=modern,
        )

    def require_tasks(self) -> None:
        """Raise an MCPError if the client has not declared the tasks extension."""
        if not self.has_tasks:
            raise MCPError(
                MISSING_REQUIRED_CLIENT_CAPABILITY,
                f"This method belongs to the extension {TASKS}: declare it in the request's client capabilities.",
                {"requiredCapabilities": {"extensions": {TASKS: {}}}},
            )


class Terms:
    """The endpoints that a key may use, and how long its tasks are kept, as the API reports it."""

    def __init__(self, access: dict[str, Any]) -> None:
        self._permissions = set(access["permissions"])
        self._whole_namespace: bool = access["whole_namespace"]
        self._whole_installation = self._whole_namespace and access["namespace"] is None
        self._retention_days: dict[str, float] = access["retention_days"]

    @classmethod
    async def of(cls, api: Api) -> Terms:
        """Return the terms of the API's caller."""
        return cls(await api.access())

    @property
    def may_read_prompts(self) -> bool:
        """Whether the key may read whole definitions with their prompts."""
        return self._permissions >= {Permission.DEFINITIONS_READ, Permission.PAYLOADS_READ}

    def kept_until(self, task: AsyncTask) -> datetime | None:
        """Return the time until which a task is kept, if it ends now at the latest; None: indefinitely."""
        days = [self._retention_days[task.state]] if task.final else self._retention_days.values()
        shortest = min((each for each in days if each), default=None)
        ended = task.finished_at or datetime.now(UTC)
        return None if shortest is None else ended + timedelta(days=shortest)

    def allow(self, *endpoints: str) -> bool:
        """Return whether the key may use all of these endpoints."""
        return all(self._allows(endpoint) for endpoint in endpoints)

    def _allows(self, endpoint: str) -> bool:
        rule = RULES[endpoint]
        reached = {
            Reach.TASKS: True,
            Reach.NAMESPACE: self._whole_namespace,
            Reach.INSTALLATION: self._whole_installation,
        }
        return self._permissions.issuperset(rule.permissions) and reached[rule.reach]


def idempotency_key(context: ServerRequestContext) -> str | None:
    """Return the idempotency key that a caller gave: in `_meta`, or in the header of the request.

    Raises:
        InvalidInput: it is not text.
    """
    given: Any = (context.meta or {}).get(IDEMPOTENCY_KEY)
    if given is None and context.request is not None:
        given = context.request.headers.get(IDEMPOTENCY_HEADER)
    if given is not None and not isinstance(given, str):
        raise InvalidInput(f"`{IDEMPOTENCY_KEY}` in `_meta` must be text.")
    return given


def traceparent(context: ServerRequestContext) -> str | None:
    """Return the caller's span from `_meta`; None if there is none that is valid. The API reads the header itself."""
    given = (context.meta or {}).get(TRACE_KEY)
    return read_header(given) if isinstance(given, str) else None
