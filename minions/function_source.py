"""The source of a function for the sandbox, where it is the only module: the function and what it uses.

Imports, constants, functions and classes at the top level of its module are taken along if the function uses them,
directly or through each other. Annotations are not evaluated in the sandbox, so what only they name is left out.
"""

from __future__ import annotations

import ast
import builtins
import copy
import inspect
import linecache
import symtable
import textwrap
from collections.abc import Callable, Iterator
from itertools import groupby
from pathlib import Path
from types import FunctionType
from typing import Any, NoReturn

from minions.errors import InvalidDefinition

FunctionNode = ast.FunctionDef | ast.AsyncFunctionDef
Imports = ast.Import | ast.ImportFrom


def source_of(function: FunctionType, *, helper: Callable[[Any], bool], foreign: Callable[[Any], str | None]) -> str:
    """Return the source of a function with what it uses of its module, each part as it was written, in its order.

    Args:
        helper: whether a value is a decorated function whose decorator must be left out.
        foreign: why a value cannot be taken along; None if it can.

    Raises:
        InvalidDefinition: names the function, the line, and what cannot run in the sandbox.
    """
    return _Source(function, helper, foreign).text()


class _Source:
    def __init__(
        self, function: FunctionType, helper: Callable[[Any], bool], foreign: Callable[[Any], str | None]
    ) -> None:
        self.function = function
        self.helper = helper
        self.foreign = foreign
        self.file = inspect.getsourcefile(function) or function.__code__.co_filename
        self.place = f"function {function.__name__!r} ({Path(self.file).name}, line "
        linecache.checkcache(self.file)
        self.source = "".join(linecache.getlines(self.file, function.__globals__))
        self.module = self._parse()
        self.bound = dict(_bindings(self.module))

    def text(self) -> str:
        """Return the whole source."""
        main = self._find()
        self._check(main)
        imports, statements = self._needed(main)
        parts: list[tuple[str, Any]] = [(_only(node, names), Imports) for node, names in imports.items()]
        for node in sorted({main, *statements}, key=lambda each: each.lineno):
            written = self._written(node, bare=node is main or self._is_helper(node))
            parts.append((written, node if isinstance(node, FunctionNode | ast.ClassDef) else ast.Assign))
        groups = groupby(parts, key=lambda part: part[1])
        return "\n\n\n".join("\n".join(text for text, _ in group) for _, group in groups) + "\n"

    def _parse(self) -> ast.Module:
        try:
            return ast.parse(self.source)
        except SyntaxError as error:
            raise InvalidDefinition(f"{self.place}{error.lineno}): the file has changed and is not valid.") from None

    def _find(self) -> FunctionNode:
        """Return the function in the parsed module."""
        code = self.function.__code__
        for node in ast.walk(self.module):
            if isinstance(node, FunctionNode) and node.name == code.co_name:
                first = min([node.lineno, *(each.lineno for each in node.decorator_list)])
                if first == code.co_firstlineno:
                    return node
        raise InvalidDefinition(
            f"{self.place}{code.co_firstlineno}): its source cannot be read. It must be in a file that has not changed "
            "since it was imported."
        )

    def _check(self, node: FunctionNode) -> None:
        if len(node.decorator_list) > 1:
            self._refuse(node.lineno, "it has another decorator beside @minions.function. Remove it")
        if free := self.function.__code__.co_freevars:
            self._refuse(
                _line_of(free[0], node),
                f"it uses {free[0]!r} of the function around it. Pass it as an argument, or move it to the top level",
            )

    def _needed(self, main: FunctionNode) -> tuple[dict[Imports, list[str]], list[ast.stmt]]:
        """Return the imports with the names that are needed of each, and the other statements."""
        imports: dict[Imports, list[str]] = {}
        statements: list[ast.stmt] = []
        waiting: list[ast.stmt] = [main]
        while waiting:
            node = waiting.pop()
            for name in sorted(_free_names(_bare(node, decorators=node is not main and not self._is_helper(node)))):
                for found in self._definitions(name, node):
                    if isinstance(found, Imports):
                        names = imports.setdefault(found, [])
                        names += [name] if name not in names else []
                    elif found is not main and found not in statements:
                        statements.append(found)
                        waiting.append(found)
        return dict(sorted(imports.items(), key=lambda each: each[0].lineno)), statements

    def _definitions(self, name: str, user: ast.stmt) -> list[ast.stmt]:
        """Return the statement that defines a global name, or several imports of a package; none for a builtin."""
        line = _line_of(name, user)
        statements = self.bound.get(name, [])
        if not statements:
            if hasattr(builtins, name):
                return []
            self._refuse(
                line,
                f"it uses {name!r}, which the top level of {Path(self.file).name} does not define by an import, an "
                "assignment, `def` or `class`. Define it there, or in the function",
            )
        if all(isinstance(each, ast.Import) for each in statements):
            return statements
        if len(statements) > 1:
            lines = " and ".join(str(each.lineno) for each in statements[:2])
            self._refuse(
                line,
                f"it uses {name!r}, which is defined more than once, or changed (lines {lines}). Define it by one "
                "statement",
            )
        [found] = statements
        if not isinstance(found, Imports | FunctionNode | ast.ClassDef | ast.Assign | ast.AnnAssign):
            self._refuse(
                line,
                f"it uses {name!r}, which line {found.lineno} defines inside a block or changes. Define it by one "
                "statement at the top level, or in the function",
            )
        if fault := self.foreign(self.function.__globals__.get(name)):
            self._refuse(line, f"it uses {name!r}, {fault}")
        return [found]

    def _is_helper(self, node: ast.stmt) -> bool:
        return isinstance(node, FunctionNode) and self.helper(self.function.__globals__.get(node.name))

    def _written(self, node: ast.stmt, *, bare: bool) -> str:
        """Return a statement as it was written; bare, without decorators."""
        decorators = [] if bare else getattr(node, "decorator_list", [])
        lines = [f"@{ast.get_source_segment(self.source, each)}" for each in decorators]
        written = textwrap.dedent(ast.get_source_segment(self.source, node, padded=True) or "")
        plain = _undecorated(node)
        # Of a function in a block, a text of several lines would lose its indentation too.
        return "\n".join([*lines, written if _means(written, plain) else ast.unparse(plain)])

    def _refuse(self, line: int, fault: str) -> NoReturn:
        raise InvalidDefinition(f"{self.place}{line}): {fault}.")


