"""What every agent is to the minion: input in, outcome out, both checked against their schemas."""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import replace
from typing import Any

from shared.errors import InvalidInput, InvalidOutput
from shared.json_schema import validate
from shared.json_values import JsonValue, check
from shared.messages import checked_input, coerce_all
from shared.schemas import AgentDefinition, AIMessage, Message
from shared.settings import get_settings
from shared.tasks import content_of
from workers.journal import Journal
from workers.outcomes import Outcome, Succeeded, Suspended
from workers.task import ClaimedTask


class BaseAgent(ABC):
    """An agent at work on one task."""

    def __init__(self, definition: AgentDefinition, task: ClaimedTask, journal: Journal) -> None:
        self.definition = definition
        self.task = task
        self.journal = journal

    @property
    def name(self) -> str:
        return self.definition.name

    def run(self) -> Outcome:
        """Works on the task until it is done or has to wait.

        Raises:
            MinionError: why it could not be done.
        """
        value = self.input()
        if self.definition.config.approval:
            # Messages that make no input are themselves what somebody approves.
            of_messages = value is None and self.task.messages is not None
            approved = self.journal.approval(self.name, self.task.messages if of_messages else value)
            if isinstance(approved, Suspended):
                return approved
            if of_messages:
                self.task = replace(self.task, messages=_checked(approved))
            else:
                value = approved
        outcome = self.work(value)
        if isinstance(outcome, Succeeded):
            self.check_output(outcome.output)
        return outcome

    @abstractmethod
    def work(self, value: JsonValue) -> Outcome:
        """Does what this kind of agent does, with an input that matches the input schema."""

    def input(self) -> JsonValue:
        """The task's input, or the one that its messages make, checked.

        Raises:
            InvalidInput: with every violation and its path.
        """
        said = None if self.task.messages is None else self.messages()
        return checked_input(self.definition.input_schema, self.task.input, said, agent=self.name)

    def check_output(self, output: JsonValue) -> None:
        """Raises InvalidOutput with every violation, or TooLarge."""
        what = f"The output of {self.name!r}"
        check(output, what=what, limit=get_settings().max_output_bytes)
        validate(self.definition.output_schema, output, what=what, error=InvalidOutput)

    def succeeded(self, output: JsonValue) -> Succeeded:
        """The outcome with what it adds to the conversation: what was said, and the answer."""
        return Succeeded(output, [*self.messages(), AIMessage(content=content_of(output))])

    def messages(self) -> list[Message]:
        """The task's messages.

        Raises:
            InvalidInput: one holds something else than text. What 0.2 accepted and began goes on as it began.
        """
        given = self.task.messages or []
        return [Message.model_validate(message) for message in given] if self.journal.known else coerce_all(given)


def _checked(approved: JsonValue) -> list[Any]:
    """Messages as somebody has approved them, and perhaps changed."""
    if not isinstance(approved, list) or not approved:
        raise InvalidInput("The value approved in place of the task's messages is not a list of messages.")
    return [message.model_dump() for message in coerce_all(approved)]
