"""The interface between agents and the minion: input in, outcome out, both checked against their schemas."""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import replace

from shared.contracts.documents import AgentDefinition
from shared.contracts.json_schema import validate
from shared.contracts.requests import AIMessage, Message
from shared.contracts.strict_json import JsonValue, check
from shared.errors import InvalidOutput
from shared.settings import get_settings
from shared.tasks.messages import approved_messages, checked_input, coerce_all
from shared.tasks.queries import content_of
from workers.journal import Journal
from workers.outcomes import Outcome, Succeeded, Suspended
from workers.task import ClaimedTask


class BaseAgent(ABC):
    """An agent at work on one task."""

    def __init__(self, definition: AgentDefinition, task: ClaimedTask, journal: Journal) -> None:
        self.definition = definition
        self.task = task
        self.journal = journal
        # A trial makes its calls at once: its caller waits for them.
        journal.lane = "direct" if journal.is_trial else task.lane or definition.config.lane
        journal.deadline = task.deadline

    @property
    def name(self) -> str:
        return self.definition.name

    def run(self) -> Outcome:
        """Work on the task until it is done or has to wait.

        Raises:
            MinionError: the reason why the task failed.
        """
        value = self.input()
        if self.definition.config.approval:
            # Messages that do not form an input are themselves what is approved.
            of_messages = value is None and self.task.messages is not None
            approved = self.journal.approval(self.name, self.task.messages if of_messages else value)
            if isinstance(approved, Suspended):
                return approved
            if of_messages:
                self.task = replace(self.task, messages=[each.model_dump() for each in approved_messages(approved)])
            else:
                value = approved
        outcome = self.work(value)
        if isinstance(outcome, Succeeded):
            self.check_output(outcome.output)
        return outcome

    @abstractmethod
    def work(self, value: JsonValue) -> Outcome:
        """Do the work of this kind of agent, with an input that matches the input schema."""

    def input(self) -> JsonValue:
        """Return the task's input, or the input that its messages form, checked.

        Raises:
            InvalidInput: with every violation and its path.
        """
        said = None if self.task.messages is None else self.messages()
        return checked_input(self.definition.input_schema, self.task.input, said, agent=self.name)

    def check_output(self, output: JsonValue) -> None:
        """Raise InvalidOutput with every violation, or TooLarge."""
        what = f"The output of {self.name!r}"
        check(output, what=what, limit=get_settings().max_output_bytes)
        validate(self.definition.output_schema, output, what=what, error=InvalidOutput)

    def succeed(self, output: JsonValue) -> Succeeded:
        """The outcome and the messages that it adds to the conversation: the task's input and the answer."""
        return Succeeded(output, [*self.messages(), AIMessage(content=content_of(output))])

    def messages(self) -> list[Message]:
        """The task's messages.

        Raises:
            InvalidInput: one holds something that the agent would not see. A task that began under 0.2 continues as it
                began.
        """
        given = self.task.messages or []
        if self.journal.known and all(isinstance(message["content"], str) for message in given):
            return [Message.model_validate(message) for message in given]
        return coerce_all(given, tools=self.definition.type == "function")
