"""An order and its task in one transaction, with psycopg. Needs DATABASE_URL: postgresql://user:password@host/name."""

import os
import sys

import psycopg
from psycopg.types.json import Jsonb

number, note = sys.argv[1:]
with psycopg.connect(os.environ["DATABASE_URL"]) as connection:
    connection.execute("CREATE TABLE IF NOT EXISTS orders (number bigint PRIMARY KEY, note text NOT NULL)")
    (task,) = connection.execute(
        "SELECT minion_submit('triage', %s, labels => %s, unique_key => %s)",
        [Jsonb({"text": note}), Jsonb({"order": number}), f"order-{number}-triage"],
    ).fetchone()
    connection.execute("INSERT INTO orders VALUES (%s, %s)", [number, note])
    # Leaving the block commits. Where it raises, as for a number that is taken, there is neither order nor task.
print(task)
