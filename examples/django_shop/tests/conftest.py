"""Django without pytest-django: one database in memory, and Celery's tasks at once."""

import os
from pathlib import Path

import pytest

os.environ |= {"DJANGO_SETTINGS_MODULE": "shop.settings", "SHOP_DATABASE": ":memory:", "SHOP_EAGER": "1"}


@pytest.fixture(scope="session")
def tables():
    import django
    from django.core.management import call_command
    from django.db import connection
    from django.test.utils import setup_test_environment, teardown_test_environment

    django.setup()
    setup_test_environment()
    call_command("migrate", run_syncdb=True, verbosity=0)
    yield
    connection.close()
    teardown_test_environment()


@pytest.fixture
def order(tables):
    from orders.models import Order

    order = Order.objects.create(number=17)
    yield order
    order.delete()


@pytest.fixture
def returns(minions):
    minions.apply(Path(__file__).parent.parent / "agents.yaml")
    return minions
