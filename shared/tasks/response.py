"""The standard response of every agent."""

from __future__ import annotations

from datetime import datetime
from typing import Any
from uuid import UUID

from pydantic import BaseModel, Field

from shared.contracts.requests import AIMessage, Message, Usage
from shared.tasks.states import State


class AgentResponse(BaseModel):
    """The standard response of every agent.

    `output` is the JSON that matches the agent's output schema; `content` is the same as text.
    """

    task_id: UUID
    agent: str
    state: State
    content: str
    output: Any = None
    conversation_id: str | None = None
    usage: Usage = Field(default_factory=Usage)
    finished_at: datetime | None = None

    @property
    def messages(self) -> list[Message]:
        """Return the response as messages, for callers that keep a history."""
        return [AIMessage(content=self.content)]
