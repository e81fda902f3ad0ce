"""Webhooks: creating, changing and removing one, the outcome of each message, and sending one again.

The path of a webhook's address may be a secret, as in chats: pages show the host alone.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any, Literal
from urllib.parse import quote, urlsplit
from uuid import UUID

from fastapi import APIRouter, Depends, Request, Response

from orchestrator.api import webhooks as api
from orchestrator.api.actors import Actor
from orchestrator.api.parameters import (
    Database,
    NamedPageQuery,
    Namespace,
    NamespaceQuery,
    Statements,
    Text,
    in_namespace,
)
from orchestrator.api.task_ids import SHORTEST, digits_of
from orchestrator.api.webhooks import DeliveryPageQuery, Webhook, WebhookDelivery
from orchestrator.pages.access import Form, Reading
from orchestrator.pages.forms import NOTHING, DoneQuery, Typed, as_body, corrected, done, given, lines_of, show
from orchestrator.pages.rendering import Page
from shared.errors import InvalidInput

FINAL_STATES = ("succeeded", "failed", "cancelled", "expired")
LIVE = "/live/webhooks"
DONE = {
    "change": "Changed.",
    "remove": "The webhook was removed, with its messages.",
    "enable": "Enabled. Messages that waited are sent.",
    "disable": "Disabled. It gets no new messages, and pending ones wait.",
    "retry": "The message is sent again.",
}

router = APIRouter(route_class=Page, include_in_schema=False)


class WebhooksQuery(NamedPageQuery, DoneQuery):
    """The page, and the act that was just done."""


class DeliveriesQuery(NamespaceQuery, DoneQuery):
    """The page of the messages, and the act that was just done."""

    status: Literal["", "pending", "delivered", "failed"] = ""
    cursor: UUID | None = None


@router.get("/webhooks")
def list_webhooks(
    query: Annotated[WebhooksQuery, Depends(in_namespace(WebhooksQuery))], request: Request, database: Reading
) -> Response:
    """The webhooks of a namespace, by name."""
    return _list(request, database, query)


@router.post("/webhooks/create")
def create(
    query: Namespace, form: Form, request: Request, database: Database, reading: Reading, actor: Actor
) -> Response:
    """Adds a webhook, and shows its secret this once."""

    def act() -> Response:
        asked = {"namespace": query.namespace, **given(form, "name", "url"), **_filters(form)}
        added = api.add_webhook(as_body(asked), request, database, actor)
        there = DeliveriesQuery(namespace=added["namespace"])
        return _page(request, reading, added["name"], there, secret=added["secret"])

    again = WebhooksQuery(namespace=query.namespace)
    return corrected("create", form, act, lambda typed: _list(request, reading, again, typed))


def _list(request: Request, database: Reading, query: WebhooksQuery, typed: Typed = NOTHING) -> Response:
    page = api.list_webhooks(query, database)
    return show(
        request,
        "webhooks.html",
        "Webhooks",
        typed,
        webhooks=[_shown(row) for row in page.items],
        namespace=query.namespace,
        done=DONE.get(query.done),
        next=page.next and {"namespace": query.namespace, "cursor": page.next},
        live=LIVE,
    )


@router.get("/webhooks/{name}")
def show_webhook(
    name: Text,
    query: Annotated[DeliveriesQuery, Depends(in_namespace(DeliveriesQuery))],
    request: Request,
    database: Reading,
) -> Response:
    """One webhook, and its messages, the newest first."""
    return _page(request, database, name, query)


@router.post("/webhooks/{name}/change")
def change(
    name: Text, query: Namespace, form: Form, request: Request, database: Database, reading: Reading, actor: Actor
) -> Response:
    """Changes the address of the webhook, or what it reports."""

    def act() -> Response:
        asked = {**given(form, "url"), **_filters(form)}
        api.change_webhook(name, as_body(asked), query, request, database, actor)
        return _back(name, query, "change")

    again = DeliveriesQuery(namespace=query.namespace)
    return corrected("change", form, act, lambda typed: _page(request, reading, name, again, typed))


@router.post("/webhooks/{name}/remove")
def remove(name: Text, query: Namespace, form: Form, database: Database, actor: Actor) -> Response:
    """Removes the webhook and its messages."""
    api.remove_webhook(name, query, database, actor)
    return done("/webhooks", "remove", namespace=query.namespace)


@router.post("/webhooks/{name}/enable")
def enable(name: Text, query: Namespace, form: Form, request: Request, database: Database, actor: Actor) -> Response:
    """Lets the webhook get messages again."""
    return _change(name, query, request, database, actor, enabled=True)


@router.post("/webhooks/{name}/disable")
def disable(name: Text, query: Namespace, form: Form, request: Request, database: Database, actor: Actor) -> Response:
    """Keeps the webhook from getting messages."""
    return _change(name, query, request, database, actor, enabled=False)


@router.post("/webhooks/{name}/test")
def test(
    name: Text, query: Namespace, form: Form, request: Request, database: Statements, reading: Reading, actor: Actor
) -> Response:
    """Sends a test message now, and shows how the endpoint answered."""
    answer = api.send_test(name, query, request, database, actor)
    return _page(request, reading, name, DeliveriesQuery(namespace=query.namespace), test=answer)


@router.post("/webhooks/{name}/retry")
def retry(
    name: Text, query: Namespace, form: Form, request: Request, database: Database, reading: Reading, actor: Actor
) -> Response:
    """Sends a message again."""

    def act() -> Response:
        api.retry_delivery(_delivery(form), database, actor)
        return _back(name, query, "retry")

    again = DeliveriesQuery(namespace=query.namespace)
    return corrected("retry", form, act, lambda typed: _page(request, reading, name, again, typed))


def _page(
    request: Request,
    database: Reading,
    name: str,
    query: DeliveriesQuery,
    typed: Typed = NOTHING,
    test: dict[str, Any] | None = None,
    secret: str | None = None,
) -> Response:
    asked = DeliveryPageQuery(namespace=query.namespace, status=query.status or None, cursor=query.cursor)
    webhook = api.get_webhook(name, query, database)
    page = api.list_deliveries(name, asked, database)
    return show(
        request,
        "webhook.html",
        "Webhook",
        typed,
        webhook=_shown(webhook),
        deliveries=[WebhookDelivery.model_validate(row).model_dump() for row in page.items],
        only=query.status,
        test=test,
        secret=secret,
        done=DONE.get(query.done),
        next=page.next and {"namespace": query.namespace, "status": query.status, "cursor": page.next},
        next_text="Older messages",
        live=LIVE,
    )


def _change(
    name: str, query: NamespaceQuery, request: Request, database: Database, actor: Actor, *, enabled: bool
) -> Response:
    api.change_webhook(name, as_body({"enabled": enabled}), query, request, database, actor)
    return _back(name, query, "enable" if enabled else "disable")


def _back(name: str, query: NamespaceQuery, act: str) -> Response:
    return done(f"/webhooks/{quote(name, safe='')}", act, namespace=query.namespace)


def _filters(form: Mapping[str, str]) -> dict[str, Any]:
    """Return what a form's webhook reports."""
    labels = {}
    for line in lines_of(form, "labels"):
        name, separator, value = line.partition("=")
        if not separator:
            raise InvalidInput(f"A label must be written name=value, like `env=prod`, not {line[:50]!r}.")
        labels[name] = value
    return {
        "events": [event for event in ("tasks", "alerts") if f"event.{event}" in form],
        "states": [state for state in FINAL_STATES if f"state.{state}" in form],
        "agents": lines_of(form, "agents"),
        "labels": labels,
        "roots_only": "subtasks" not in form,
    }


def _delivery(form: dict[str, str]) -> str:
    try:
        return digits_of(form.get("delivery", ""), what="delivery")
    except ValueError:
        raise InvalidInput(f"A delivery is named by its id, or its first {SHORTEST} characters or more.") from None


def _shown(row: dict[str, Any]) -> dict[str, Any]:
    """Return a webhook as the API shows it to this reader, with the host in place of the address, and its form."""
    webhook = Webhook.model_validate(row).model_dump()
    address = urlsplit(webhook.pop("url"))
    events, states = ([f"{of[:-1]}.{each}" for each in webhook[of]] for of in ("events", "states"))
    return {
        **webhook,
        "host": f"{address.scheme}://{address.netloc.rpartition('@')[2]}/…",
        "checked": [*events, *states, *([] if webhook["roots_only"] else ["subtasks"])],
        "label_lines": "\n".join(f"{name}={value}" for name, value in webhook["labels"].items()),
    }
