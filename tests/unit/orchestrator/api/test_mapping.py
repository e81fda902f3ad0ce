"""Claims as well-known identity providers send them, with the settings that docs/login.md names."""

from __future__ import annotations

from typing import Any

import pytest

from orchestrator.api.login.mapping import RoleMapping
from shared.access.roles import Role
from shared.errors import Unauthorized
from shared.settings import Settings

KEYCLOAK = {
    "sub": "f:1f0c:ann",
    "azp": "minions",
    "email": "ann@example.com",
    "email_verified": True,
    "preferred_username": "ann",
    "groups": ["/minions-admins", "/staff"],
    "realm_access": {"roles": ["offline_access", "minions-operator"]},
}
ENTRA = {
    "sub": "AAAAAAAAAAAAAAAAAAAAAIkzqFVrSaSaFHy782bbtaQ",
    "oid": "00000000-0000-0000-66f3-3332eca7ea81",
    "tid": "9122040d-6c67-4c5b-b112-36a304b66dad",
    "email": "ann@example.com",
    "preferred_username": "ann@example.com",
    "roles": ["Minions.Admin"],
    "_claim_names": {"groups": "src1"},
}
GOOGLE = {"sub": "1076915035000615", "email": "ann@example.com", "email_verified": True, "hd": "example.com"}


@pytest.mark.parametrize(
    ("claims", "settings", "user"),
    [
        (KEYCLOAK, {"oidc_roles": {"/minions-admins": "admin"}}, "oidc:ann@example.com"),
        (
            KEYCLOAK,
            {"oidc_role_claim": "realm_access.roles", "oidc_roles": {"minions-operator": "admin"}},
            "oidc:ann@example.com",
        ),
        (
            ENTRA,
            {
                "oidc_role_claim": "roles",
                "oidc_name_claim": "preferred_username",
                "oidc_roles": {"Minions.Admin": "admin"},
            },
            "oidc:ann@example.com",
        ),
        (ENTRA, {"oidc_role_claim": "roles", "oidc_roles": {"Minions.Admin": "admin"}}, f"oidc:{ENTRA['sub']}"),
        (GOOGLE, {"oidc_role_claim": "hd", "oidc_roles": {"example.com": "admin"}}, "oidc:ann@example.com"),
        (GOOGLE, {"oidc_role_claim": "email", "oidc_roles": {"ann@example.com": "admin"}}, "oidc:ann@example.com"),
    ],
    ids=["keycloak-groups", "keycloak-roles", "entra", "entra-unnamed", "google-domain", "google-address"],
)
def test_claims_of_known_providers_give_role_and_name(
    claims: dict[str, Any], settings: dict[str, Any], user: str
) -> None:
    opener = RoleMapping(Settings(**settings)).opener(claims)
    assert (opener.user, opener.key.role) == (user, Role.ADMIN)


@pytest.mark.parametrize(
    ("claims", "settings"),
    [
        (ENTRA, {"oidc_roles": {"Minions.Admin": "admin"}}),
        (ENTRA, {"oidc_role_claim": "email", "oidc_roles": {"ann@example.com": "admin"}}),
        ({**GOOGLE, "hd": None}, {"oidc_role_claim": "hd", "oidc_roles": {"example.com": "admin"}}),
        ({**KEYCLOAK, "realm_access": "x"}, {"oidc_role_claim": "realm_access.roles", "oidc_roles": {"x": "admin"}}),
    ],
    ids=["too-many-groups", "address-not-verified", "private-account", "no-object"],
)
def test_claims_of_known_providers_without_a_role(claims: dict[str, Any], settings: dict[str, Any]) -> None:
    with pytest.raises(Unauthorized, match="have no role here"):
        RoleMapping(Settings(**settings)).opener(claims)
