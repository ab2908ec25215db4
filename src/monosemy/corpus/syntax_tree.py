"""What the syntax tree of Python source says about its characters, the same on every Python."""

from __future__ import annotations

import ast
import builtins
import token as kinds
import types
from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Any

from monosemy.corpus.syntax_tokens import Marks, Token, mark_docstring

_Function = ast.FunctionDef | ast.AsyncFunctionDef

# Concepts that hold for a node as a whole, and for the nodes in one of its fields. Where those are
# statements, they hold to the end of the last one's line.
_WHOLE: dict[type[ast.AST], str] = {
    ast.Assert: "assert_statement",
    ast.Compare: "comparison_expression",
    ast.Dict: "dict_display",
    ast.DictComp: "comprehension",
    ast.GeneratorExp: "comprehension",
    ast.IfExp: "conditional_expression",
    ast.Import: "import_statement",
    ast.ImportFrom: "import_statement",
    ast.Lambda: "lambda_expression",
    ast.ListComp: "comprehension",
    ast.Raise: "raise_statement",
    ast.Return: "return_statement",
    ast.SetComp: "comprehension",
    ast.Slice: "slice",
}
_FIELDS: dict[type[ast.AST], dict[str, str]] = {
    ast.AnnAssign: {"target": "assignment_target", "annotation": "annotation"},
    ast.Assign: {"targets": "assignment_target"},
    ast.AsyncFor: {"target": "loop_variable", "body": "for_body"},
    ast.AsyncFunctionDef: {"body": "async_function", "returns": "annotation"},
    ast.AsyncWith: {"body": "with_body"},
    ast.AugAssign: {"target": "assignment_target"},
    ast.ClassDef: {"body": "class_body", "bases": "base_class"},
    ast.ExceptHandler: {"body": "except_body"},
    ast.For: {"target": "loop_variable", "body": "for_body"},
    ast.FunctionDef: {"returns": "annotation"},
    ast.If: {"test": "condition", "body": "if_body"},
    ast.IfExp: {"test": "condition"},
    ast.Subscript: {"slice": "subscript"},
    ast.Try: {"body": "try_body", "finalbody": "finally_body"},
    ast.TryStar: {"body": "try_body", "finalbody": "finally_body"},
    ast.While: {"test": "condition", "body": "while_body"},
    ast.With: {"body": "with_body"},
    ast.arg: {"annotation": "annotation"},
    ast.comprehension: {"target": "loop_variable"},
}
_BUILTINS = frozenset(
    name
    for name, value in vars(builtins).items()
    if name.islower() and name[0] != "_" and isinstance(value, type | types.BuiltinFunctionType)
)


@dataclass(frozen=True, slots=True)
class _Scope:
    """What surrounds a node."""

    function: _Function | None = None
    parameters: frozenset[str] = frozenset()
    """Of all functions around it."""
    raising: bool = False


