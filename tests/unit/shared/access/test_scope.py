"""The bounds of keys."""

from __future__ import annotations

from typing import Any

import pytest

from shared.access.scope import Scope, own_name
from shared.errors import Forbidden, InvalidInput

TEAM = Scope(namespace="team")
ACME = Scope(namespace="team", tenant="acme")
GROUP = Scope(tenant="acme:*")


def test_namespace_of_a_bound_key_is_implied() -> None:
    assert TEAM.namespace_of(None) == TEAM.namespace_of("team") == "team"
    assert Scope().namespace_of(None) == "default"
    assert Scope().namespace_of("other") == "other"
    with pytest.raises(Forbidden, match="bound to the namespace 'team'"):
        TEAM.namespace_of("default")


@pytest.mark.parametrize(
    ("scope", "asked", "narrowed"),
    [
        (Scope(), {"agent": "A", "idempotency_key": "k"}, {"agent": "A", "idempotency_key": "k"}),
        (TEAM, {"agent": "A"}, {"agent": "A", "namespace": "team"}),
        (Scope(agents=("A",)), {"messages": []}, {"messages": [], "agent": "A"}),
        (Scope(agents=("A", "B")), {"agent": "B"}, {"agent": "B"}),
        (Scope(capabilities=("c",)), {"agent": "A"}, {"agent": "A", "capability": "c"}),
        (ACME, {"agent": "A"}, {"agent": "A", "namespace": "team", "key": "acme"}),
        (GROUP, {"key": "acme:eu", "unique_key": "u"}, {"key": "acme:eu", "unique_key": "acme:eu\x1fu"}),
    ],
)
def test_request_is_narrowed_to_the_scope(scope: Scope, asked: dict[str, Any], narrowed: dict[str, Any]) -> None:
    assert scope.narrow(asked) == narrowed


@pytest.mark.parametrize(
    ("scope", "asked"),
    [
        (TEAM, {"namespace": "default"}),
        (TEAM, {"namespace": 7}),
        (Scope(agents=("A",)), {"agent": "B"}),
        (Scope(agents=("A", "B")), {"capability": "c"}),
        (Scope(agents=("A",)), {"agent": ["A"]}),
        (Scope(capabilities=("c", "d")), {"agent": "A"}),
        (ACME, {"key": "acme2"}),
        (ACME, {"key": "acme\x1fx"}),
        (GROUP, {"key": "acme"}),
        (GROUP, {}),
        (GROUP, {"key": None}),
    ],
)
def test_request_outside_the_scope_is_refused(scope: Scope, asked: dict[str, Any]) -> None:
    with pytest.raises(Forbidden):
        scope.narrow(asked)


def test_names_of_tenants_never_meet() -> None:
    names = ("conversation_id", "idempotency_key", "unique_key")
    one = ACME.narrow(dict.fromkeys(names, "x"))
    other = Scope(namespace="team", tenant="other").narrow(dict.fromkeys(names, "x"))
    for name in names:
        assert len({one[name], other[name], "x"}) == 3
        assert own_name(one[name]) == own_name(other[name]) == own_name("x") == "x"


@pytest.mark.parametrize("name", ["a\x1fb", "x" * 251])
def test_name_that_cannot_be_kept_apart_is_refused(name: str) -> None:
    with pytest.raises(InvalidInput):
        ACME.narrow({"conversation_id": name})


@pytest.mark.parametrize(
    ("scope", "other", "covered"),
    [
        (Scope(), TEAM, True),
        (TEAM, Scope(), False),
        (TEAM, ACME, True),
        (ACME, TEAM, False),
        (TEAM, Scope(namespace="other"), False),
        (Scope(agents=("A", "B")), Scope(agents=("A",)), True),
        (Scope(agents=("A",)), Scope(agents=("A", "B")), False),
        (Scope(agents=("A",)), Scope(), False),
        (GROUP, Scope(tenant="acme:eu"), True),
        (GROUP, Scope(tenant="acme:eu:*"), True),
        (GROUP, Scope(tenant="acme*"), False),
        (Scope(tenant="acme"), Scope(tenant="acme*"), False),
    ],
)
def test_scope_covers_what_is_in_it(scope: Scope, other: Scope, covered: bool) -> None:
    assert scope.covers(other) is covered
