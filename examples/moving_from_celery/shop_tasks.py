"""Tasks of a shop that uses Celery, which now run in Minions. Their call sites stay as they are."""

from typing import Any

from celery import Celery

from minions.celery import durable_task

app = Celery("shop", broker="redis://127.0.0.1:6379/0")


class MailIsDown(Exception):
    """The mail server does not answer."""


@durable_task(capability="shop")
@app.task(bind=True, max_retries=2, default_retry_delay=0)
def send_receipt(self: Any, order_id: int, *, language: str = "en") -> dict[str, Any]:
    """Sends the receipt of an order."""
    if order_id <= 0:
        raise ValueError(f"There is no order {order_id}.")
    if self.request.retries < order_id % 3:
        raise self.retry(exc=MailIsDown("try again"))
    return {"order_id": order_id, "language": language, "retries": self.request.retries}


@durable_task(capability="shop")
@app.task
def report(results: list[dict[str, Any]]) -> dict[str, Any]:
    """Counts the receipts of a batch: it was the body of a chord."""
    return {"sent": sum(result["state"] == "succeeded" for result in results)}
