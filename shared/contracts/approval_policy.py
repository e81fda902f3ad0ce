"""Approval policies of tools and agents: who may approve a call, and how many people must."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Annotated, Any, Self

from pydantic import (
    BeforeValidator,
    Field,
    GetCoreSchemaHandler,
    GetPydanticSchema,
    SerializerFunctionWrapHandler,
    StringConstraints,
    model_serializer,
    model_validator,
)
from pydantic_core import CoreSchema, core_schema

from shared.contracts.strict_model import Strict

APPROVERS = ("approver", "admin")
"""The roles with the permission to decide; a test compares them with `shared.access.roles`."""
KEY = r"^([A-Za-z0-9][A-Za-z0-9._-]{0,99}|oidc:[^\x00-\x1f]{1,200})$"
MOST_PEOPLE = 10
EXAMPLE = "{properties: {amount: {exclusiveMinimum: 100}}}"


def _is_approver(role: Any) -> Any:
    if isinstance(role, str) and role not in APPROVERS:
        raise ValueError(
            f"keys with the role {role[:50]!r} may not decide about tasks: choose {' or '.join(APPROVERS)}, or name "
            "keys under `keys`"
        )
    return role


def _is_schema(condition: Any) -> Any:
    if not isinstance(condition, dict) or not condition:
        raise ValueError(
            f"a condition must be a JSON Schema that the arguments match, such as {EXAMPLE}, and not "
            f"{repr(condition)[:50]}. What all calls need belongs beside `rules`"
        )
    return condition


Approver = Annotated[str, BeforeValidator(_is_approver)]
KeyName = Annotated[str, StringConstraints(pattern=KEY)]
Condition = Annotated[dict[str, Any], BeforeValidator(_is_schema)]


class Requirement(Strict):
    """Requirements for an approval.

    Attributes:
        roles: keys with one of these roles may decide, beside `keys`; without both, all that may decide about tasks.
        keys: names or ids of keys that may decide; `oidc:NAME` is a user who has logged in without a key.
        not_submitter: a key that submitted the task may not approve.
        people: the number of different keys that must approve the same arguments.
    """

    roles: list[Approver] = Field(default_factory=list, max_length=len(APPROVERS))
    keys: list[KeyName] = Field(default_factory=list, max_length=100)
    not_submitter: bool = False
    people: int = Field(1, ge=1, le=MOST_PEOPLE)

    @model_serializer(mode="wrap")
    def _without_defaults(self, serialize: SerializerFunctionWrapHandler) -> dict[str, Any]:
        return {name: value for name, value in serialize(self).items() if getattr(self, name) != _DEFAULTS.get(name)}

    @model_validator(mode="after")
    def _names_each_once(self) -> Self:
        for listed in (self.roles, self.keys):
            if twice := {name for name in listed if listed.count(name) > 1}:
                raise ValueError(f"{min(twice)!r} is listed twice")
        return self

    @property
    def is_empty(self) -> bool:
        """True if it requires nothing beyond an approval."""
        return not (self.roles or self.keys or self.not_submitter or self.people > 1)

    @property
    def named(self) -> frozenset[str] | None:
        """The only keys that may decide; None if a role may."""
        return frozenset(self.keys) if self.keys and not self.roles else None


_DEFAULTS: dict[str, Any] = {"roles": [], "keys": [], "not_submitter": False, "people": 1, "rules": []}


class ApprovalRule(Requirement):
    """Further requirements for an approval, if the arguments match a condition, a JSON Schema."""

    when: Condition

    @model_validator(mode="after")
    def _requires_something(self) -> Self:
        if self.is_empty:
            raise ValueError("a rule must require something: `people`, `not_submitter`, `roles` or `keys`")
        return self


class ApprovalPolicy(Requirement):
    """Requirements for each approval of a call, and rules for arguments that match a condition."""

    rules: list[ApprovalRule] = Field(default_factory=list, max_length=20)

    @model_validator(mode="after")
    def _says_something(self) -> Self:
        if self.is_empty and not self.rules:
            raise ValueError("a policy must require something; `approval: true` lets every key approve that may decide")
        return self

    @model_validator(mode="after")
    def _can_be_met(self) -> Self:
        self._check_names(None, self)
        for position, rule in enumerate(self.rules):
            self._check_names(position, rule)
        return self

    def _check_names(self, position: int | None, rule: Requirement) -> None:
        named = [keys for keys in (self.named, rule.named) if keys is not None]
        people = max(self.people, rule.people)
        if named and len(frozenset.intersection(*named)) < people:
            place = "" if position is None else f"rules.{position} with what all calls need: "
            raise ValueError(
                f"{place}{people} of the keys must approve, and only {len(frozenset.intersection(*named))} may"
            )

    def names(self) -> list[str]:
        """Return the keys that it names, each once."""
        return list(dict.fromkeys(name for part in (self, *self.rules) for name in part.keys))

    def conditions(self) -> Iterator[tuple[str, dict[str, Any]]]:
        """Yield the conditions with their places."""
        for position, rule in enumerate(self.rules):
            yield f"approval.rules.{position}.when", rule.when


def _schema(source: Any, handler: GetCoreSchemaHandler) -> CoreSchema:
    """Return a schema whose faults have the path that the author sees, which those of a union have not."""
    return core_schema.no_info_wrap_validator_function(
        _read, handler(ApprovalPolicy), serialization=core_schema.plain_serializer_function_ser_schema(_plain)
    )


def _read(value: Any, policy: core_schema.ValidatorFunctionWrapHandler) -> Any:
    if isinstance(value, bool):
        return value
    if not isinstance(value, dict | ApprovalPolicy):
        raise ValueError("it must be true, false or a policy: an object with `roles`, `keys`, `people`, …")
    return policy(value)


def _plain(value: bool | ApprovalPolicy) -> Any:
    return value if isinstance(value, bool) else value.model_dump()


Approval = Annotated[bool | ApprovalPolicy, GetPydanticSchema(_schema)]
"""True or a policy if a person must approve a call; true requires only an approval."""
