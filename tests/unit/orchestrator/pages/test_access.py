"""Where a browser without a login is led."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
from starlette.requests import Request

from orchestrator.pages.access import to_login
from shared.access.sessions import Login


@pytest.mark.parametrize(
    ("method", "path", "target"),
    [
        ("GET", "/tasks/1", "/login/oidc?return_to=%2Ftasks%2F1"),
        # The policy lets a form lead to no other site, and the provider is one.
        ("POST", "/tasks/1/cancel", "/login?return_to=%2Ftasks%2F1"),
    ],
)
def test_only_a_link_leads_to_the_provider_at_once(method: str, path: str, target: str) -> None:
    scope = {"type": "http", "method": method, "path": path, "query_string": b"", "headers": [(b"host", b"a")]}
    request = Request(scope | {"app": SimpleNamespace(state=SimpleNamespace(provider=object())), "scheme": "http"})
    request.state.login = Login(renewable=True)
    assert to_login(request).headers["location"] == target
