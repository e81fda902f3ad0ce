"""Celery tasks of the shop."""

from celery import shared_task

from minions import Client
from orders.models import Order


@shared_task
def handle_return(order_id: int, reason: str) -> None:
    """Give a return to the agent. Celery may run this twice: the idempotency key keeps it one task."""
    order = Order.objects.get(pk=order_id)
    with Client() as client:
        task = client.submit(
            "returns", {"order": order.number, "reason": reason}, idempotency_key=f"return-{order.number}"
        )
    order.task = task.id
    order.save()
