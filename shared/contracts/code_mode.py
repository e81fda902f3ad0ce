"""Code mode: a model writes programs that call its agent's tools, instead of calling them one by one."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Annotated, Any

from pydantic import BeforeValidator, Field

from shared.contracts.server_tools import Settings

RUN_PROGRAM = "run_program"
"""The tool by which a model runs a program."""
SEARCH_TOOLS = "search_tools"
"""The function by which a program finds functions that are not described."""
KEYWORDS = """
    False None True and as assert async await break class continue def del elif else except finally for from global if
    import in is lambda nonlocal not or pass raise return try while with yield
"""
BUILTINS = """
    abs aiter all anext any ascii bin bool bytearray bytes callable chr classmethod complex delattr dict dir divmod
    enumerate filter float format frozenset getattr globals hasattr hash hex id int isinstance issubclass iter len list
    locals map max memoryview min next object oct ord pow print property range repr reversed round set setattr slice
    sorted staticmethod str sum super tuple type vars zip
"""
TAKEN = frozenset([*KEYWORDS.split(), *BUILTINS.split(), SEARCH_TOOLS, "asyncio", "result", "ToolError"])
"""Names that already have a meaning in a program, whatever the release of Python."""


class CodeMode(Settings):
    """Limits of one program, and of the text about it.

    Attributes:
        max_calls: calls of tools, and sleeps.
        timeout: seconds in which the program itself runs. The time that its calls take does not count.
        memory_limit: megabytes that the program may add to the interpreter.
        max_output: characters of its result, and of its printed text, that the model receives.
        described_tokens: tokens for the descriptions of the functions. The model searches for those that do not fit.
    """

    max_calls: int = Field(100, ge=1, le=1000)
    timeout: float = Field(10.0, gt=0, le=300)
    memory_limit: int = Field(128, ge=8, le=16_384)
    max_output: int = Field(20_000, ge=1000, le=100_000)
    described_tokens: int = Field(8_000, ge=0, le=100_000)


def _settings(value: Any) -> Any:
    return {True: {}, False: None}[value] if isinstance(value, bool) else value


OptionalCodeMode = Annotated[CodeMode | None, BeforeValidator(_settings, json_schema_input_type=bool | CodeMode | None)]
"""`true` has the limits' defaults, `false` is none."""


def function_name(tool: str) -> str:
    """Return the name of the function that calls a tool in a program."""
    name = tool.replace("-", "_")
    return f"tool_{name}" if name in TAKEN or not name.isidentifier() or name.startswith("__") else name


def same_function(tools: Iterable[str]) -> tuple[str, str] | None:
    """Return two tools whose functions would have the same name, or None."""
    known: dict[str, str] = {}
    for tool in tools:
        other = known.setdefault(function_name(tool), tool)
        if other != tool:
            return other, tool
    return None
