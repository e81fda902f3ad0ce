"""The instruction at the end of a system prompt, for agents with an output schema."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any


def instruction(output_schema: Mapping[str, Any]) -> str:
    """Return the sentence that asks a model for an answer that matches a JSON Schema."""
    schema = json.dumps(output_schema, ensure_ascii=False)
    return f"Give your final answer as JSON that matches this JSON Schema, and nothing else: {schema}"
