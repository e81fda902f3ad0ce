"""The permissions that each endpoint needs: the only source. The API does not start if an endpoint has no rule."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from enum import Enum
from typing import Any

from shared.access.actors import Key
from shared.access.roles import Permission, Role, permissions_of
from shared.errors import Forbidden

P = Permission


class Reach(Enum):
    """How narrow the scope of a key may be for an endpoint."""

    TASKS = "tasks"
    """Any scope: the endpoint shows and changes only what is in it."""
    NAMESPACE = "namespace"
    """A namespace or more: what the endpoint shows belongs to all agents and tenants of a namespace."""
    INSTALLATION = "installation"
    """Everything: what the endpoint shows belongs to all namespaces."""


@dataclass(frozen=True, slots=True)
class Rule:
    """What a key needs for an endpoint."""

    permissions: tuple[Permission, ...]
    reach: Reach = Reach.TASKS
    scraped: bool = False
    """Whether the scrape token is enough."""

    def check(self, key: Key) -> None:
        """Raise Forbidden if a key may not use the endpoint."""
        for permission in self.permissions:
            key.require(permission)
        if key.scope.is_whole or self.reach is Reach.TASKS:
            return
        if self.reach is Reach.INSTALLATION:
            raise Forbidden(
                f"{key.title} is bound to a part of the installation, and this endpoint concerns all of "
                "it. Use a key without bounds."
            )
        if key.scope.is_partial:
            raise Forbidden(
                f"{key.title} is bound to agents, capabilities or a tenant, and this endpoint concerns a "
                "whole namespace. Use a key that has no bound, or only a namespace."
            )

    def permits(self, key: Key) -> bool:
        """Return whether a key may use the endpoint."""
        try:
            self.check(key)
        except Forbidden:
            return False
        return True

    def allows(self, role: Role) -> bool:
        """Return whether a role has all permissions."""
        return set(self.permissions) <= permissions_of(role)


def _tasks(*permissions: Permission) -> Rule:
    return Rule(permissions)


def _namespace(*permissions: Permission) -> Rule:
    return Rule(permissions, Reach.NAMESPACE)


ABOUT = {
    Reach.TASKS: "",
    Reach.NAMESPACE: " Refused to keys that are bound to agents, capabilities or a tenant.",
    Reach.INSTALLATION: " Refused to keys that are bound to anything.",
}
READ, OPERATE = _tasks(P.TASKS_READ), _namespace(P.OPERATIONS_READ)
SCRAPE = Rule((P.OPERATIONS_READ,), Reach.INSTALLATION, scraped=True)
KEYS = _namespace(P.KEYS_MANAGE)
ALERTS = _namespace(P.ALERTS_WRITE)
# What is activated runs in all tasks of a namespace. The answer has the definition.
ACTIVATE = _namespace(P.DEFINITIONS_ACTIVATE, P.DEFINITIONS_READ)
# A webhook sends outputs and errors to its address.
WEBHOOKS = _namespace(P.WEBHOOKS_WRITE, P.PAYLOADS_READ)
FILES_READ = _tasks(P.TASKS_READ, P.PAYLOADS_READ)
# A stored schedule submits tasks with the input that it was given.
STORE_SCHEDULE = _namespace(P.SCHEDULES_WRITE, P.TASKS_SUBMIT)

RULES: Mapping[str, Rule] = {
    "POST /v1/tasks": _tasks(P.TASKS_SUBMIT),
    "POST /v1/tasks/bulk": _tasks(P.TASKS_SUBMIT),
    "POST /v1/tasks/wait": READ,
    "GET /v1/tasks": READ,
    "GET /v1/tasks/counts": READ,
    "GET /v1/tasks/{task_id}": READ,
    "GET /v1/tasks/{task_id}/steps": READ,
    "GET /v1/tasks/{task_id}/executions": READ,
    "GET /v1/tasks/{task_id}/tree": READ,
    "GET /v1/tasks/{task_id}/why": READ,
    "GET /v1/tasks/{task_id}/events": READ,
    "GET /v1/tasks/{task_id}/decisions": READ,
    "POST /v1/tasks/{task_id}/cancel": _tasks(P.TASKS_CANCEL),
    "POST /v1/tasks/{task_id}/signals/{name}": _tasks(P.TASKS_SIGNAL),
    "POST /v1/tasks/{task_id}/replay": _tasks(P.TASKS_REPLAY),
    "PATCH /v1/tasks/{task_id}/labels": _tasks(P.TASKS_LABEL),
    "POST /v1/tasks/{task_id}/decisions": _tasks(P.TASKS_DECIDE),
    "POST /v1/tasks/{task_id}/budget": _tasks(P.BUDGETS_RAISE),
    "GET /v1/dead-letters": _namespace(P.TASKS_READ),
    "GET /v1/errors": READ,
    "GET /v1/errors/{fingerprint}": READ,
    "PUT /v1/errors/{fingerprint}": _namespace(P.ERRORS_WRITE),
    "POST /v1/replays": _tasks(P.TASKS_REPLAY),
    # A trial has no tenant key, and runs any version.
    "POST /v1/trials": _namespace(P.TASKS_SUBMIT),
    # Replaying and labelling need `tasks:replay` and `tasks:label` too.
    "POST /v1/bulk-acts": _tasks(P.TASKS_CANCEL),
    "GET /v1/bulk-acts": READ,
    "GET /v1/bulk-acts/{bulk_act_id}": READ,
    "POST /v1/bulk-acts/{bulk_act_id}/stop": _tasks(P.TASKS_CANCEL),
    "POST /v1/erasures": _namespace(P.TASKS_ERASE),
    "POST /v1/files": _tasks(P.FILES_WRITE, P.PAYLOADS_READ),
    "GET /v1/files": FILES_READ,
    "GET /v1/files/{file_id}": FILES_READ,
    "GET /v1/files/{file_id}/content": FILES_READ,
    "DELETE /v1/files/{file_id}": _tasks(P.FILES_WRITE, P.PAYLOADS_READ),
    "GET /v1/agents": _tasks(P.AGENTS_READ),
    "GET /v1/agents/{name}": _tasks(P.AGENTS_READ),
    "GET /v1/agents/{name}/versions/{number}": _tasks(P.AGENTS_READ),
    "GET /v1/contracts": _tasks(P.AGENTS_READ),
    "GET /v1/contracts/{name}": _tasks(P.AGENTS_READ),
    "POST /v1/agents/{name}/rollback": ACTIVATE,
    "PUT /v1/agents/{name}/canary": ACTIVATE,
    "PUT /v1/agents/{name}/status": ACTIVATE,
    # The judging tasks get payloads.
    "POST /v1/evaluations": _namespace(P.TASKS_SUBMIT, P.PAYLOADS_READ),
    # The scores are about all agents of a namespace.
    "POST /v1/routes": _namespace(P.AGENTS_READ),
    "GET /v1/capabilities": _tasks(P.AGENTS_READ),
    "GET /v1/stats": READ,
    "GET /v1/costs": READ,
    "GET /v1/functions": _namespace(P.DEFINITIONS_READ),
    "GET /v1/functions/{name}": _namespace(P.DEFINITIONS_READ),
    "GET /v1/functions/{name}/security-events": _namespace(P.DEFINITIONS_READ),
    "PUT /v1/functions/{name}/status": ACTIVATE,
    "GET /v1/tools": _namespace(P.DEFINITIONS_READ),
    "GET /v1/tools/{name}": _namespace(P.DEFINITIONS_READ),
    "GET /v1/mcp-servers": _namespace(P.DEFINITIONS_READ),
    "GET /v1/workers": Rule((P.OPERATIONS_READ,), Reach.INSTALLATION),
    "GET /metrics": SCRAPE,
    "GET /v1/capabilities/{name}/scale": SCRAPE,
    "GET /v1/pauses": OPERATE,
    "PUT /v1/pauses/{scope}/{name}": _namespace(P.LIMITS_WRITE),
    "DELETE /v1/pauses/{scope}/{name}": _namespace(P.LIMITS_WRITE),
    "GET /v1/limits": OPERATE,
    "PUT /v1/limits/{scope}/{name}": _namespace(P.LIMITS_WRITE),
    "DELETE /v1/limits/{scope}/{name}": _namespace(P.LIMITS_WRITE),
    "GET /v1/stops": OPERATE,
    "POST /v1/stops": _namespace(P.LIMITS_WRITE),
    "DELETE /v1/stops": _namespace(P.LIMITS_WRITE),
    "GET /v1/budgets": OPERATE,
    "PUT /v1/budgets": _namespace(P.LIMITS_WRITE),
    "DELETE /v1/budgets": _namespace(P.LIMITS_WRITE),
    # Paths and contents need `payloads:read`, else they are masked.
    "GET /v1/memory": OPERATE,
    "GET /v1/memory/{store_id}": OPERATE,
    "GET /v1/memory/{store_id}/file": OPERATE,
    "DELETE /v1/memory/{store_id}": _namespace(P.TASKS_ERASE),
    "DELETE /v1/memory/{store_id}/file": _namespace(P.TASKS_ERASE),
    "GET /v1/schedules": OPERATE,
    "POST /v1/schedules": STORE_SCHEDULE,
    "GET /v1/schedules/{name}": OPERATE,
    "PUT /v1/schedules/{name}": STORE_SCHEDULE,
    # Changing its request needs `tasks:submit` too.
    "PATCH /v1/schedules/{name}": _namespace(P.SCHEDULES_WRITE),
    "DELETE /v1/schedules/{name}": _namespace(P.SCHEDULES_WRITE),
    "POST /v1/schedules/{name}/run": _namespace(P.SCHEDULES_WRITE),
    "GET /v1/webhooks": OPERATE,
    "POST /v1/webhooks": WEBHOOKS,
    "GET /v1/webhooks/{name}": OPERATE,
    "PATCH /v1/webhooks/{name}": WEBHOOKS,
    "DELETE /v1/webhooks/{name}": WEBHOOKS,
    "POST /v1/webhooks/{name}/rotate": WEBHOOKS,
    "POST /v1/webhooks/{name}/test": WEBHOOKS,
    "GET /v1/webhooks/{name}/deliveries": OPERATE,
    "POST /v1/webhooks/deliveries/{delivery_id}/retry": WEBHOOKS,
    "GET /v1/alerts": OPERATE,
    "POST /v1/alerts/test": Rule((P.ALERTS_WRITE,), Reach.INSTALLATION),
    "GET /v1/alerts/{alert_id}": OPERATE,
    "POST /v1/alerts/{alert_id}/acknowledge": ALERTS,
    "GET /v1/silences": OPERATE,
    "POST /v1/silences": ALERTS,
    "DELETE /v1/silences/{silence_id}": ALERTS,
    # Each role has it.
    "GET /v1/access": READ,
    "GET /v1/keys": KEYS,
    "POST /v1/keys": KEYS,
    "GET /v1/keys/{key}": KEYS,
    "POST /v1/keys/{key}/rotate": KEYS,
    "DELETE /v1/keys/{key}": KEYS,
    "GET /v1/sessions": KEYS,
    "DELETE /v1/sessions": KEYS,
    "DELETE /v1/sessions/{session_id}": KEYS,
    "GET /v1/audit": _namespace(P.AUDIT_READ),
}
"""By method and path, as the routes have them."""


def check_complete(endpoints: Iterable[str], rules: Mapping[str, Rule], where: str = __name__) -> None:
    """Raise RuntimeError unless each endpoint has a rule and each rule an endpoint.

    Args:
        where: the module that has the rules.
    """
    found = set(endpoints)
    if missing := found - rules.keys():
        raise RuntimeError(f"No rule in {where} for: {', '.join(sorted(missing))}")
    if unused := rules.keys() - found:
        raise RuntimeError(f"Rules in {where} without an endpoint: {', '.join(sorted(unused))}")


def add_to(document: dict[str, Any]) -> dict[str, Any]:
    """Add to the operations of an OpenAPI document what a key needs for them."""
    for endpoint, rule in RULES.items():
        method, path = endpoint.split(" ")
        operation = document["paths"][path][method.lower()]
        needed = " and ".join(f"`{permission}`" for permission in rule.permissions)
        operation["description"] = f"{operation.get('description', '')}\n\nNeeds {needed}.{ABOUT[rule.reach]}"
    return document


def matrix() -> Iterator[tuple[str, tuple[Permission, ...], list[Role]]]:
    """Yield each endpoint, its permissions, and the roles that may use it."""
    for endpoint, rule in RULES.items():
        yield endpoint, rule.permissions, [role for role in Role if rule.allows(role)]
