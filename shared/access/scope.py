"""The part of the installation that a key reaches: a namespace, agents, capabilities, a tenant."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from shared.errors import Forbidden, InvalidInput

DEFAULT_NAMESPACE = "default"
ANY = "*"
SEPARATOR = "\x1f"
"""Between a tenant and a name that belongs to it alone."""
TENANT_NAMES = ("conversation_id", "idempotency_key", "unique_key")
LONGEST_NAME = 255


@dataclass(frozen=True, slots=True, kw_only=True)
class Scope:
    """Bounds of a key; each that is empty or None does not limit it.

    Attributes:
        agents: names of agents.
        tenant: a tenant key, or the beginning of tenant keys followed by `*`: `acme`, `acme:*`.
        holder: the subject of refusals.
    """

    namespace: str | None = None
    agents: tuple[str, ...] = ()
    capabilities: tuple[str, ...] = ()
    tenant: str | None = None
    holder: str = field(default="This key", compare=False)

    @property
    def is_whole(self) -> bool:
        """True if it is the whole installation."""
        return self.namespace is None and not self.is_partial

    @property
    def is_partial(self) -> bool:
        """True if it is less than a namespace, or less than each namespace."""
        return bool(self.agents or self.capabilities or self.tenant)

    @property
    def description(self) -> str:
        """The scope in a sentence."""
        bounds = [
            *([f"the namespace {self.namespace}"] if self.namespace else []),
            *([f"the tenant key {self.tenant}"] if self.tenant else []),
            *(f"the agent {name}" for name in self.agents),
            *(f"the capability {name}" for name in self.capabilities),
        ]
        return ", ".join(bounds) or "the whole installation"

    @property
    def conditions(self) -> dict[str, Any]:
        """The fields of `shared.tasks.queries.TaskFilter` that its tasks match, but for the namespace."""
        bounds: dict[str, Any] = {"only_agents": self.agents, "only_capabilities": self.capabilities}
        if self.tenant is not None:
            bounds["tenant_prefix" if self.tenant.endswith(ANY) else "tenant"] = self.tenant.removesuffix(ANY)
        return bounds

    def namespace_of(self, asked: str | None) -> str:
        """Return the namespace of a request that names this one, or none.

        Raises:
            Forbidden: it names another than the key's. The answer is the same whether that one exists or not.
        """
        if self.namespace is None:
            return asked or DEFAULT_NAMESPACE
        if asked not in (None, self.namespace):
            raise Forbidden(
                f"{self.holder} is bound to the namespace {self.namespace!r}. Leave `namespace` out, or use a key of "
                f"the namespace {str(asked)[:100]!r}."
            )
        return self.namespace

    def namespace_of_target(self, scope: str, asked: str | None) -> str | None:
        """Return the namespace of a stop or a standing budget, whose scope may be the whole installation.

        Raises:
            Forbidden: it is more than the key's namespace, or names another.
        """
        if self.namespace is None:
            return asked
        if scope == "installation":
            raise Forbidden(
                f"{self.holder} is bound to the namespace {self.namespace!r}, and the scope `installation` is more "
                "than that. Choose another scope."
            )
        return self.namespace_of(asked)

    def narrow(self, request: Mapping[str, Any]) -> dict[str, Any]:
        """Return a request for a task with everything that the scope implies.

        Names that a tenant chooses become its own: another tenant's conversation, idempotency key or unique key of the
        same name is another one.

        Raises:
            Forbidden: the request is for a task outside the scope.
            InvalidInput: the names and the tenant are too long together, or contain the separator.
        """
        narrowed = dict(request)
        if self.namespace is not None:
            narrowed["namespace"] = self.namespace_of(request.get("namespace"))
        self._narrow_to(narrowed, "agent", self.agents)
        self._narrow_to(narrowed, "capability", self.capabilities)
        if self.tenant is not None:
            tenant = narrowed["key"] = self.tenant_of(request.get("key"))
            for name in TENANT_NAMES:
                if isinstance(value := narrowed.get(name), str) and value:
                    narrowed[name] = tenant_name(tenant, value, what=name)
        return narrowed

    def tenant_of(self, asked: Any) -> str:
        """Return the tenant key of a request that names this one, or none.

        Raises:
            Forbidden: it is not one of the scope.
        """
        assert self.tenant is not None
        if asked is None and not self.tenant.endswith(ANY):
            return self.tenant
        if isinstance(asked, str) and self._has_tenant(asked) and SEPARATOR not in asked:
            return asked
        must = f"must begin with {self.tenant[:-1]!r}" if self.tenant.endswith(ANY) else f"must be {self.tenant!r}"
        raise Forbidden(f"{self.holder} is bound to the tenant {self.tenant!r}: `key` {must}.")

    def covers(self, other: Scope) -> bool:
        """Return whether everything in the other scope is in this one."""
        return (
            self.namespace in (None, other.namespace)
            and _within(self.agents, other.agents)
            and _within(self.capabilities, other.capabilities)
            and (self.tenant is None or (other.tenant is not None and self._has_tenant(other.tenant)))
        )

    def _has_tenant(self, tenant: str) -> bool:
        assert self.tenant is not None
        return tenant.startswith(self.tenant[:-1]) if self.tenant.endswith(ANY) else tenant == self.tenant

    def _narrow_to(self, request: dict[str, Any], field: str, allowed: tuple[str, ...]) -> None:
        if not allowed:
            return
        asked = request.get(field)
        if asked is None and len(allowed) == 1:
            request[field] = allowed[0]
        elif asked not in allowed:
            raise Forbidden(
                f"{self.holder} is bound to {' and '.join(map(repr, allowed))}: `{field}` must name one of them."
            )


def tenant_name(tenant: str, name: str, *, what: str) -> str:
    """Return the stored form of a name that belongs to a tenant.

    Raises:
        InvalidInput: it would be too long, or contains the separator.
    """
    if SEPARATOR in name:
        raise InvalidInput(f"Invalid {what}: it must not contain the character U+001F.")
    if len(tenant) + len(SEPARATOR) + len(name) > LONGEST_NAME:
        raise InvalidInput(
            f"{what} is too long: for a key that is bound to a tenant, it and the tenant key must have at most "
            f"{LONGEST_NAME - len(SEPARATOR)} characters together."
        )
    return f"{tenant}{SEPARATOR}{name}"


def own_name(stored: str) -> str:
    """Return the name that a tenant chose, from its stored form."""
    return stored.rpartition(SEPARATOR)[2]


def _within(bounds: tuple[str, ...], others: tuple[str, ...]) -> bool:
    return not bounds or (bool(others) and set(others) <= set(bounds))
