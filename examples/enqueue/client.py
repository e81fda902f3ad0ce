"""Submits tasks over HTTP. Needs MINION_API_URL and MINION_API_KEY."""

from minions import Client, errors

with Client() as client:
    task = client.submit("triage", {"text": "The site is down"}, idempotency_key="ticket-17", labels={"team": "web"})
    print(task.result(timeout=60))

    ids = client.submit_many({"agent": "triage", "input": {"text": f"Refund order {n}"}} for n in range(100))
    print(len(ids), "tasks; the last one", client.wait(ids[-1], timeout=60).state)

    try:
        client.submit("triage", {"txt": "a misspelt field"})
    except errors.InvalidInput as error:
        print(error.message)
