"""Customers return orders."""

from functools import partial

from django.db import transaction
from django.http import HttpRequest, JsonResponse
from django.shortcuts import get_object_or_404
from django.views.decorators.http import require_POST

from orders.models import Order
from orders.tasks import handle_return


@require_POST
@transaction.atomic
def return_order(request: HttpRequest, number: int) -> JsonResponse:
    """Note the return; the agent starts after the commit."""
    order = get_object_or_404(Order, number=number)
    transaction.on_commit(partial(handle_return.delay, order.pk, request.POST["reason"]))
    return JsonResponse({"order": number}, status=202)
