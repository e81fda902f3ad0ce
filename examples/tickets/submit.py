"""Submits tickets to the agent `ticket-desk`, and waits for all answers: `python submit.py 500`.

A ticket that is submitted twice, because this program was interrupted, is one task: its number is the idempotency key.
Needs MINION_API_URL and MINION_API_KEY.
"""

import sys
from collections import Counter

from minions import Client

TEXTS = ("The export is empty.", "I was charged twice.", "How do I add a colleague?")


def main(number: int) -> None:
    """Submit that many tickets, and print how they ended and what they cost."""
    requests = (
        {
            "agent": "ticket-desk",
            "input": {"account": account, "text": TEXTS[account % len(TEXTS)]},
            "idempotency_key": f"ticket-{account}",
        }
        for account in range(number)
    )
    with Client() as client:
        ids = client.submit_many(requests)
        print(f"{number} tickets submitted; `minion why {ids[0]}` shows the batch of the first one.", flush=True)
        ended = client.wait_many(ids, timeout=48 * 3600)
        print(dict(Counter(task.state for task in ended)))
        print(dict(Counter(task.output["urgency"] for task in ended if task.state == "succeeded")))
        cost = sum(step["cost_microdollars"] for task in ended for step in client.steps(task))
        print(f"${cost / 1e6:.4f}, half of what direct calls cost")


if __name__ == "__main__":
    main(int(sys.argv[1]) if len(sys.argv) > 1 else 500)
