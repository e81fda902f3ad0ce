"""Submits a task as a Celery message. Needs REDIS_URL; knows nothing of Minions but two names."""

import os

from celery import Celery

app = Celery(broker=os.environ["REDIS_URL"])
sent = app.send_task(
    "minion.submit",
    kwargs={"agent": "triage", "input": {"text": "Timeout at checkout"}},
    queue="minion.submit",
    ignore_result=True,
)
print(sent.id)
