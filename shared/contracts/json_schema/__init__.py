"""JSON Schema (draft 2020-12): schemas are checked when they are stored, values on every input and output.

Users write schemas and values, and neither may hang the process that compares them. Regular expressions have no
look-around and no back-references, so matching takes linear time. References stay inside the schema, errors quote only
the beginning of a value, and a comparison is stopped after `MAX_SECONDS`. Two schemas are compared in a separate
process with bounded time and memory.
"""

from shared.contracts.json_schema.fit import Pair, misfits
from shared.contracts.json_schema.schemas import check_dialect, check_keywords, check_schema
from shared.contracts.json_schema.values import ENDLESS, TOO_LONG, Schema, validate, violations

__all__ = [
    "ENDLESS",
    "TOO_LONG",
    "Pair",
    "Schema",
    "check_dialect",
    "check_keywords",
    "check_schema",
    "misfits",
    "validate",
    "violations",
]
