"""From the text of a program to code: its top level becomes the body of an async function.

The names that it binds stay global, as in a module.
"""

from __future__ import annotations
import __future__

import ast
from typing import Any

from .validator import bound_names

FILENAME = "<program>"
MAIN = "<module>"
"""Name of the function, as tracebacks show it."""


def compile_program(source: str) -> Any:
    """Compile a program to the code of a module that defines the function `MAIN`.

    Raises:
        SyntaxError, ValueError, RecursionError, MemoryError: it cannot be compiled.
    """
    tree = ast.parse(source, FILENAME)
    names = {name.partition(".")[0] for node in ast.walk(tree) for name in bound_names(node)} - {"*"}
    imports, body = _split(_Adapter().visit(tree).body)
    _return_last(body)
    head: list[ast.stmt] = [ast.Global(sorted(names))] if names else []
    arguments = ast.arguments(posonlyargs=[], args=[], kwonlyargs=[], kw_defaults=[], defaults=[])
    main = ast.AsyncFunctionDef(MAIN, arguments, [*head, *body, ast.Pass()], [], lineno=1, col_offset=0)
    module = ast.fix_missing_locations(ast.Module([*imports, main], []))
    flags = __future__.annotations.compiler_flag
    return compile(module, FILENAME, "exec", flags=flags, dont_inherit=True, optimize=0)


def _split(body: list[ast.stmt]) -> tuple[list[ast.stmt], list[ast.stmt]]:
    """Return the imports from `__future__`, which must stay outside, and the other statements."""
    future = [node for node in body if isinstance(node, ast.ImportFrom) and node.module == "__future__"]
    return list(future), [node for node in body if node not in future]


def _return_last(body: list[ast.stmt]) -> None:
    """Let the expression that is the last statement be the value; also within `if __name__ == "__main__"`."""
    last = body[-1] if body else None
    if isinstance(last, ast.Expr):
        body[-1] = ast.copy_location(ast.Return(last.value), last)
    elif isinstance(last, ast.If):
        _return_last(last.body)
        _return_last(last.orelse)


class _Adapter(ast.NodeTransformer):
    """Rewrites what is right in a module, and would be wrong in the body of an async function."""

    _in_function = False

    def visit_AsyncFunctionDef(self, node: ast.AsyncFunctionDef) -> ast.AST:
        outside, self._in_function = self._in_function, True
        self.generic_visit(node)
        self._in_function = outside
        return node

    def visit_Yield(self, node: ast.Yield) -> ast.AST:
        """Refuse a generator: the body would become one."""
        if not self._in_function:
            raise SyntaxError("'yield' outside function", (FILENAME, node.lineno, node.col_offset + 1, None))
        return node

    def visit_AnnAssign(self, node: ast.AnnAssign) -> ast.AST:
        """Write `name = value` for `name: type = value`: a global name must not have an annotation."""
        self.generic_visit(node)
        if not isinstance(node.target, ast.Name):
            return node
        plain = ast.Assign([node.target], node.value) if node.value else ast.Pass()
        return ast.copy_location(plain, node)

    def _leave(self, node: ast.AST) -> ast.AST:
        return node

    visit_FunctionDef = visit_Lambda = visit_ClassDef = visit_GeneratorExp = _leave
