"""The function store, under the name that users import."""

from shared.definitions.apply import export_definitions, store_definitions
from shared.definitions.function_store import FunctionStore
from shared.functions.runner import StoredFunction
from shared.functions.validation import validate_code

__all__ = ["FunctionStore", "StoredFunction", "export_definitions", "store_definitions", "validate_code"]
