"""Requests, messages and budgets, as submitters send them."""

from __future__ import annotations

from typing import Annotated, Any, Literal, Self

from pydantic import BaseModel, ConfigDict, Field, StringConstraints, ValidationError, model_validator

from shared.contracts.content import text_of
from shared.contracts.strict_model import Moment, Strict, faults_of
from shared.errors import InvalidInput

LabelName = Annotated[str, StringConstraints(min_length=1, max_length=100)]
LabelValue = Annotated[str, StringConstraints(max_length=255)]
Lane = Literal["direct", "batch", "auto"]
"""Ways to make model calls: at once, in Message Batches at half the price, or in batches if the deadline allows it."""


class Budget(Strict):
    """Limits on a task and everything below it: model tokens, dollars, steps, seconds since it first ran.

    `on_breach`: whether a step without room makes its task wait for a decision, or fails it.
    """

    tokens: int | None = Field(None, ge=1, le=1_000_000_000_000)
    dollars: float | None = Field(None, ge=0.000001, le=1_000_000_000)
    steps: int | None = Field(None, ge=1, le=1_000_000_000)
    seconds: float | None = Field(None, ge=0.000001, le=1_000_000_000)
    on_breach: Literal["ask", "fail"] = "ask"

    @model_validator(mode="after")
    def _limits_something(self) -> Self:
        if self.tokens is self.dollars is self.steps is self.seconds is None:
            raise ValueError("a budget must limit something: tokens, dollars, steps or seconds")
        return self


class BudgetChange(Strict):
    """An increase of a budget's limits; or `stop`: from now on the budget fails tasks that find no room in it."""

    add_tokens: int | None = Field(None, ge=1, le=1_000_000_000_000)
    add_dollars: float | None = Field(None, ge=0.000001, le=1_000_000_000)
    add_steps: int | None = Field(None, ge=1, le=1_000_000_000)
    add_seconds: float | None = Field(None, ge=0.000001, le=1_000_000_000)
    stop: bool = False

    @model_validator(mode="after")
    def _one_or_the_other(self) -> Self:
        adds = any(getattr(self, f"add_{what}") is not None for what in ("tokens", "dollars", "steps", "seconds"))
        if adds == self.stop:
            raise ValueError("give add_tokens, add_dollars, add_steps or add_seconds, or else `stop`")
        return self


class Message(BaseModel):
    """One message of a conversation: a role, and text or blocks as the Messages API takes them.

    `shared.contracts.content` describes and checks the blocks.
    """

    model_config = ConfigDict(frozen=True)

    role: Literal["user", "assistant", "system", "tool"]
    content: str | list[dict[str, Any]]

    @property
    def text(self) -> str:
        """The text; other blocks are not in it."""
        return text_of(self.content)

    @property
    def is_blank(self) -> bool:
        """True if it is nothing but blank text."""
        return isinstance(self.content, str) and not self.content.strip()


class HumanMessage(Message):
    """A message from a person: `HumanMessage(content="Search for…")`."""

    role: Literal["user"] = "user"


class AIMessage(Message):
    """A message from an agent."""

    role: Literal["assistant"] = "assistant"


class SystemMessage(Message):
    """An instruction to the agent."""

    role: Literal["system"] = "system"


class TaskRequest(Strict):
    """A submitter's request: an agent, a capability, or messages for routing, and the input.

    Times are absolute, with a time zone. `key` is the tenant key. A higher `priority` runs sooner. While a task holds
    the `unique_key` (until it first starts, or until it ends: `unique_while`, by default `running`), another request
    with that key returns the existing task. `lane` overrides that of the agent.
    """

    agent: str | None = Field(None, max_length=200)
    capability: str | None = Field(None, max_length=200)
    input: Any = None
    messages: list[Any] | None = Field(None, max_length=1000)
    idempotency_key: str | None = Field(None, min_length=1, max_length=255)
    conversation_id: str | None = Field(None, min_length=1, max_length=255)
    key: str | None = Field(None, min_length=1, max_length=255)
    labels: dict[LabelName, LabelValue] | None = Field(None, max_length=64)
    priority: int | None = Field(None, ge=-100, le=100)
    run_at: Moment | None = Field(None, strict=False)
    deadline: Moment | None = Field(None, strict=False)
    traceparent: str | None = Field(None, pattern=r"^[0-9a-f]{2}-[0-9a-f]{32}-[0-9a-f]{16}-[0-9a-f]{2}$")
    namespace: str = Field("default", min_length=1, max_length=100)
    unique_key: str | None = Field(None, min_length=1, max_length=255)
    unique_while: Literal["pending", "running"] | None = None
    budget: Budget | None = None
    lane: Lane | None = None

    @model_validator(mode="after")
    def _has_time_to_run(self) -> TaskRequest:
        if self.run_at and self.deadline and self.run_at >= self.deadline:
            raise ValueError("run_at must be before deadline: the task could never run")
        return self

    @model_validator(mode="after")
    def _holds_something(self) -> TaskRequest:
        if self.unique_while and not self.unique_key:
            raise ValueError("unique_while must come with unique_key: it says how long that is held")
        return self

    @classmethod
    def parse(cls, data: Any) -> TaskRequest:
        """Parse a request from plain data.

        Raises:
            InvalidInput: names each wrong field.
        """
        try:
            return cls.model_validate(data)
        except ValidationError as error:
            faults = faults_of(error)
            raise InvalidInput("The request is not valid: " + "; ".join(faults) + ".", faults=faults) from None


class Usage(BaseModel):
    """Use of a task: tokens, and micro-dollars if the price is known."""

    input_tokens: int = 0
    output_tokens: int = 0
    cost_microdollars: int = 0
