"""Plain Celery, set up as in its documentation: defaults, JSON, and a result backend."""

from __future__ import annotations

import os
from typing import Any

from celery import Celery

app = Celery("plain", broker=os.environ["PLAIN_BROKER"], backend=os.environ["PLAIN_BACKEND"])


@app.task(name="plain.noop")
def noop(value: Any) -> Any:
    """Return nothing."""
    return value
