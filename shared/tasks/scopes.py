"""The parts of an installation to which a stop or a standing budget applies."""

from __future__ import annotations

import shlex
from dataclasses import dataclass
from typing import Any, Self

from shared.errors import InvalidInput

EVERYTHING = "installation"
MAX_NAMESPACE = 100
MAX_NAME = 255


@dataclass(frozen=True, slots=True)
class Target:
    """The whole installation, a namespace, or something in a namespace: an agent, a tenant key, a model.

    Attributes:
        namespace: empty for the installation.
        name: empty for the installation and a namespace.
    """

    scope: str
    namespace: str
    name: str

    @classmethod
    def of(cls, what: str, scopes: tuple[str, ...], scope: str, namespace: str | None, name: str | None) -> Self:
        """Return the target that a caller names.

        Args:
            what: what the target is for, in errors: `stop` or `budget`.
            scopes: the scopes that it may have.
            namespace: by default `default`, for scopes that have a name.

        Raises:
            InvalidInput: the scope is unknown, or namespace and name do not fit it.
        """
        if scope not in scopes:
            raise InvalidInput(f"The scope of a {what} must be one of {', '.join(scopes)}, not {scope[:50]!r}.")
        if scope == EVERYTHING:
            if namespace is not None or name is not None:
                raise InvalidInput(f"A {what} of the whole installation must have neither a namespace nor a name.")
            return cls(scope, "", "")
        if scope == "namespace":
            if name is not None:
                raise InvalidInput(
                    f"A {what} of a namespace must have no other name. Use the scope agent or key to name one of these."
                )
            return cls(scope, _checked(what, "namespace", namespace, MAX_NAMESPACE), "")
        namespace = _checked(what, "namespace", "default" if namespace is None else namespace, MAX_NAMESPACE)
        return cls(scope, namespace, _checked(what, scope, name, MAX_NAME))

    def as_values(self) -> dict[str, Any]:
        """Return the columns of the tables' keys."""
        return {"scope": self.scope, "namespace": self.namespace, "name": self.name}


def describe(scope: str, namespace: str | None, name: str | None) -> str:
    """Name a target in a sentence: `the agent 'research'`."""
    if scope == EVERYTHING:
        return "the whole installation"
    if scope == "namespace":
        return f"the namespace {namespace!r}"
    elsewhere = "" if namespace == "default" else f" of the namespace {namespace!r}"
    return f"the {'tenant key' if scope == 'key' else scope} {name!r}{elsewhere}"


def as_options(scope: str, namespace: str | None, name: str | None) -> str:
    """Return the options of a command for a target: ` --agent research`; none for the installation."""
    named = f" --{scope} {shlex.quote(name)}" if name else ""
    return named + (
        f" --namespace {shlex.quote(namespace)}" if namespace and (namespace != "default" or not name) else ""
    )


def as_arguments(scope: str, namespace: str | None, name: str | None) -> str:
    """Return the arguments of a command for a target: `agent research`."""
    if scope == "namespace":
        return f"{scope} {shlex.quote(namespace or '')}"
    return (
        scope
        + (f" {shlex.quote(name)}" if name else "")
        + (f" --namespace {shlex.quote(namespace)}" if namespace and namespace != "default" else "")
    )


def _checked(what: str, scope: str, name: str | None, longest: int) -> str:
    if not name:
        raise InvalidInput(f"A {what} must name its {scope}.")
    if name == "*":
        raise InvalidInput(f"A {what} must name one {scope}: '*' has no meaning here.")
    if len(name) > longest or "\0" in name:
        raise InvalidInput(f"The {scope} of a {what} must have 1 to {longest} characters, without U+0000.")
    return name
