"""Edits that leave a function as right as it was: controls for those that make it flawed."""

from __future__ import annotations

import ast
import itertools
import re
from collections.abc import Iterator

from monosemy.corpus.edits import Change, Edits, Site

_FLIPPED = {"<": ">", ">": "<", "<=": ">=", ">=": "<=", "==": "==", "!=": "!="}
_COMMENT = re.compile(r"^[ \t]*#[ \t]*(\S.*)\n", re.MULTILINE)
_WORD = re.compile(r"\b[a-z]{3,}\b")
_NAMES = ("item", "value", "result", "entry", "current", "data", "found", "part", "other", "temp")
_DEF = (ast.FunctionDef, ast.AsyncFunctionDef)
_PLAIN = (ast.Name, ast.Attribute, ast.Constant)
# What makes it hard to see which uses of a name are one variable, or when something is done.
_SCOPES = (*_DEF, ast.ClassDef, ast.Lambda, ast.Global, ast.Nonlocal, ast.JoinedStr, ast.Import,
           ast.ImportFrom, ast.ListComp, ast.SetComp, ast.DictComp, ast.GeneratorExp,
           ast.Match)  # fmt: skip
_ACTS = (ast.Call, ast.Subscript, ast.Yield, ast.YieldFrom, ast.Await, ast.NamedExpr)


def _renamed(site: Site) -> Iterator[Edits]:
    """Give a local variable another name throughout."""
    inner = list(ast.walk(site.node))[1:]
    if site.inside or any(isinstance(n, _SCOPES) for n in inner):
        return
    names = [n for n in inner if isinstance(n, ast.Name)]
    fixed = {a.arg for a in inner if isinstance(a, ast.arg)}
    fixed |= {n.name for n in inner if isinstance(n, ast.ExceptHandler) and n.name}
    taken = {n.id for n in names} | fixed
    for old in sorted({n.id for n in names if isinstance(n.ctx, ast.Store)} - fixed):
        for new in _NAMES:
            if new not in taken:
                yield [e for n in names if n.id == old for e in site.replaced(n, new)]


def _reordered(site: Site) -> Iterator[Edits]:
    """Swap two assignments of which neither uses the other's variable or does anything more."""
    for block in (getattr(site.node, name, None) for name in ("body", "orelse")):
        for first, second in itertools.pairwise(block if isinstance(block, list) else ()):
            if _independent(first, second):
                yield site.swapped(first, second)


def _independent(first: ast.stmt, second: ast.stmt) -> bool:
    if not isinstance(first, ast.Assign) or not isinstance(second, ast.Assign):
        return False
    parts = [list(ast.walk(statement)) for statement in (first, second)]
    if any(isinstance(n, _ACTS) for part in parts for n in part):
        return False
    stored, read = (
        [{_last_name(n) for n in part if isinstance(getattr(n, "ctx", None), kind)}
         for part in parts]
        for kind in (ast.Store, ast.Load)
    )  # fmt: skip
    return not (stored[0] & (read[1] | stored[1]) or stored[1] & read[0])


def _last_name(node: ast.AST) -> str:
    return node.attr if isinstance(node, ast.Attribute) else getattr(node, "id", "")


def _flipped(site: Site) -> Iterator[Edits]:
    """Write a comparison from right to left."""
    left, right = site.node.left, site.node.comparators[0]
    if isinstance(left, _PLAIN) and isinstance(right, _PLAIN):
        for edits in site.operators("<=|>=|==|!=|<|>", _FLIPPED):
            yield [*site.swapped(left, right), *edits]


def _commented(site: Site) -> Iterator[Edits]:
    """Take a comment away, or put its words in another order."""
    if site.inside:
        return
    texts = [
        (n.lineno, n.end_lineno or n.lineno)
        for n in ast.walk(site.node)
        if isinstance(n, ast.Constant | ast.JoinedStr)
    ]
    text = site.source.text
    for found in _COMMENT.finditer(text, *site.source.span(site.node)):
        line = text.count("\n", 0, found.start()) + 1
        if not any(first < line <= last for first, last in texts):
            yield [(*found.span(), "")]
            yield [(*found.span(1), " ".join(reversed(found[1].split())))]


def _reworded(site: Site) -> Iterator[Edits]:
    """Swap two words of a text: it is as long as before."""
    node, text = site.node, site.source.of(site.node)
    words = list(_WORD.finditer(text))
    if isinstance(node.value, str) and node.lineno == node.end_lineno and "\\" not in text:
        at = site.source.span(node)[0]
        for first, second in itertools.pairwise(words):
            if first[0] != second[0] and " " in text[first.end() : second.start()]:
                yield [
                    (at + first.start(), at + first.end(), second[0]),
                    (at + second.start(), at + second.end(), first[0]),
                ]


REFACTORINGS = {
    "comment changed": Change(_DEF, _commented),
    "comparison flipped": Change((ast.Compare,), _flipped),
    "message reworded": Change((ast.Constant,), _reworded),
    "statements reordered": Change((*_DEF, ast.If, ast.For, ast.While, ast.With), _reordered),
    "variable renamed": Change(_DEF, _renamed),
}
