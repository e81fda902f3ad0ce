"""JSON Schema (draft 2020-12): schemas are checked when they are stored, values whenever they cross a border.

A schema comes from whoever may store definitions, a value from whoever may submit a task: neither may hang the
process that compares them. So regular expressions have no look-around and no back-references (matching takes linear
time), references stay inside the schema, values are quoted by their beginning, and a comparison
that takes `MAX_SECONDS` is given up. Two schemas are compared in a process of their own.
"""

from shared.contracts.json_schema.fit import Pair, misfits
from shared.contracts.json_schema.schemas import check_dialect, check_schema
from shared.contracts.json_schema.values import Schema, validate, violations

__all__ = ["Pair", "Schema", "check_dialect", "check_schema", "misfits", "validate", "violations"]
