"""Finds problems in a source, with line and column, before it ever runs."""

from __future__ import annotations
import __future__

import ast
from collections.abc import Iterator
from dataclasses import astuple, dataclass
from typing import Any

from .policy import FORBIDDEN_BUILTINS, FORBIDDEN_NAMES, forbidden_text, import_problem

_Function = ast.FunctionDef | ast.AsyncFunctionDef

FILENAME = "<function>"
MAX_PROBLEMS = 50
MAX_MESSAGE = 250
"""Maximum characters of one problem, so that all of them fit into a report, however long the source's names are."""


@dataclass(frozen=True)
class Finding:
    """One problem: description, position (line and column from 1, None for the source as a whole), and type."""

    message: str
    line: int | None
    column: int | None
    code: str

    def as_list(self) -> list[Any]:
        """Return the finding as it is sent to the host."""
        return [self.message[:MAX_MESSAGE], *astuple(self)[1:]]


def compile_source(source: str) -> Any:
    """Compile with postponed annotations, so that none is ever evaluated."""
    flags = __future__.annotations.compiler_flag
    return compile(source, FILENAME, "exec", flags=flags, dont_inherit=True, optimize=0)


def find_problems(
    source: str, entrypoint: str, allowed: frozenset[str], schema: dict[str, Any] | None, with_context: bool = False
) -> list[Finding]:
    """Return all problems, in the order of the source; if there are none, the function may be stored."""
    try:
        tree = ast.parse(source, FILENAME)
        compile_source(source)
    except SyntaxError as error:
        return [Finding(f"syntax error: {error.msg}", error.lineno, error.offset, "syntax_error")]
    except (ValueError, RecursionError, MemoryError) as error:
        reason = str(error) or "it is nested too deeply or too large"
        return [Finding(f"the source cannot be compiled: {reason}", None, None, "syntax_error")]
    found = [*_forbidden(tree, allowed), *_entrypoint(tree, entrypoint, schema, with_context)]
    return sorted(found, key=lambda finding: (finding.line or 0, finding.column or 0))[:MAX_PROBLEMS]


def first_forbidden(source: str, allowed: frozenset[str]) -> Finding | None:
    """Return the first forbidden name of a source that compiles."""
    names = (finding for finding in _forbidden(ast.parse(source), allowed) if finding.code == "forbidden_name")
    return next(names, None)


def _forbidden(tree: ast.Module, allowed: frozenset[str]) -> Iterator[Finding]:
    """Yield imports, names, attributes and constants that the policy refuses."""
    bound = {name for node in ast.walk(tree) for name in bound_names(node)}
    builtins = FORBIDDEN_BUILTINS - bound
    for node in ast.walk(tree):
        for message, code in _node_problems(node, builtins, allowed):
            yield Finding(message, node.lineno, node.col_offset + 1, code)  # type: ignore[attr-defined]


def bound_names(node: ast.AST) -> Iterator[str]:
    """Yield names that a node binds to the function's own values: they are not the builtins of that name."""
    match node:
        case ast.Name(id=name, ctx=ast.Store()) | ast.arg(arg=name):
            yield name
        case ast.FunctionDef(name=name) | ast.AsyncFunctionDef(name=name) | ast.ClassDef(name=name):
            yield name
        case ast.Import(names=names) | ast.ImportFrom(names=names):
            yield from (alias.asname or alias.name for alias in names)
        case ast.ExceptHandler(name=str(name)) | ast.MatchAs(name=str(name)) | ast.MatchStar(name=str(name)):
            yield name
        case ast.MatchMapping(rest=str(name)):
            yield name


def _node_problems(node: ast.AST, builtins: frozenset[str], allowed: frozenset[str]) -> Iterator[tuple[str, str]]:
    match node:
        case ast.Import(names=names):
            problems = (import_problem(alias.name, (), 0, allowed) for alias in names)
            yield from ((problem, "import_denied") for problem in problems if problem)
        case ast.ImportFrom(module=module, names=names, level=level):
            refusal = import_problem(module or "", [alias.name for alias in names], level, allowed)
            if refusal:
                yield refusal, "import_denied"
        case ast.Name(id=name, ctx=ast.Load()) if name in builtins:
            yield f"the builtin {name!r} is not available in the sandbox", "forbidden_name"
        case ast.Name(id=name) | ast.Attribute(attr=name) if name in FORBIDDEN_NAMES:
            yield f"the name {name!r} is not allowed", "forbidden_name"
        case ast.Constant(value=str(text)) if hidden := forbidden_text(text):
            yield f"the name {hidden!r} is not allowed, not even in a string", "forbidden_name"


def _entrypoint(
    tree: ast.Module, entrypoint: str, schema: dict[str, Any] | None, with_context: bool
) -> Iterator[Finding]:
    """Check that the entry point exists and accepts the arguments of the schema."""
    functions = [node for node in tree.body if isinstance(node, _Function) and node.name == entrypoint]
    if not functions:
        message = f"the source defines no function {entrypoint!r} at its top level with `def` or `async def`"
        yield Finding(message, None, None, "no_entrypoint")
        return
    yield from _calling(functions[-1], with_context)
    if schema is not None:
        yield from _signature(functions[-1], schema, with_context)


def _calling(function: _Function, with_context: bool) -> Iterator[Finding]:
    """Check the call: arguments are passed by name, whatever the schema, and the context is one of them."""
    arguments = function.args
    for arg in arguments.posonlyargs:
        yield _misfit(f"the parameter {arg.arg!r} is positional-only, but arguments come by name", arg)
    named = {arg.arg for arg in (*arguments.args, *arguments.kwonlyargs)}
    if with_context and arguments.kwarg is None and "context" not in named:
        yield _misfit(f"the context is required, but {function.name!r} takes no argument 'context'", function)


def _misfit(message: str, node: ast.arg | _Function) -> Finding:
    return Finding(message, node.lineno, node.col_offset + 1, "signature")


def _signature(function: _Function, schema: dict[str, Any], with_context: bool) -> Iterator[Finding]:
    arguments = function.args
    positional = [*arguments.posonlyargs, *arguments.args]
    with_default = {arg.arg for arg in positional[len(positional) - len(arguments.defaults) :]}
    with_default |= {arg.arg for arg, default in _keyword_only(function) if default is not None}
    accepted = {arg.arg for arg in (*arguments.args, *arguments.kwonlyargs)}
    properties = schema.get("properties")
    known = set(properties) if isinstance(properties, dict) else set()
    required = schema.get("required")
    needed = set(required) if isinstance(required, list) else set()
    if arguments.kwarg is None:
        for name in sorted((known | needed) - accepted):
            yield _misfit(f"the input schema has {name!r}, but {function.name!r} takes no such argument", function)
    # A schema without `required`, or an open one, does not say which arguments will be passed.
    optional = known - needed if isinstance(required, list) else set()
    closed = schema.get("additionalProperties") is False
    for arg in (*arguments.args, *arguments.kwonlyargs):
        if arg.arg in with_default | needed:
            continue
        if arg.arg == "context" and arg.arg not in known:
            if not with_context:
                yield _misfit("the parameter 'context' is filled only where `requires_context` is true", arg)
        elif arg.arg in optional or (closed and arg.arg not in known):
            yield _misfit(f"the parameter {arg.arg!r} has no default, but the input schema does not require it", arg)


def _keyword_only(function: _Function) -> list[tuple[ast.arg, ast.expr | None]]:
    return list(zip(function.args.kwonlyargs, function.args.kw_defaults, strict=True))
