"""Orders."""

from django.db import models


class Order(models.Model):
    """An order. `task` is the Minions task that handles its return."""

    number = models.IntegerField(unique=True)
    task = models.CharField(max_length=36, blank=True)