def _bindings(module: ast.Module) -> Iterator[tuple[str, list[ast.stmt]]]:
    """Yield the names that a module defines at its top level, with the statements that define or change them. Blocks
    count as one."""
    found: dict[str, list[ast.stmt]] = {}
    for node in module.body:
        if isinstance(node, ast.ImportFrom) and node.module == "__future__":
            continue
        if isinstance(node, ast.If) and "__name__" in ast.unparse(node.test):
            continue  # runs as a script only
        for name in _bound_by(node):
            found.setdefault(name, []).append(node)
        for name in _changed_by(node) & found.keys():
            if found[name][-1] is not node and not isinstance(found[name][0], Imports):
                found[name].append(node)
    yield from found.items()


def _changed_by(node: ast.AST) -> set[str]:
    """Return the names whose values a statement changes when it runs: by `X[0] = 1`, `X.y = 1` or `X.append(1)`."""
    if isinstance(node, FunctionNode | ast.ClassDef | ast.Lambda):
        return set()
    found = set().union(*map(_changed_by, ast.iter_child_nodes(node)))
    match node:
        case ast.Subscript(value=ast.Name(id=name), ctx=ast.Store() | ast.Del()):
            found.add(name)
        case ast.Attribute(value=ast.Name(id=name), ctx=ast.Store() | ast.Del()):
            found.add(name)
        case ast.Expr(value=ast.Call(func=ast.Attribute(value=ast.Name(id=name)))):
            found.add(name)
    return found


def _bound_by(node: ast.stmt) -> set[str]:
    match node:
        case ast.FunctionDef(name=name) | ast.AsyncFunctionDef(name=name) | ast.ClassDef(name=name):
            return {name}
        case ast.Import(names=names) | ast.ImportFrom(names=names):
            return {alias.asname or alias.name.partition(".")[0] for alias in names}
        case ast.AnnAssign(value=None):
            return set()
    if isinstance(node, ast.If) and ast.unparse(node.test) in ("TYPE_CHECKING", "typing.TYPE_CHECKING"):
        return set()
    bound = {each.id for each in ast.walk(node) if isinstance(each, ast.Name) and isinstance(each.ctx, ast.Store)}
    inside = (each for each in ast.walk(node) if each is not node and isinstance(each, ast.stmt))
    return bound.union(*map(_bound_by, inside))


def _undecorated(node: ast.stmt) -> ast.stmt:
    plain = copy.copy(node)
    if isinstance(plain, FunctionNode | ast.ClassDef):
        plain.decorator_list = []
    return plain


def _means(text: str, node: ast.stmt) -> bool:
    """Return whether a text is the code of a statement."""
    try:
        return ast.dump(ast.parse(text)) == ast.dump(ast.Module([node], []))
    except SyntaxError:
        return False


class _WithoutAnnotations(ast.NodeTransformer):
    def visit_arg(self, node: ast.arg) -> ast.arg:
        node.annotation = None
        return node

    def visit_AnnAssign(self, node: ast.AnnAssign) -> ast.AST:
        self.generic_visit(node)
        return ast.Assign([node.target], node.value, lineno=node.lineno) if node.value else ast.Pass()

    def visit_FunctionDef(self, node: ast.FunctionDef) -> ast.AST:
        node.returns = None
        return self.generic_visit(node)

    def visit_AsyncFunctionDef(self, node: ast.AsyncFunctionDef) -> ast.AST:
        node.returns = None
        return self.generic_visit(node)


def _bare(node: ast.stmt, *, decorators: bool) -> ast.stmt:
    """Return a copy without annotations, and without its decorators unless they count."""
    bare: ast.stmt = _WithoutAnnotations().visit(copy.deepcopy(node))
    if not decorators and isinstance(bare, FunctionNode):
        bare.decorator_list = []
    return bare


def _free_names(node: ast.stmt) -> set[str]:
    """Return the names that a statement reads from its module and does not define itself."""
    top = symtable.symtable(ast.unparse(node), "module", "exec")
    own = {each.get_name() for each in top.get_symbols() if each.is_assigned() or each.is_imported()}
    own |= {each.get_name() for each in top.get_symbols() if each.is_namespace()}
    names = {each.get_name() for each in top.get_symbols() if each.is_referenced()}
    waiting = top.get_children()
    while waiting:
        table = waiting.pop()
        names |= {each.get_name() for each in table.get_symbols() if each.is_global()}
        waiting += table.get_children()
    return names - own


def _line_of(name: str, node: ast.stmt) -> int:
    """Return the line in which a statement first names something."""
    lines = [
        each.lineno
        for each in ast.walk(_bare(node, decorators=True))
        if (isinstance(each, ast.Name) and each.id == name) or (isinstance(each, ast.Global) and name in each.names)
    ]
    return min(lines, default=node.lineno)


def _only(node: Imports, names: list[str]) -> str:
    """Return an import of these names alone."""
    wanted = [alias for alias in node.names if (alias.asname or alias.name.partition(".")[0]) in names]
    chosen = copy.copy(node)
    chosen.names = wanted
    return ast.unparse(chosen)
