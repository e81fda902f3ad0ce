"""A returns desk: a function in the sandbox, a builtin tool, and the agent that uses both."""

from typing import Annotated, Any, Literal

from pydantic import BaseModel, Field

import minions

DAYS = {"clothes": 30, "electronics": 14}


class Request(BaseModel):
    order: Annotated[str, Field(pattern=r"^R-\d+$")]
    text: Annotated[str, Field(min_length=1, max_length=10_000)]


class Label(BaseModel):
    carrier: Literal["post", "courier"]
    number: str


@minions.function(timeout=2)
def return_window(kind: Literal["clothes", "electronics"], age: Annotated[int, Field(ge=0)]) -> bool:
    """Return whether an order may still be sent back.

    Args:
        kind: the kind of goods
        age: days since the delivery
    """
    return age <= DAYS[kind]


@minions.tool(effect="idempotent")
def print_label(order: str, carrier: Literal["post", "courier"], context: Any) -> Label:
    """Print the label for a parcel, once for each call.

    Args:
        order: the number of the order, such as R-17
        carrier: who takes the parcel
    """
    return Label(carrier=carrier, number=f"{order}-{context.idempotency_key[:8]}")


desk = minions.Agent(
    "returns-desk",
    description="Decides whether an order may be sent back, and prints the label.",
    system_prompt="You handle returns. Check the window first. Print a label only if the order may be sent back.",
    tools=[return_window, print_label],
    input_schema=Request,
    capabilities=["returns"],
    max_turns=6,
)
