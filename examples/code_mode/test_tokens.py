"""The same question with and without code mode: model turns and tokens, on the scripted model.

    pytest -s examples/code_mode

A token is counted as four characters. A request repeats the one before it, which a prompt cache may have; `new` counts
only what it adds.
"""

import json
from pathlib import Path

from minions.testing import text, tool_use

QUESTION = {"email": "mia@example.com", "month": "2026-11"}
ANSWER = {"orders": 3, "euros": 1643.3}
ORDERS = [f"W-1{number:02}" for number in range(1, 13)]
PROGRAM = """
customer = await find_customer(email="mia@example.com")
numbers = await list_orders(customer=customer["customer"], month="2026-11")
orders = await asyncio.gather(*[get_order(order=number) for number in numbers])
lost = [order for order in orders if order["status"] == "lost"]
wanted = sorted({line["product"] for order in lost for line in order["lines"]})
products = await asyncio.gather(*[get_product(product=name) for name in wanted])
prices = {product["product"]: product["price"] for product in products}
euros = 0
for order in lost:
    rate = await exchange_rate(currency=order["currency"], day="2026-11-30")
    euros += rate * sum(prices[line["product"]] * line["quantity"] for line in order["lines"])
return {"orders": len(lost), "euros": round(euros, 2)}
"""


def one_by_one():
    """A model that calls as much as it can in each turn."""
    products = [f"P-{number}" for number in range(1, 8)]
    return [
        tool_use(("find_customer", {"email": "mia@example.com"})),
        tool_use(("list_orders", {"customer": "C-1", "month": "2026-11"})),
        tool_use(*(("get_order", {"order": order}) for order in ORDERS)),
        tool_use(
            *(("get_product", {"product": product}) for product in products),
            ("exchange_rate", {"currency": "EUR", "day": "2026-11-30"}),
        ),
        text(json.dumps(ANSWER)),
    ]


def by_program():
    return [tool_use(("run_program", {"code": PROGRAM})), text(json.dumps(ANSWER))]


def tokens(value):
    return len(json.dumps(value)) // 4


def measured(minions, agent, replies):
    """Run the agent; return its turns, its calls of tools, and the tokens of its model."""
    minions.model.script[:] = replies
    minions.model.requests.clear()
    task = minions.submit(agent, QUESTION)
    minions.run_until_idle()
    task = minions.client.get(task.id)
    assert task.output == ANSWER, task.error
    steps = minions.journal(task)
    sizes = [
        tokens([request.get(part) for part in ("system", "tools", "messages")]) for request in minions.model.requests
    ]
    calls = [step for step in steps if step["kind"] == "function_call"]
    return {
        "turns": len(sizes),
        "calls": len(calls),
        "sent": sum(sizes),
        "new": sizes[-1],
        "written": sum(tokens(step["output"]["content"]) for step in steps if step["kind"] == "model_call"),
    }


def test_tokens_with_and_without_code_mode(minions, capsys):
    minions.apply(Path(__file__).with_name("desk.yaml"))
    plain = measured(minions, "desk", one_by_one())
    code = measured(minions, "desk-code", by_program())
    # The program found the answer; it was not in the script alone.
    received = minions.model.requests[-1]["messages"][-1]["content"][0]["content"]
    assert json.loads(received if isinstance(received, str) else received[0]["text"])["result"] == ANSWER
    with capsys.disabled():
        print(f"\n{'':12}" + "".join(f"{name:>10}" for name in plain))
        for name, figures in (("one by one", plain), ("code mode", code)):
            print(f"{name:12}" + "".join(f"{figure:>10,}" for figure in figures.values()))
    assert code["turns"] < plain["turns"]
    assert code["sent"] < plain["sent"] / 2
