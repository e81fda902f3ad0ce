"""Asks an agent from a process that has DATABASE_URL, or runs beside `minion up`."""

import asyncio

from sqlalchemy.orm import Session

from shared.database import get_engine
from shared.registry import AgentRegistry

with Session(get_engine()) as session:
    agent = AgentRegistry(session).get_agent("support-desk")
    print(asyncio.run(agent.process_message("I was charged twice", timeout=60)).content)