class TreeMarks:
    """Goes over a syntax tree and marks by it."""

    def __init__(self, text: str, starts: list[int], tokens: list[Token], marks: Marks) -> None:
        """Prepare to read the tree of `text`; the arguments are as in `syntax_tokens`."""
        self.text = text
        self.starts = starts
        self.marks = marks
        self.ascii = text.isascii()
        names = [token for token in tokens if token.kind == kinds.NAME]
        self.name_at = {token.start: token.span for token in names}
        self.name_to = {token.end: token.span for token in names}
        self.generators: set[_Function] = set()
        self.imported: set[str] = set()
        self.used: list[tuple[str, tuple[int, int]]] = []

    def read(self, tree: ast.Module) -> None:
        """Mark all that the tree shows."""
        waiting: list[tuple[ast.AST, _Scope]] = [(tree, _Scope())]
        while waiting:
            node, scope = waiting.pop()
            self._mark_by_tables(node)
            visit = getattr(self, f"visit_{type(node).__name__}", None)
            if visit is not None:
                visit(node, scope)
            if not isinstance(node, _OPAQUE):
                waiting += _children(node, scope)
        for function in self.generators:
            self.marks["generator_function"].append(self._block(function.body))
        self.marks["imported_name_use"] += (s for name, s in self.used if name in self.imported)

    def _mark_by_tables(self, node: ast.AST) -> None:
        kind = type(node)
        if kind in _WHOLE:
            self._mark(_WHOLE[kind], node)
        for field, concept in _FIELDS.get(kind, {}).items():
            value = getattr(node, field)
            if isinstance(value, ast.AST):
                self._mark(concept, value)
            elif value and isinstance(value[0], ast.stmt):
                self.marks[concept].append(self._block(value))
            else:
                self._mark(concept, *value or ())

    def visit_Module(self, node: ast.Module, scope: _Scope) -> None:
        self._docstring(node, "module_docstring", frozenset())
        for statement in node.body:
            if not isinstance(statement, _Function | ast.ClassDef):
                self.marks["top_level"].append(self._block([statement]))

    def visit_ClassDef(self, node: ast.ClassDef, scope: _Scope) -> None:
        self._docstring(node, "class_docstring", frozenset())
        self._decorators(node)
        for statement in node.body:
            if isinstance(statement, _Function):
                self.marks["method_body"].append(self._block(statement.body))

    def visit_FunctionDef(self, node: _Function, scope: _Scope) -> None:
        body = self._block(node.body)
        self.marks["function_body"].append(body)
        if node.name == "__init__":
            self.marks["init_body"].append(body)
        if scope.function:
            self.marks["nested_function"].append(body)
        self._docstring(node, "function_docstring", _parameters(node))
        self._decorators(node)

    visit_AsyncFunctionDef = visit_FunctionDef

    def visit_arguments(self, node: ast.arguments, scope: _Scope) -> None:
        self._mark("default_value", *node.defaults, *filter(None, node.kw_defaults))

    def visit_arg(self, node: ast.arg, scope: _Scope) -> None:
        self.marks["parameter"].append(self.name_at[self._extent(node)[0]])

    def visit_keyword(self, node: ast.keyword, scope: _Scope) -> None:
        if node.arg:
            self.marks["keyword_argument"].append(self.name_at[self._extent(node)[0]])

    def visit_Call(self, node: ast.Call, scope: _Scope) -> None:
        called = self._extent(node.func)[1]
        self.marks["call_arguments"].append((called, self._extent(node)[1]))
        if isinstance(node.func, ast.Name | ast.Attribute):
            name = self.name_to[called]
            self.marks["called_name"].append(name)
            if isinstance(node.func, ast.Attribute):
                self.marks["method_call"].append(name)
            elif node.func.id in _BUILTINS:
                self.marks["builtin_call"].append(name)

    def visit_Name(self, node: ast.Name, scope: _Scope) -> None:
        if isinstance(node.ctx, ast.Load):
            extent = self._extent(node)
            self.used.append((node.id, extent))
            if node.id in scope.parameters and node.id not in ("self", "cls"):
                self.marks["parameter_use"].append(extent)

    def visit_Import(self, node: ast.Import | ast.ImportFrom, scope: _Scope) -> None:
        self.imported.update(alias.asname or alias.name.split(".")[0] for alias in node.names)

    visit_ImportFrom = visit_Import

    def visit_If(self, node: ast.If, scope: _Scope) -> None:
        test = node.test
        if isinstance(test, ast.Compare) and getattr(test.left, "id", "") == "__name__":
            self.marks["main_guard"].append(self._block([node]))
        if node.orelse and not self.text.startswith("elif", self._extent(node.orelse[0])[0]):
            self.marks["else_body"].append(self._block(node.orelse))

    def visit_Dict(self, node: ast.Dict, scope: _Scope) -> None:
        self._mark("dict_key", *filter(None, node.keys))

    def visit_List(self, node: ast.List, scope: _Scope) -> None:
        if isinstance(node.ctx, ast.Load):
            self._mark("list_display", node)

    def visit_Tuple(self, node: ast.Tuple, scope: _Scope) -> None:
        if isinstance(node.ctx, ast.Load):
            self._mark("tuple_display", node)

    def visit_Yield(self, node: ast.Yield | ast.YieldFrom, scope: _Scope) -> None:
        if scope.function:
            self.generators.add(scope.function)

    visit_YieldFrom = visit_Yield

    def visit_Constant(self, node: ast.Constant, scope: _Scope) -> None:
        if scope.raising and isinstance(node.value, str):
            self._mark("error_message", node)

    def visit_JoinedStr(self, node: ast.JoinedStr, scope: _Scope) -> None:
        if scope.raising:
            self._mark("error_message", node)

    def _docstring(
        self, node: ast.Module | ast.ClassDef | _Function, concept: str, parameters: frozenset[str]
    ) -> None:
        match node.body:
            case [ast.Expr(value=ast.Constant(value=str()) as docstring), *_]:
                extent = self._extent(docstring)
                self.marks[concept].append(extent)
                mark_docstring(self.text, *extent, parameters, self.marks)

    def _decorators(self, node: ast.ClassDef | _Function) -> None:
        for decorator in node.decorator_list:
            start, end = self._extent(decorator)
            self.marks["decorator"].append((self.text.rindex("@", 0, start), end))
            self._mark(
                "decorator_name", decorator.func if isinstance(decorator, ast.Call) else decorator
            )

    def _mark(self, concept: str, *nodes: ast.AST) -> None:
        self.marks[concept] += map(self._extent, nodes)

    def _block(self, body: list[ast.stmt]) -> tuple[int, int]:
        """Return the characters from the first statement to the end of the last one's line."""
        start, end = self._extent(body[0])[0], self._extent(body[-1])[1]
        if decorators := getattr(body[0], "decorator_list", ()):
            start = self.text.rindex("@", 0, self._extent(decorators[0])[0])
        line_end = self.text.find("\n", end)
        return start, line_end if line_end >= 0 else len(self.text)

    def _extent(self, node: Any) -> tuple[int, int]:
        """Return the characters of a node that has a place."""
        start = self._character(node.lineno, node.col_offset)
        return start, self._character(node.end_lineno, node.end_col_offset)

    def _character(self, row: int, column: int) -> int:
        """Return the character at a row, from 1, and a column, in bytes of UTF-8."""
        start = self.starts[row - 1]
        if self.ascii:
            return start + column
        line = self.text[start : start + column]  # a character has a byte at least
        return start + len(line.encode()[:column].decode())


