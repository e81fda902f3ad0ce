"""Submits a task in the caller's own transaction. Needs DATABASE_URL, such as postgresql://user:password@host/name."""

import os

import psycopg
from psycopg.types.json import Jsonb

with psycopg.connect(os.environ["DATABASE_URL"]) as connection:
    connection.execute("CREATE TABLE IF NOT EXISTS tickets (id bigint PRIMARY KEY, text text NOT NULL)")
    connection.execute("INSERT INTO tickets VALUES (17, 'I was charged twice') ON CONFLICT DO NOTHING")
    task = connection.execute(
        "SELECT minion_submit('triage', %s, idempotency_key => 'ticket-row-17')",
        [Jsonb({"text": "I was charged twice"})],
    ).fetchone()
    # Leaving the block commits. Had it raised, there would be neither ticket nor task.
print(task[0])
