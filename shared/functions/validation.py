"""Check a function's source in the sandbox before it is stored."""

from __future__ import annotations

import sys

from shared.contracts.documents import FunctionDefinition
from shared.errors import InvalidDefinition
from shared.functions.runner import get_sandbox
from shared.functions.worker_packages import WorkerPackages
from shared.sandbox import SAFE_IMPORTS
from shared.sandbox.confined.modules import is_allowed

# Faults of the Python-level policy, which does not apply to functions without safe_mode.
POLICY = frozenset({"import_denied", "forbidden_name"})


def validate_code(definition: FunctionDefinition, packages: WorkerPackages | None = None) -> None:
    """Check a function's source in the sandbox before it is stored.

    Args:
        packages: the packages that live workers report.

    Raises:
        InvalidDefinition: every problem with its line and column.
    """
    config = definition.config
    place = f"function {definition.name!r}"
    if config.safe_mode and (unknown := _unknown_imports(config.allowed_imports, packages)):
        raise InvalidDefinition(
            f"{place}, config.allowed_imports: {', '.join(unknown)} cannot be imported in the sandbox. "
            f"Safe modules are: {', '.join(sorted(SAFE_IMPORTS))}. Packages must be preloaded by a live worker "
            "(MINION_SANDBOX_PRELOAD)."
        )
    problems = get_sandbox().validate(
        definition.code,
        str(definition.entrypoint),
        allowed_imports=config.allowed_imports,
        input_schema=definition.input_schema,
        with_context=config.requires_context,
    )
    if not config.safe_mode:
        problems = [problem for problem in problems if problem.code not in POLICY]
    if problems:
        listed = "; ".join(
            p.message if p.line is None else f"line {p.line}, column {p.column}: {p.message}" for p in problems[:20]
        )
        raise InvalidDefinition(
            f"{place} cannot be stored: {listed}.",
            problems=[{"line": p.line, "column": p.column, "message": p.message} for p in problems[:20]],
        )


def _unknown_imports(imports: list[str], packages: WorkerPackages | None) -> list[str]:
    """Return the imports that no worker provides. If no worker reports, only the standard library is known."""
    packages = packages or WorkerPackages({})
    unknown = set(packages.missing(imports))
    preloaded = frozenset[str]().union(*packages.by_capability.values())
    for name in imports:
        if name.partition(".")[0] in sys.stdlib_module_names and not is_allowed(name, SAFE_IMPORTS | preloaded):
            unknown.add(name)
    return [name for name in imports if name in unknown]
