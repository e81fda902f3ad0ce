"""A customer's request, the shop's Celery task and the agent in one process."""

from minions import testing


def test_return_is_decided_by_the_agent(returns, order, scripted_model):
    from django.test import Client

    scripted_model.script = [testing.text('{"accepted": true}')]
    answer = Client().post("/orders/17/return", {"reason": "too small"})
    assert answer.status_code == 202

    (task,) = returns.assert_submitted("returns", {"order": 17, "reason": "too small"}, times=1)
    order.refresh_from_db()
    assert order.task == task.id
    assert returns.finish(task).output == {"accepted": True}


def test_task_that_celery_runs_twice_asks_the_agent_once(returns, order):
    from orders.tasks import handle_return

    handle_return.delay(order.pk, "too small")
    handle_return.delay(order.pk, "too small")
    returns.assert_submitted("returns", times=1)


def test_order_that_does_not_exist_asks_no_agent(returns, tables):
    from django.test import Client

    assert Client().post("/orders/99/return", {"reason": "?"}).status_code == 404
    returns.assert_submitted("returns", times=0)
