"""The project. Its Celery application is loaded with it, so that `shared_task` uses it."""

from shop.celery import app

__all__ = ["app"]