_OPAQUE: tuple[type[ast.AST], ...] = (ast.JoinedStr,)  # 3.11 misplaces what is in them
if hasattr(ast, "TemplateStr"):
    _OPAQUE += (ast.TemplateStr,)

_NOT_NODES = frozenset({"ctx", "op", "ops", "names", "type_comment", "kind", "name", "id", "attr"})


def _children(node: ast.AST, scope: _Scope) -> Iterator[tuple[ast.AST, _Scope]]:
    """Yield the nodes directly below a node, and what surrounds them."""
    for field in node._fields:
        if field in _NOT_NODES:
            continue
        value = getattr(node, field, None)
        inner = scope if field != "body" else _inside(node, scope)
        if isinstance(node, ast.Raise):
            inner = replace(inner, raising=True)
        for child in value if isinstance(value, list) else (value,):
            if isinstance(child, ast.AST):
                yield child, inner


def _inside(node: ast.AST, scope: _Scope) -> _Scope:
    """Return what surrounds the body of a node."""
    if isinstance(node, _Function):
        return _Scope(node, scope.parameters | _parameters(node))
    if isinstance(node, ast.Lambda):
        return replace(scope, parameters=scope.parameters | _parameters(node))
    return scope


def _parameters(node: _Function | ast.Lambda) -> frozenset[str]:
    found = node.args
    named = (*found.posonlyargs, *found.args, *found.kwonlyargs, found.vararg, found.kwarg)
    return frozenset(arg.arg for arg in named if arg)
