"""A service that hands complaints to an agent: `fastapi run complaints.py`. Needs MINION_API_URL and MINION_API_KEY."""

from collections.abc import Iterator
from typing import Annotated, Any

from fastapi import Depends, FastAPI

from minions import Client

app = FastAPI()


def minions_client() -> Iterator[Client]:
    """A client for one request."""
    with Client() as client:
        yield client


Minions = Annotated[Client, Depends(minions_client)]


@app.post("/complaints/{order}", status_code=202)
def complain(order: int, text: str, client: Minions) -> dict[str, str]:
    """Submit a complaint. One that is sent twice is one task."""
    task = client.submit("complaint-desk", {"order": order, "text": text}, idempotency_key=f"complaint-{order}")
    return {"task": task.id}


@app.get("/complaints/{task}")
def look(task: str, client: Minions) -> dict[str, Any]:
    """Return how far a complaint is."""
    found = client.get(task)
    return {"state": found.state, "answer": found.output if found.succeeded else None}
