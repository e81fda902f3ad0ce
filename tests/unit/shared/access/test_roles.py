"""Roles and the permissions that they include."""

from __future__ import annotations

import pytest

from shared.access.roles import PERMISSIONS, Permission, Role, permissions_of, roles_with


def test_every_role_has_permissions_and_every_permission_a_role() -> None:
    assert set(PERMISSIONS) == set(Role)
    assert all(roles_with(permission) for permission in Permission)
    assert PERMISSIONS[Role.ADMIN] == set(Permission)


def test_approver_and_author_do_not_include_each_other() -> None:
    approver, author = PERMISSIONS[Role.APPROVER], PERMISSIONS[Role.AUTHOR]
    assert Permission.TASKS_DECIDE in approver - author
    assert Permission.TASKS_SUBMIT in author - approver


def test_only_the_administrator_manages_keys() -> None:
    assert roles_with(Permission.KEYS_MANAGE) == [Role.ADMIN]


@pytest.mark.parametrize("role", Role)
def test_payloads_are_a_permission_apart_from_the_role(role: Role) -> None:
    assert Permission.PAYLOADS_READ in permissions_of(role, payloads=True)
    assert Permission.PAYLOADS_READ not in permissions_of(role, payloads=False)
    assert permissions_of(role) == PERMISSIONS[role]
