"""Minimal pairs: two prompts that differ in one thing, and how each goes on.

As text; whether a model reads both as so many tokens is seen when it reads them. The built-in sets
are made from templates and names of Python's standard library, for the embedded model: what is one
token there need not be one elsewhere.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from random import Random
from typing import Any

from monosemy.corpus.columns import text_of_row
from monosemy.corpus.files import read_rows
from monosemy.errors import UserError, nearest


@dataclass(frozen=True, slots=True)
class MinimalPair:
    """A prompt, the same with one thing changed, and how each goes on.

    Attributes:
        clean: the prompt.
        corrupted: the changed one; None where there is none, and features are ablated instead.
        answer: how the clean prompt goes on.
        wrong: how the corrupted one does; None where answers are not compared.
    """

    clean: str
    corrupted: str | None
    answer: str
    wrong: str | None

    def turned(self) -> MinimalPair:
        """Return the pair with its two sides exchanged.

        Raises:
            UserError: it has one side.
        """
        if self.corrupted is None or self.wrong is None:
            raise UserError("a pair with one side cannot be turned", "give it a corrupted prompt")
        return MinimalPair(self.corrupted, self.clean, self.wrong, self.answer)


_LAYOUTS = (
    ("clean_prefix", "patch_prefix", "clean_answer", "patch_answer"),
    ("clean", "corrupted", "answer", "wrong"),
)
"""Columns of files: as published (subject-verb agreement, Marks et al. 2024), and our own."""


def minimal_pairs(source: str | Path) -> list[MinimalPair]:
    """Return a built-in set by its name, or the pairs in a file.

    Raises:
        UserError: there is neither; a file is no table or lacks a column.
    """
    if str(source) in MINIMAL_PAIRS:
        return MINIMAL_PAIRS[str(source)]()
    if not Path(source).expanduser().exists():
        raise UserError(
            f"no set of pairs and no file is called `{source}`",
            f"{nearest(str(source), MINIMAL_PAIRS)} sets: {', '.join(MINIMAL_PAIRS)}".strip(),
        )
    return list(read_minimal_pairs(source))


def read_minimal_pairs(path: str | Path) -> Iterator[MinimalPair]:
    """Yield the pairs of a table (.jsonl, .csv, .parquet), of a layout known by its columns.

    Columns are `clean_prefix`, `patch_prefix`, `clean_answer`, `patch_answer`, as published with
    sparse feature circuits (Marks et al. 2024, arXiv 2403.19647), or `clean`, `corrupted`,
    `answer`, `wrong`. The second and the fourth may be missing or null.

    Raises:
        UserError: it is no table, or a row lacks a column or holds no text there.
    """
    found = False
    for number, row in read_rows(Path(path).expanduser()):
        found = True
        yield _pair_of(row, f"{path}:{number}")
    if not found:
        raise UserError(f"{path} holds no pairs", "each row is one pair")


def _pair_of(row: Mapping[str, Any], where: str) -> MinimalPair:
    layout = next((names for names in _LAYOUTS if names[0] in row), None)
    if layout is None:
        forms = "; ".join(", ".join(names) for names in _LAYOUTS)
        raise UserError(f"{where} has none of the columns of a pair", f"they are {forms}")
    clean, corrupted, answer, wrong = (
        None if row.get(name) is None else text_of_row(row, name, where) for name in layout
    )
    for name, value in ((layout[0], clean), (layout[2], answer)):
        if not value:
            raise UserError(f"{where}: `{name}` is missing or empty", "each pair needs one")
    assert clean is not None and answer is not None
    return MinimalPair(clean, corrupted, answer, wrong)


# --- built-in sets ----------------------------------------------------------------------------

_MODULES = (
    *("os", "sys", "time", "socket", "struct", "string", "subprocess", "threading", "types"),
    *("typing", "datetime", "inspect", "logging", "signal", "pickle", "errno", "copy", "locale"),
    *("operator", "traceback", "warnings", "random", "tempfile", "weakref", "textwrap", "ctypes"),
)
_FUNCTIONS = (
    *("getattr", "print", "list", "sorted", "tuple", "filter", "format", "open", "hash", "repr"),
    *("compile", "range", "map", "len", "iter", "dict", "set"),
)
_CLASSES = (
    *("Reader", "Parser", "Handler", "Server", "Request", "Message", "Node", "Queue", "Context"),
    *("Element", "Loader", "Generator", "Decimal", "Path", "Event", "Header"),
)
_METHODS = ("read", "close", "run", "find", "parse", "load", "send", "start", "update", "write")
_VARIABLES = ("data", "name", "value", "path", "line", "text", "key", "index", "result", "file")
_TABLES = ("items", "names", "values", "lines", "files", "keys", "fields", "args", "headers")
_COUNT = 160
"""Pairs in a built-in set."""


def _brackets() -> Iterator[MinimalPair]:
    forms = (
        "{b} = {t}{o}{a}",
        "    return {t}{o}{a}",
        "    if {t}{o}{a}",
        "for {b} in {t}{o}{a}",
        "{b} = {a} + {t}{o}{b}",
    )
    for form, t, a, b in _drawn(forms, _TABLES, _VARIABLES, _VARIABLES, seed="bracket"):
        if a != b:
            round_, square = (form.format(t=t, o=o, a=a, b=b) for o in "([")
            yield MinimalPair(round_, square, ")", "]")


def _self() -> Iterator[MinimalPair]:
    forms = (
        "{w} {c}({b}):\n    def {m}(",
        "{w} {c}({b}):\n    {v} = None\n\n    def {m}(",
        "import {i}\n\n{w} {c}({b}):\n    def {m}(",
    )
    parts = (_CLASSES, _CLASSES, _METHODS, _VARIABLES, _MODULES)
    for form, c, b, m, v, i in _drawn(forms, *parts, seed="self"):
        inside, outside = (form.format(w=w, c=c, b=b, m=m, v=v, i=i) for w in ("class", "def"))
        yield MinimalPair(inside, outside, "self", v)


def _except() -> Iterator[MinimalPair]:
    forms = (
        ("if {v}:\n    {u} = {v}\n{w}:\n    import {m}\n", "{}", "import"),
        (
            "def {f}({v}):\n    if {v}:\n        pass\n    {w}:\n        {u} = {m}\n   ",
            " {}",
            "return",
        ),
        (
            "def {f}({v}):\n    if {v}:\n        pass\n    {w}:\n        import {m}\n   ",
            " {}",
            "return",
        ),
    )
    for (form, answer, wrong), v, u, m, f in _drawn(
        forms, _VARIABLES, _VARIABLES, _MODULES, _METHODS, seed="except"
    ):
        if u != v:
            tried, not_tried = (form.format(w=w, v=v, u=u, m=m, f=f) for w in ("try", "else"))
            yield MinimalPair(tried, not_tried, answer.format("except"), answer.format(wrong))


def _quotes() -> Iterator[MinimalPair]:
    forms = ("{v} = {q}{w}", "{f}({q}{w}", "    return {q}{w}", "{v}[{q}{w}", "if {v} == {q}{w}")
    for form, v, f, w in _drawn(forms, _VARIABLES, _FUNCTIONS, _TABLES + _MODULES, seed="quote"):
        single, double = (form.format(v=v, f=f, w=w, q=q) for q in "'\"")
        yield MinimalPair(single, double, "'", '"')


def _indents() -> Iterator[MinimalPair]:
    forms = (
        "def {f}({a}):\n    {v} = {a}{i}if {v}",
        "def {f}({a}):\n    {v} = {a}{i}while {v}",
        "def {f}({a}):\n    {v} = {a}{i}for {a} in {v}",
        "class {c}:\n    {v} = {a}{i}def {f}(self",
        "def {f}({a}):\n    import {m}{i}if {m}",
    )
    parts = (_METHODS, _VARIABLES, _VARIABLES, _CLASSES, _MODULES)
    for form, f, a, v, c, m in _drawn(forms, *parts, seed="indent"):
        if a != v:
            deep, flat = (form.format(f=f, a=a, v=v, c=c, m=m, i=i) for i in ("\n    ", "\n"))
            end = "):" if form.endswith("(self") else ":"
            yield MinimalPair(deep, flat, f"{end}\n        ", f"{end}\n    ")


def _imports() -> Iterator[MinimalPair]:
    forms = (
        "import {m}\n\n{v} =",
        "import {m}\n\n\ndef {f}({v}):\n    return",
        "import {m}\n\n{v} = None\n{u} =",
        "import {m}\n\n\nclass {c}:\n    {v} =",
    )
    parts = (_MODULES, _MODULES, _VARIABLES, _VARIABLES, _METHODS, _CLASSES)
    for form, m, n, v, u, f, c in _drawn(forms, *parts, seed="import"):
        if m != n and u != v:
            clean, corrupted = (form.format(m=x, v=v, u=u, f=f, c=c) for x in (m, n))
            yield MinimalPair(clean, corrupted, f" {m}", f" {n}")


def _drawn(*parts: Iterable[Any], seed: str) -> Iterator[tuple[Any, ...]]:
    """Yield combinations of one thing of each part, at random, without end."""
    rng, lists = Random(seed), [list(part) for part in parts]
    while True:
        yield tuple(rng.choice(part) for part in lists)


def _set(name: str, made: Callable[[], Iterator[MinimalPair]]) -> Callable[[], list[MinimalPair]]:
    """Return what makes a set: different pairs, every other one turned where that makes sense."""

    def build() -> list[MinimalPair]:
        pairs: dict[MinimalPair, None] = {}
        for pair in made():
            turn = name in _BOTH_WAYS and len(pairs) % 2
            pairs[pair.turned() if turn else pair] = None
            if len(pairs) == _COUNT:
                break
        return list(pairs)

    return build


_BOTH_WAYS = ("bracket", "quote", "import")

MINIMAL_PAIRS: dict[str, Callable[[], list[MinimalPair]]] = {
    name: _set(name, made)
    for name, made in {
        "bracket": _brackets,
        "self": _self,
        "except": _except,
        "quote": _quotes,
        "indent": _indents,
        "import": _imports,
    }.items()
}
"""Built-in sets: a bracket is closed by its like, `self` comes first in a method, `except` after
`try`, a quote is closed by its like, a block is indented by one step more than its head, a module
that was imported is used."""
