"""Actors: the key that a request proved, and the name that its holder claims."""

from __future__ import annotations

from dataclasses import dataclass
from uuid import UUID

from shared.access.roles import Permission, Role, permissions_of, roles_with
from shared.access.scope import Scope
from shared.errors import Forbidden

BOOTSTRAP = "bootstrap"
"""The name of the administrator's key, from the environment or the data folder, whatever its text is."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Key:
    """A valid API key.

    Attributes:
        id: its row; None for the key of the environment or the data folder.
        record: the key as records name it.
        submitter: the submitter of its tasks, for their record.
        requests_per_minute: its quota in each orchestrator; None: there is none.
        is_bootstrap: it is the administrator's.
    """

    id: UUID | None
    name: str
    record: str
    submitter: str
    role: Role
    permissions: frozenset[Permission]
    scope: Scope
    requests_per_minute: int | None = None
    is_bootstrap: bool = False

    @property
    def identity(self) -> str:
        """The key where keys are compared: its id, which a rotation keeps, or `bootstrap`; else `user:` and a name."""
        if self.is_bootstrap:
            return BOOTSTRAP
        return f"user:{self.name}" if self.id is None else str(self.id)

    def may(self, permission: Permission) -> bool:
        """Return whether the key has a permission."""
        return permission in self.permissions

    def require(self, permission: Permission) -> None:
        """Raise Forbidden if the key lacks a permission; the message names the roles that have it."""
        if permission in self.permissions:
            return
        roles = [str(role) for role in roles_with(permission)]
        extra = ", or a key that was created with --payloads" if permission is Permission.PAYLOADS_READ else ""
        raise Forbidden(
            f"The key {self.name!r} (role {self.role}) lacks the permission {permission}. Use a key "
            f"with the role {' or '.join(roles)}{extra}. `minion keys roles` shows what each role may do.",
            permission=str(permission),
            roles=roles,
        )


@dataclass(frozen=True, slots=True)
class Actor:
    """The author of an act: a key, and the name that its holder claims without proof."""

    key: Key
    claimed: str | None = None

    def require_all(self, permissions: frozenset[Permission], scope: Scope) -> None:
        """Raise Forbidden if the actor's key has less than a key with these permissions and this scope would have."""
        for permission in sorted(permissions):
            self.key.require(permission)
        if not self.key.scope.covers(scope):
            raise Forbidden(
                f"The key {self.key.name!r} must not create or rotate a key that reaches further than itself."
            )

    def __str__(self) -> str:
        """The actor as records name it: `ci mk_3fA9xQ (claims to be Ann)`."""
        return self.key.record if self.claimed is None else f"{self.key.record} (claims to be {self.claimed})"


def bootstrap_key(fingerprint: str) -> Key:
    """Return the key of the environment or the data folder: the first administrator."""
    return Key(
        id=None,
        name=BOOTSTRAP,
        record=f"api:{fingerprint}",
        submitter="api",
        role=Role.ADMIN,
        permissions=permissions_of(Role.ADMIN),
        scope=Scope(),
        is_bootstrap=True,
    )
