"""Roles are sets of permissions. `orchestrator.api.rights` names the permission that each endpoint needs."""

from __future__ import annotations

from collections.abc import Mapping
from enum import StrEnum
from typing import Final


class Permission(StrEnum):
    """The right to one kind of act."""

    TASKS_READ = "tasks:read"
    TASKS_SUBMIT = "tasks:submit"
    TASKS_CANCEL = "tasks:cancel"
    TASKS_SIGNAL = "tasks:signal"
    TASKS_REPLAY = "tasks:replay"
    TASKS_LABEL = "tasks:label"
    TASKS_DECIDE = "tasks:decide"
    TASKS_ERASE = "tasks:erase"
    FILES_WRITE = "files:write"
    BUDGETS_RAISE = "budgets:raise"
    PAYLOADS_READ = "payloads:read"
    AGENTS_READ = "agents:read"
    DEFINITIONS_READ = "definitions:read"
    DEFINITIONS_ACTIVATE = "definitions:activate"
    OPERATIONS_READ = "operations:read"
    LIMITS_WRITE = "limits:write"
    ALERTS_WRITE = "alerts:write"
    ERRORS_WRITE = "errors:write"
    SCHEDULES_WRITE = "schedules:write"
    WEBHOOKS_WRITE = "webhooks:write"
    KEYS_MANAGE = "keys:manage"
    AUDIT_READ = "audit:read"


MASK = f"(masked: this key lacks {Permission.PAYLOADS_READ})"
"""Shown in place of a payload."""


class Role(StrEnum):
    """The role of a key."""

    VIEWER = "viewer"
    SUBMITTER = "submitter"
    OPERATOR = "operator"
    APPROVER = "approver"
    AUTHOR = "author"
    ADMIN = "admin"


P = Permission
_VIEW = frozenset({P.TASKS_READ, P.AGENTS_READ, P.DEFINITIONS_READ, P.OPERATIONS_READ})

PERMISSIONS: Final[Mapping[Role, frozenset[Permission]]] = {
    Role.VIEWER: _VIEW,
    Role.SUBMITTER: frozenset(
        {P.TASKS_READ, P.AGENTS_READ, P.TASKS_SUBMIT, P.TASKS_CANCEL, P.TASKS_SIGNAL, P.FILES_WRITE, P.PAYLOADS_READ}
    ),
    Role.OPERATOR: _VIEW
    | {
        P.TASKS_CANCEL,
        P.TASKS_SIGNAL,
        P.TASKS_REPLAY,
        P.TASKS_LABEL,
        P.BUDGETS_RAISE,
        P.DEFINITIONS_ACTIVATE,
        P.LIMITS_WRITE,
        P.ALERTS_WRITE,
        P.ERRORS_WRITE,
        P.SCHEDULES_WRITE,
    },
    Role.APPROVER: _VIEW | {P.TASKS_DECIDE, P.PAYLOADS_READ},
    Role.AUTHOR: _VIEW
    | {
        P.TASKS_SUBMIT,
        P.TASKS_CANCEL,
        P.TASKS_SIGNAL,
        P.TASKS_REPLAY,
        P.ERRORS_WRITE,
        P.TASKS_LABEL,
        P.SCHEDULES_WRITE,
        P.FILES_WRITE,
        P.PAYLOADS_READ,
    },
    Role.ADMIN: frozenset(Permission),
}


def permissions_of(role: Role, *, payloads: bool | None = None) -> frozenset[Permission]:
    """Return the permissions of a key with this role.

    Args:
        payloads: whether the key may see payloads; None: as the role does.
    """
    granted = PERMISSIONS[role]
    if payloads is None:
        return granted
    return granted | {P.PAYLOADS_READ} if payloads else granted - {P.PAYLOADS_READ}


def roles_with(permission: Permission) -> list[Role]:
    """Return the roles that include a permission."""
    return [role for role in Role if permission in PERMISSIONS[role]]
