"""The page of a login."""

from __future__ import annotations

from orchestrator.api.login.account import TEXTS
from shared.access.roles import Permission


def test_every_permission_is_described() -> None:
    assert set(TEXTS) == set(Permission)
    assert len(set(TEXTS.values())) == len(TEXTS)
