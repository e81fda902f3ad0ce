"""Plain Celery."""

from __future__ import annotations

import os
from functools import cache
from typing import Any

from anthropic import Anthropic
from celery import Celery, shared_task


def make_app(broker: str, backend: str, *, late: bool = False) -> Celery:
    """Return an application with this broker and result backend.

    Args:
        late: acknowledge a message when its task has ended, as the documentation recommends if no task may be lost
            with its worker. By default, a message is acknowledged before its task runs.
    """
    app = Celery("bench", broker=broker, backend=backend, set_as_current=False)
    app.conf.broker_connection_retry_on_startup = True
    if late:
        app.conf.update(task_acks_late=True, task_reject_on_worker_lost=True, worker_prefetch_multiplier=1)
    return app


@shared_task(name="bench.noop")
def noop(value: Any) -> Any:
    """Return the argument."""
    return value


@shared_task(name="bench.model_call")
def model_call(value: Any) -> Any:
    """Return the reply of the model."""
    content = [{"role": "user", "content": str(value)}]
    message = _anthropic().messages.create(model="claude-sonnet-5-5", max_tokens=1000, messages=content)  # type: ignore[arg-type]
    return message.content[0].text  # type: ignore[union-attr]


@cache
def _anthropic() -> Anthropic:
    return Anthropic()


@shared_task(name="bench.echo")
def echo(value: Any) -> Any:
    """Return the output of the last step."""
    return value


@shared_task(name="bench.join")
def join(outputs: list[Any]) -> int:
    """Return the number of outputs."""
    return len(outputs)


app = make_app(os.environ.get("BENCH_BROKER", ""), os.environ.get("BENCH_BACKEND", ""), late="BENCH_LATE" in os.environ)
