"""Submits tasks from asyncio and reads their outputs as a dataclass. Needs MINION_API_URL and MINION_API_KEY."""

import asyncio
from dataclasses import dataclass

from minions import AsyncClient, errors


@dataclass
class Sorted:
    """The output of `triage`."""

    queue: str


async def main() -> None:
    """Submit one task, then many."""
    async with AsyncClient() as client:
        task = await client.submit("triage", {"text": "The site is down"}, output=Sorted)
        async for event in client.follow(task):
            print(event.type)
        print((await task.result()).queue)

        tickets = [{"text": f"Refund order {number}"} for number in range(100)]
        async for result in client.map("triage", tickets, output=Sorted, failures="yield"):
            print(result.message if isinstance(result, errors.MinionsError) else result.queue)


asyncio.run(main())
