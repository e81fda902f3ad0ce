"""A conversation with an agent at the terminal: steps as they come, decisions in place, and other ways from a step."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any
from uuid import uuid4

import typer

from minions import Client, Task
from orchestrator.commands.attending import attend, print_outcome, replay_and_compare, text_of
from orchestrator.commands.client import ACTOR, connect
from orchestrator.commands.debug import print_part, print_steps
from orchestrator.commands.diff import print_comparison
from orchestrator.commands.journal_views import History, read_history
from orchestrator.commands.output import console as output
from orchestrator.commands.output import stderr
from orchestrator.commands.prompting import json_from, read_commands
from orchestrator.commands.task_ids import remember
from orchestrator.commands.tasks import print_why
from shared.errors import InvalidInput

HELP = """
TEXT             say it to the agent
/input JSON      submit an input in place of a message; @FILE reads a file
/steps           list the steps of the last task
/show N          step N: what the model saw, what came back, cost, time
/from N          continue from step N as a new task, and compare
/latest N        the same with the agent's active version
/edit N [JSON]   replace the output of step N, continue from there, and compare; alone, it opens an editor
/prompt TEXT     say this in place of the last message, in a copy of the conversation, and compare
/diff            compare with the run before
/why             why the last task is where it is
/follow          follow the last task again
/cancel          cancel it
/new             begin another conversation
/quit            leave; tasks continue
"""


def register(app: typer.Typer) -> None:
    """Add the command."""
    app.command("console")(console)


def console(
    agent: str = typer.Argument(help="The agent's name."),
    conversation_id: str | None = typer.Option(None, help="Continue this conversation; by default a new one."),
    namespace: str | None = typer.Option(None, help="The namespace."),
    key: str | None = typer.Option(None, help="The tenant."),
    actor: str | None = ACTOR,
) -> None:
    """Talk to an agent: see its steps, decide in place, change a prompt or a result, and compare the runs."""
    with connect(actor) as client:
        client.agent(agent, namespace)  # fails for an unknown agent or a wrong key before anything is typed
        options = {name: value for name, value in (("namespace", namespace), ("key", key)) if value is not None}
        Dialogue(client, agent, options, conversation_id).run()


class Dialogue:
    """One conversation, and the last task of it.

    Attributes:
        said: the messages so far, as another conversation would begin with them; None if they are not all known.
        before: the task to compare the last one with.
    """

    def __init__(self, client: Client, agent: str, options: dict[str, Any], conversation: str | None) -> None:
        self.client, self.agent, self.options = client, agent, options
        self.conversation = conversation or _new_conversation()
        self.said: list[dict[str, Any]] | None = None if conversation else []
        self.task: Task | None = None
        self.before: str | None = None
        self.acts: dict[str, Callable[[str], None]] = {
            "/input": lambda rest: self._submit(input=json_from(rest, {})),
            "/steps": lambda _: print_steps(self._history()),
            "/show": lambda rest: print_part(self._history(), _number(rest), "all"),
            "/from": lambda rest: self._replay(from_step=_number(rest)),
            "/latest": lambda rest: self._replay(from_step=_number(rest), pinned=False),
            "/edit": self._edit,
            "/prompt": self._say_otherwise,
            "/diff": lambda _: self._compare(),
            "/why": lambda _: print_why(self.client.why(self._last().id)),
            "/follow": lambda _: self._attend(self._last().id),
            "/cancel": lambda _: self._cancel(),
            "/new": lambda _: self._begin(_new_conversation(), []),
            "/help": lambda _: output.print(HELP.strip()),
        }

    def run(self) -> None:
        """Read lines until the end of the input."""
        stderr.print(f"{self.agent}, conversation {self.conversation}. /help lists the commands.")
        read_commands(lambda: f"{self.agent}> ", self.do, last=("/quit", "/q"))

    def do(self, written: str) -> None:
        """Do what a line says.

        Raises:
            MinionsError: it cannot be done, or the API cannot be reached.
        """
        word, _, rest = written.partition(" ")
        if not word:
            return
        if not word.startswith("/"):
            self._say(written)
        elif word in self.acts:
            self.acts[word](rest.strip())
        else:
            raise InvalidInput(f"{word[:50]!r} is no command; /help lists them.")

    def _begin(self, conversation: str, said: list[dict[str, Any]]) -> None:
        self.conversation, self.said = conversation, said
        stderr.print(f"Conversation {conversation}.")

    def _say(self, text: str) -> None:
        message = {"role": "user", "content": text}
        self._submit(messages=[message], conversation_id=self.conversation)
        self._heard([message])

    def _say_otherwise(self, text: str) -> None:
        """Say another text in place of the last one. A conversation keeps what was said, so this is a copy of it."""
        before = self._last()
        if not text:
            raise InvalidInput("/prompt needs the text to say in place of the last message.")
        if before.messages is None:
            raise InvalidInput("The last task had no message: /input submits another input.")
        if self.said is None:
            raise InvalidInput("The earlier messages of this conversation are not known here: /new begins another one.")
        users = [index for index, message in enumerate(self.said) if message["role"] == "user"]
        messages = [*self.said[: users[-1] if users else 0], {"role": "user", "content": text}]
        self._begin(_new_conversation(), [])
        self._submit(messages=messages, conversation_id=self.conversation)
        self._heard(messages)
        self._compare()

    def _heard(self, messages: list[dict[str, Any]]) -> None:
        """Keep what was said and answered."""
        if self.said is None:
            return
        self.said += messages
        task = self._last()
        if task.succeeded:
            text = text_of(task.output)
            answer = json.dumps(task.output, ensure_ascii=False) if text is None else text
            self.said.append({"role": "assistant", "content": answer})

    def _submit(self, **request: Any) -> None:
        made = self.client.submit(self.agent, **request, **self.options)
        remember(made.id)
        self.before = None if self.task is None else self.task.id
        self._attend(made.id)

    def _attend(self, task_id: str) -> None:
        """Follow a task. Ctrl-C leaves it running."""
        self.task = self.client.get(task_id)
        try:
            self.task = attend(self.client, task_id)
        except KeyboardInterrupt:
            stderr.print(f"\nTask {task_id} continues: /follow shows it again, /cancel ends it.")
            return
        print_outcome(self.task)

    def _edit(self, rest: str) -> None:
        number, _, written = rest.partition(" ")
        step = self._history().step(_number(number))
        self._replay(from_step=step["number"], edited_output=json_from(written.strip(), step["output"]))

    def _replay(self, **how: Any) -> None:
        before = self._last().id
        try:
            self.task = replay_and_compare(self.client, before, **how)
        except KeyboardInterrupt:
            stderr.print("\nThe replay continues: `minion follow @last` shows it.")
            return
        self.before = before

    def _compare(self) -> None:
        if self.before is None:
            raise InvalidInput("There is no run before this one.")
        print_comparison(self.client.diff(self.before, self._last().id))

    def _cancel(self) -> None:
        self.task = self.client.cancel(self._last().id, "Cancelled in the console.")
        stderr.print(f"{self.task.id} {self.task.state}")

    def _history(self) -> History:
        return read_history(self.client, self._last().id)

    def _last(self) -> Task:
        if self.task is None:
            raise InvalidInput("There is no task yet: say something to the agent.")
        return self.task


def _new_conversation() -> str:
    return f"console-{uuid4()}"


def _number(written: str) -> int:
    if not (written.isascii() and written.isdecimal() and len(written) < 10):
        raise InvalidInput(f"The number of a step is missing, such as 3; /steps lists them; not {written[:50]!r}.")
    return int(written)
