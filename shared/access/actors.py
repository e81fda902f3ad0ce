"""Actors: the key or login that a request proved, and the name that its holder claims."""

from __future__ import annotations

import os
import pwd
from dataclasses import dataclass
from typing import Any
from uuid import UUID

from shared.access.roles import Permission, Role, permissions_of, roles_with
from shared.access.scope import Scope
from shared.errors import Forbidden

BOOTSTRAP = "bootstrap"
"""The name of the administrator's key, from the environment or the data folder, whatever its text is."""

USER = "oidc:"
"""The beginning of names of users who log in with OpenID Connect."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Key:
    """The rights that a request has proved, by a valid API key or by a browser's login.

    Attributes:
        id: the key's row; None for the key of the environment or the data folder, and for a login without a key.
        record: the key, or the user who logged in without one, as records name them.
        submitter: the submitter of its tasks, for their record.
        requests_per_minute: its quota in each orchestrator; None: there is none.
        is_bootstrap: it is the administrator's.
        login: the login that the request came through; None if it brought the key itself.
        subject: the identity provider's id of a user who logged in without a key; unlike the name, it never changes.
        prefix: the first characters of its text, which lists show, or `session:` and those of the digest of a login
            without a key; None for an actor with neither.
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
    login: UUID | None = None
    subject: str | None = None
    prefix: str | None = None

    @property
    def identity(self) -> str:
        """The key where keys are compared: its id, which a rotation keeps, or `bootstrap`. A user without a key is
        `user:` and the provider's id.
        """
        if self.is_bootstrap:
            return BOOTSTRAP
        return f"user:{self.subject or self.name}" if self.id is None else str(self.id)

    @property
    def title(self) -> str:
        """The key in messages to its holder, at the beginning of a sentence."""
        return f"The key {self.name!r}" if self.login is None else f"The login {self.name!r}"

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
            f"{self.title} (role {self.role}) lacks the permission {permission}. Use a key "
            f"with the role {' or '.join(roles)}{extra}. `minion keys roles` shows what each role may do.",
            permission=str(permission),
            roles=roles,
        )


@dataclass(frozen=True, slots=True)
class Actor:
    """The author of an act: a key, and the name that its holder claims without proof.

    Attributes:
        address: the address that the request came from.
        request_id: the id of the request.
    """

    key: Key
    claimed: str | None = None
    address: str | None = None
    request_id: str | None = None

    def require_all(self, permissions: frozenset[Permission], scope: Scope) -> None:
        """Raise Forbidden if the actor's key has less than a key with these permissions and this scope would have."""
        for permission in sorted(permissions):
            self.key.require(permission)
        if not self.key.scope.covers(scope):
            raise Forbidden(f"{self.key.title} must not create or rotate a key that reaches further than itself.")

    def __str__(self) -> str:
        """The actor as records name it: `ci mk_3fA9xQ (claims to be Ann)`."""
        return self.key.record if self.claimed is None else f"{self.key.record} (claims to be {self.claimed})"


def bootstrap_key(fingerprint: str) -> Key:
    """Return the key of the environment or the data folder: the first administrator."""
    record = f"api:{fingerprint}"
    return _administrator(name=BOOTSTRAP, record=record, submitter="api", prefix=record, is_bootstrap=True)


def local_actor() -> Actor:
    """Return the user of the operating system, for an act in a process that works on the database itself."""
    try:
        user = pwd.getpwuid(os.geteuid()).pw_name
    except KeyError:
        user = str(os.geteuid())
    name = f"{user} (database)"
    return Actor(_administrator(name=name, record=name, submitter=name))


def unknown_key() -> Key:
    """Return the key that records name for a request whose key is missing or unknown."""
    name = "(no valid key)"
    return Key(
        id=None, name=name, record=name, submitter=name, role=Role.VIEWER, permissions=frozenset(), scope=Scope()
    )


def orchestrator() -> Actor:
    """Return the actor of what an orchestrator does by itself."""
    name = "orchestrator (system)"
    return Actor(_administrator(name=name, record=name, submitter=name))


def _administrator(**names: Any) -> Key:
    return Key(id=None, role=Role.ADMIN, permissions=permissions_of(Role.ADMIN), scope=Scope(), **names)
