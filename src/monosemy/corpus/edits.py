"""Functions of Python source, and edits of their text by the places of syntax-tree nodes.

Only the characters of an edit change: source that is written anew from its tree would give itself
away by its layout.
"""

from __future__ import annotations

import ast
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

Function = ast.FunctionDef | ast.AsyncFunctionDef
Edit = tuple[int, int, str]
"""Characters [from, to) of a text, and what stands there instead."""
Edits = Sequence[Edit]


class Change(NamedTuple):
    """A kind of change to a function."""

    nodes: tuple[type[ast.AST], ...]
    """At which it can be made."""
    find: Callable[[Site], Iterator[Edits]]
    """Yields the ways to make it at such a node; each may take several edits."""
    seldom: str = ""
    """A regular expression for the text of functions in which a seldom one can be made."""


_BLOCKS = ("body", "orelse", "finalbody", "handlers")


class Source:
    """The text of a file, its tree, and how to find one's place in the other."""

    def __init__(self, text: str) -> None:
        """Parse a text.

        Raises:
            SyntaxError, ValueError: it is not Python.
        """
        self.text = text
        self.tree = ast.parse(text)
        self._lines = text.splitlines(keepends=True)
        self._starts = [0]
        for line in self._lines:
            self._starts.append(self._starts[-1] + len(line))

    def span(self, node: ast.AST) -> tuple[int, int]:
        """Return the characters [from, to) of a node."""
        place: Any = node
        end = self._at(place.end_lineno, place.end_col_offset)
        return self._at(place.lineno, place.col_offset), end

    def of(self, node: ast.AST) -> str:
        """Return the text of a node."""
        start, end = self.span(node)
        return self.text[start:end]

    def lines(self, node: ast.AST) -> tuple[int, int] | None:
        """Return the characters of a statement's lines; None where it shares them with another."""
        start, end = self.span(node)
        first = self.text.rfind("\n", 0, start) + 1
        last = self.text.find("\n", end) + 1 or len(self.text)
        rest = self.text[end:last].strip()
        if self.text[first:start].strip() or (rest and not rest.startswith("#")):
            return None
        return first, last

    def functions(self) -> Iterator[tuple[Function, tuple[int, int]]]:
        """Yield functions and the characters of their lines, decorators included."""
        waiting: list[Any] = [self.tree]
        while waiting:
            node = waiting.pop()
            for name in _BLOCKS:
                block = getattr(node, name, ())
                waiting += block if isinstance(block, list) else ()
            if isinstance(node, Function):
                first = min([node.lineno, *(d.lineno for d in node.decorator_list)])
                yield node, (self._starts[first - 1], self._starts[node.end_lineno or first])

    def _at(self, line: int, column: int) -> int:
        """Return the place of a column, which the tree counts in bytes."""
        text = self._lines[line - 1] if line <= len(self._lines) else ""
        if not text.isascii():
            column = len(text.encode()[:column].decode(errors="ignore"))
        return self._starts[line - 1] + column


@dataclass(frozen=True, slots=True)
class Site:
    """A node, and what an edit there needs to know of its surroundings."""

    source: Source
    function: Function
    node: Any
    alone: bool
    """It is the only statement of its block."""
    inside: tuple[ast.AST, ...]
    """The nodes around it, outermost first, from the function on."""

    def replaced(self, node: ast.AST, text: str) -> Edits:
        """Return the edit that puts a text in a node's place."""
        return [(*self.source.span(node), text)]

    def swapped(self, first: ast.AST, second: ast.AST) -> Edits:
        """Return the edits that put two nodes in each other's place."""
        texts = self.source.of(first), self.source.of(second)
        return [*self.replaced(first, texts[1]), *self.replaced(second, texts[0])]

    def without(self, keyword: str) -> Edits:
        """Return the edit that takes away the word a node begins with, and the blanks after it."""
        start = self.source.span(self.node)[0]
        end = start + len(keyword)
        while self.source.text[end : end + 1] == " ":
            end += 1
        return [(start, end, "")]

    def removed(self) -> Iterator[Edits]:
        """Yield the edit that takes the statement away, unless it shares its lines."""
        lines = self.source.lines(self.node)
        if self.alone:
            yield self.replaced(self.node, "pass")
        elif lines is not None:
            yield [(*lines, "")]

    def operators(self, pattern: str, instead: Mapping[str, str]) -> Iterator[Edits]:
        """Yield the edit that puts another operator between the node's two operands."""
        match self.node:
            case ast.Compare(left=left, comparators=[right]):
                pass
            case ast.BinOp(left=left, right=right) | ast.BoolOp(values=[left, right]):
                pass
            case _:
                return
        start, end = self.source.span(left)[1], self.source.span(right)[0]
        if found := re.fullmatch(rf"[ )]*({pattern})[ (]*", self.source.text[start:end]):
            yield [(start + found.start(1), start + found.end(1), instead[found[1]])]

    def body_instead(self, header: str) -> Iterator[Edits]:
        """Yield the edit that puts a block's body, moved to the left, in the block's place.

        Args:
            header: a statement to begin with; "" for none.
        """
        block, text = self.node, self.source.text
        place, first = self.source.lines(block), self.source.span(block.body[0])[0]
        start, body = self.source.span(block)[0], text.rfind("\n", 0, first) + 1
        texts = [n for n in ast.walk(block) if isinstance(n, ast.Constant | ast.JoinedStr)]
        if place is None or body <= start or any(n.lineno != n.end_lineno for n in texts):
            return
        left = (first - body) - (start - place[0])
        lines = text[body : place[1]].splitlines(keepends=True)
        moved = [line[min(left, len(line) - len(line.lstrip(" "))) :] for line in lines]
        header = f"{text[place[0] : start]}{header}\n" if header else ""
        yield [(*place, header + "".join(moved))]

    def name(self, node: ast.AST) -> str:
        """Return a name, dotted or not, as it is written; "" for other expressions."""
        return self.source.of(node) if isinstance(node, ast.Name | ast.Attribute) else ""


def sites(source: Source, function: Function) -> Iterator[Site]:
    """Yield the nodes of a function; none in f-strings, whose places older Pythons do not know."""
    waiting: list[tuple[ast.AST, bool, tuple[ast.AST, ...]]] = [(function, False, ())]
    while waiting:
        node, alone, inside = waiting.pop()
        yield Site(source, function, node, alone, inside)
        for name, value in ast.iter_fields(node):
            children = value if isinstance(value, list) else [value]
            single = name in _BLOCKS and len(children) == 1
            waiting += [
                (child, single, (*inside, node))
                for child in children
                if isinstance(child, ast.AST) and not isinstance(child, ast.JoinedStr)
            ]


def edited(text: str, edits: Edits) -> str:
    """Return a text with edits made, which must not overlap."""
    for start, end, new in sorted(edits, reverse=True):
        text = text[:start] + new + text[end:]
    return text


def tree_of(text: str) -> ast.AST | None:
    """Parse a function that may stand indented, as in a class; None where it does not parse."""
    indented = text[:1].isspace()
    try:
        return ast.parse(f"if 1:\n{text}" if indented else text)
    except (SyntaxError, ValueError):
        return None
