"""The format of a case: a recorded task, and what people expect of an agent that runs against it.

`minion eval schema` prints its JSON Schema, which is in the documentation too.
"""

from __future__ import annotations

from typing import Any, Literal

from pydantic import Field, ValidationError

from shared.contracts.json_schema import check_schema
from shared.contracts.recording import RecordedTask, parse_recording
from shared.contracts.strict_json import check
from shared.contracts.strict_model import Strict, faults_of
from shared.errors import InvalidInput

FORMAT = 1
"""The version of the format that this release writes, and the latest that it reads."""

Schema = dict[str, Any]


class Origin(Strict):
    """Where a case comes from. `redacted` lists the JSON paths whose values were replaced."""

    task: str
    at: str
    release: str
    redacted: list[str] = Field([])


class ExpectedTools(Strict):
    """Expectations of the tool calls: `called` all, `never` any, `in_order` with others in between, or `exactly`."""

    called: list[str] = Field([])
    never: list[str] = Field([])
    in_order: list[str] = Field([])
    exactly: list[str] | None = None


class Limits(Strict):
    """The most that the task and those below it may use. `seconds` is from submission to end."""

    steps: int | None = Field(None, ge=0)
    tokens: int | None = Field(None, ge=0)
    dollars: float | None = Field(None, ge=0)
    seconds: float | None = Field(None, ge=0)


class ExpectedText(Strict):
    """Parts that the output, as text, must contain or lack. Letters may be of either case."""

    contains: list[str] = Field([])
    lacks: list[str] = Field([])


class Judge(Strict):
    """An agent that judges. Its input is `{question, input, output, calls}`, and its output `{passed, reason}` or
    `{score, reason}`, with a score from 0 to 1.
    """

    agent: str
    question: str
    at_least: float = Field(0.5, ge=0, le=1)


class Expectations(Strict):
    """What a run must be like at the level `judge`. All of it must hold; what is left out is not judged."""

    state: Literal["succeeded", "failed"] | None = "succeeded"
    tools: ExpectedTools = ExpectedTools()
    arguments: dict[str, Schema] = Field({}, description="Schemas of the arguments of every call, by tool.")
    limits: Limits = Limits()
    output: Any = None
    output_schema: Schema | None = None
    text: ExpectedText = ExpectedText()
    judges: list[Judge] = Field([], max_length=10)


class Case(Strict):
    """A recorded task with the expectations of it."""

    minions_case: Literal[1] = Field(description="The version of this format.")
    name: str = Field(min_length=1, max_length=200)
    description: str = ""
    recorded: Origin | None = None
    agents: dict[str, int] = Field({}, description="The versions of the agents that took part.")
    tools: dict[str, int] = Field({}, description="The active versions of the agent's tools when it was recorded.")
    task: RecordedTask
    expect: Expectations = Expectations()


def parse_case(data: Any, *, where: str) -> Case:
    """Return a case from plain data.

    Raises:
        InvalidInput: names the place, and what to do.
    """
    if not isinstance(data, dict) or "minions_case" not in data:
        raise InvalidInput(
            f"{where}: is not a case: it must begin with `minions_case: {FORMAT}`. `minion record` writes one."
        )
    version = data["minions_case"]
    if isinstance(version, int) and version > FORMAT:
        raise InvalidInput(
            f"{where}: has the format {version}, and this release reads up to {FORMAT}. Use the release that wrote it, "
            "or a later one."
        )
    try:
        check(data, what="The case")
        case = Case.model_validate(data)
        parse_recording(data["task"], what="`task`")
        for tool, schema in case.expect.arguments.items():
            check_schema(schema, where=f"expect.arguments.{tool}")
        if case.expect.output_schema is not None:
            check_schema(case.expect.output_schema, where="expect.output_schema")
    except ValidationError as error:
        raise InvalidInput(f"{where}: is not a valid case: " + "; ".join(faults_of(error)) + ".") from None
    except InvalidInput as error:
        raise InvalidInput(f"{where}: {error.message}") from None
    return case


def schema() -> dict[str, Any]:
    """Return the JSON Schema of a case."""
    return {"$schema": "https://json-schema.org/draft/2020-12/schema", **Case.model_json_schema()}
