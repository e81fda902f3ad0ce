"""Prices a file of orders: `python nightly.py orders.csv`. Needs MINION_API_URL and MINION_API_KEY."""

import csv
import sys
from pathlib import Path

from minions import Client


def main(file: Path) -> int:
    """Submit a task for each order, wait for all, and print the sum in cents."""
    with Client() as client, file.open(newline="") as lines:
        orders = [{"boats": int(row["boats"])} for row in csv.DictReader(lines)]
        ids = client.submit_many({"agent": "pricing", "input": order} for order in orders)
        tasks = client.wait_many(ids, timeout=60)
    failed = [task for task in tasks if not task.succeeded]
    for task in failed:
        print(f"{task.id}: {task.error}", file=sys.stderr)
    print(sum(task.output["cents"] for task in tasks if task.succeeded))
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main(Path(sys.argv[1])))
