"""From the claims of an identity provider to a user, a role and its bounds, as the settings say.

`MINION_OIDC_ROLES` maps each value of the claim of roles to a role, or to an object with bounds:

    {"minions-admins": "admin", "acme-ops": {"role": "operator", "namespace": "acme", "payloads": true},
     "customers": {"role": "submitter", "namespace": "shop", "tenant_claim": "org"}}
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any, TypeGuard

from pydantic import Field, StringConstraints, ValidationError

from shared.access import sessions
from shared.access.actors import USER
from shared.access.roles import Role
from shared.access.scope import ANY, SEPARATOR, Scope
from shared.access.sessions import Opener
from shared.contracts.strict_model import Strict, faults_of
from shared.errors import NotConfigured, Unauthorized
from shared.settings import Settings

LONGEST_NAME = 200
Bound = Annotated[str, StringConstraints(min_length=1, max_length=LONGEST_NAME, pattern=r"^[^\x00]*$")]
Claims = Mapping[str, Any]


class Grant(Strict):
    """The role of a group, and its bounds.

    Attributes:
        namespace_claim: the claim that names the namespace, in place of `namespace`.
        tenant_claim: the claim that names the tenant, in place of `tenant`.
    """

    role: Role = Field(strict=False)
    payloads: bool | None = None
    namespace: Bound | None = None
    tenant: Bound | None = None
    namespace_claim: Bound | None = None
    tenant_claim: Bound | None = None

    def scope(self, claims: Claims) -> Scope:
        """Return the bounds of a user.

        Raises:
            Unauthorized: a claim that names a bound is missing, or does not name one.
        """
        return Scope(
            namespace=self.namespace if self.namespace_claim is None else _bound(claims, self.namespace_claim),
            tenant=self.tenant if self.tenant_claim is None else _bound(claims, self.tenant_claim),
        )


class RoleMapping:
    """The mapping of an installation.

    Raises:
        NotConfigured: it is invalid.
    """

    def __init__(self, settings: Settings) -> None:
        self._name_claim = settings.oidc_name_claim
        self._role_claim = settings.oidc_role_claim
        self._grants = {value: _grant(value, given) for value, given in settings.oidc_roles.items()}
        if not self._grants:
            raise NotConfigured(
                'MINION_OIDC_ROLES is empty, and no user would have a role. Set it, like {"minions-admins": "admin"}.'
            )

    def opener(self, claims: Claims) -> Opener:
        """Return the rights of a user. Of several roles, the first one in the settings counts.

        Raises:
            Unauthorized: the claims give no role, or are malformed.
        """
        subject = claims.get("sub")
        if not _is_name(subject):
            raise Unauthorized(
                f"The identity provider's id of the user is not one: it must have 1 to {LONGEST_NAME} printable "
                "characters."
            )
        user = self._user(claims, subject)
        given = _find(claims, self._role_claim)
        values = [given] if isinstance(given, str) else given if isinstance(given, list) else []
        for value, grant in self._grants.items():
            if value in values:
                scope = grant.scope(claims)
                return sessions.by_identity(user, subject, grant.role, payloads=grant.payloads, scope=scope)
        raise Unauthorized(
            f"You are known as {user}, but have no role here: the claim {self._role_claim!r} has no value that "
            "MINION_OIDC_ROLES maps to a role. Ask the operator of this installation for one."
        )

    def _user(self, claims: Claims, subject: str) -> str:
        """Return the name of a user in records: that of the configured claim, or the provider's own id."""
        name = _find(claims, self._name_claim)
        return f"{USER}{name if _is_name(name) else subject}"


def _grant(value: str, given: Any) -> Grant:
    try:
        grant = Grant.model_validate({"role": given} if isinstance(given, str) else given)
    except ValidationError as error:
        raise NotConfigured(f"MINION_OIDC_ROLES: {value!r}: {'; '.join(faults_of(error))}.") from None
    for name in ("namespace", "tenant"):
        if getattr(grant, name) is not None and getattr(grant, f"{name}_claim") is not None:
            raise NotConfigured(f"MINION_OIDC_ROLES: {value!r} has {name} and {name}_claim. Remove one of them.")
    return grant


def _bound(claims: Claims, claim: str) -> str:
    """Return a namespace or tenant from a claim; `*` would widen the bound to others that begin so."""
    value = _find(claims, claim)
    if not _is_name(value) or value.endswith(ANY) or SEPARATOR in value:
        raise Unauthorized(
            f"The claim {claim!r} of the identity provider does not name one namespace or tenant, and the login is "
            "bound to it. Ask the operator of the identity provider to add it."
        )
    return value


def _find(claims: Claims, name: str) -> Any:
    """Return a claim; `realm_access.roles` is the claim of that name, or the member of an object.

    Anyone may claim an email address that was not verified: it gives no name, no role and no bound.
    """
    if name == "email" and claims.get("email_verified") is not True:
        return None
    if name in claims:
        return claims[name]
    found: Any = claims
    for part in name.split("."):
        found = found.get(part) if isinstance(found, Mapping) else None
    return found


def _is_name(value: Any) -> TypeGuard[str]:
    return isinstance(value, str) and 0 < len(value) <= LONGEST_NAME and value.isprintable() and value == value.strip()
