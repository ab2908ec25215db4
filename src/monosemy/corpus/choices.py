"""Prompts with two answers, one wanted: what steering vectors are made from and tested on."""

from __future__ import annotations

import ast
import itertools
import json
import random
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from monosemy.corpus.columns import text_of_row
from monosemy.corpus.document import Document
from monosemy.corpus.edits import Source
from monosemy.corpus.files import read_rows
from monosemy.corpus.pairs import PREFIX, read_pairs
from monosemy.corpus.stdlib import stdlib_documents
from monosemy.errors import UserError

BUILTIN = "builtin:"
COLUMNS = ("positive", "negative")
"""Of the wanted text and the other, unless others are named."""
CAA = ("question", "answer_matching_behavior", "answer_not_matching_behavior")
"""Columns of contrastive activation addition's data sets (Rimsky et al. 2024, arXiv 2312.06681)."""

_LONGEST = 400
"""Characters of a prompt that is made."""
_LINE = re.compile(r"[^\n]{1,60}")
"""Of an answer that is made: the rest of the line, but no more than so many characters."""


@dataclass(frozen=True, slots=True)
class Choice:
    """A prompt, the answer that is wanted, and the other one."""

    prompt: str
    wanted: str
    other: str
    group: str = ""
    """What it shares with other choices, such as a file: a group is never parted. "": nothing."""
    asks: bool = False
    """The prompt is a question: it goes into a model's chat template where there is one."""


def read_choices(source: str | Path, columns: tuple[str, str] | None = None) -> Iterator[Choice]:
    """Yield prompts with two answers.

    - Contrastive activation addition's JSON: a list, or lines, of objects with `question`,
      `answer_matching_behavior` and `answer_not_matching_behavior`.
    - Any table of two texts, the wanted one first: columns named, or `positive` and `negative`, or
      whatever else `read_pairs` reads when they are named. What both texts begin with is the
      prompt.
    - `builtin:docstring` and others by a kind of statement, see `KINDS`: `made_choices`.

    Args:
        source: a file, or a built-in name.
        columns: of the wanted text and the other.

    Raises:
        UserError: it cannot be read, a row lacks a column, or its two texts are the same.
    """
    name = str(source).removeprefix(PREFIX)
    kind = name.removeprefix(BUILTIN)
    if name.startswith(BUILTIN) and kind != "stdlib":
        yield from made_choices(kind)
        return
    listed = _listed(Path(name).expanduser())
    if listed is not None:
        for where, row in listed:
            yield _caa(row, where)
        return
    for pair in read_pairs(name, columns or COLUMNS):
        wanted, other = pair.before.text, pair.after.text
        prompt = wanted[: shared_start(wanted, other)]
        yield _checked(
            Choice(prompt, wanted[len(prompt) :], other[len(prompt) :], pair.group),
            pair.before.id.removesuffix("/before"),
        )


def split_choices(
    choices: Sequence[Choice], held_out: float = 0.5
) -> tuple[list[Choice], list[Choice]]:
    """Part choices into those to make something from and those to test it on.

    A hash says where one goes: of the group, or where there is none of the question or the wanted
    text. Neither order nor the other choices matter.

    Raises:
        UserError: either part is empty.
    """
    parts: tuple[list[Choice], list[Choice]] = ([], [])
    for choice in choices:
        text = choice.prompt if choice.asks else choice.prompt + choice.wanted
        key = f"choice\0{choice.group or text}"
        parts[Document("", key).is_held_out(held_out)].append(choice)
    if not all(parts):
        raise UserError(
            f"of {len(choices)} pairs, {len(parts[1])} are held out",
            "at least one of either kind is needed: give more pairs, or more groups of them",
        )
    return parts


def made_choices(kind: str, most: int = 120, seed: int = 0) -> Iterator[Choice]:
    """Yield openings of the standard library's functions, which a statement of some kind follows.

    Wanted is the first line of that statement, such as a docstring's; the other answer is the
    first line of the statement after it, of another kind: it could stand there too. A line rather
    than its first word, for a vector of the state in which one word was just read says what to
    write after it: added before, it makes that word less likely.
    Files are those that are held out of `builtin:stdlib`; they are the groups.

    Args:
        kind: of `KINDS`.
        most: choices.
        seed: of the draw, where there are more.

    Raises:
        UserError: no such kind.
    """
    if kind not in KINDS:
        raise UserError(
            f"no choices `{BUILTIN}{kind}`",
            f"built in: {', '.join(f'`{BUILTIN}{name}`' for name in KINDS)}",
        )
    found = [
        choice
        for document in stdlib_documents()
        if document.is_held_out()
        for choice in _openings(document, KINDS[kind])
    ]
    random.Random(seed).shuffle(found)
    yield from found[:most]


def _is_docstring(node: ast.stmt) -> bool:
    value = node.value if isinstance(node, ast.Expr) else None
    return isinstance(value, ast.Constant) and isinstance(value.value, str)


KINDS: dict[str, Callable[[ast.stmt], bool]] = {
    "docstring": _is_docstring,
    "assert": lambda node: isinstance(node, ast.Assert),
    "for": lambda node: isinstance(node, ast.For),
    "if": lambda node: isinstance(node, ast.If),
    "import": lambda node: isinstance(node, ast.Import | ast.ImportFrom),
    "try": lambda node: isinstance(node, ast.Try),
    "with": lambda node: isinstance(node, ast.With),
}
"""Kinds of statement that choices are made of."""


def _openings(document: Document, is_kind: Callable[[ast.stmt], bool]) -> Iterator[Choice]:
    source = Source(document.text)
    for function, (start, _) in source.functions():
        for node, following in itertools.pairwise(function.body):
            if not is_kind(node) or is_kind(following):
                continue
            here, there = (source.span(n)[0] for n in (node, following))
            wanted, other = (_LINE.match(document.text, place) for place in (here, there))
            prompt = document.text[start:here]
            if wanted and other and len(prompt) <= _LONGEST and wanted[0] != other[0]:
                yield Choice(prompt, wanted[0], other[0], document.id)


def _listed(path: Path) -> Iterator[tuple[str, Mapping[str, Any]]] | None:
    """Return the rows of a file with CAA's columns; None of one without."""
    if path.suffix.lower() not in (".json", ".jsonl"):
        return None
    rows = _json_list(path) if path.suffix.lower() == ".json" else None
    if rows is not None:
        return ((f"{path}:{number}", row) for number, row in enumerate(rows, start=1))
    _, first = next(read_rows(path), (0, {}))
    if not set(CAA) & set(first):
        return None
    return ((f"{path}:{number}", row) for number, row in read_rows(path))


def _json_list(path: Path) -> list[Any] | None:
    """Return the items of a JSON list; None where a file holds anything else."""
    try:
        text = path.read_text("utf-8-sig")
    except (OSError, UnicodeDecodeError) as error:
        what = getattr(error, "strerror", None) or error
        raise UserError(f"cannot read {path}: {what}", "check the path") from error
    if not text.lstrip().startswith("["):
        return None
    try:
        rows = json.loads(text)
    except json.JSONDecodeError as error:
        raise UserError(f"{path} is not JSON: {error}", "copy it again") from error
    if not rows:
        raise UserError(f"{path} is an empty list", "at least two pairs are needed")
    return list(rows)


def _caa(row: Any, where: str) -> Choice:
    if not isinstance(row, Mapping):
        raise UserError(f"{where} is a {type(row).__name__}, not an object", f"with {_names(CAA)}")
    missing = [name for name in CAA if name not in row]
    if missing:
        raise UserError(
            f"{where} has no `{missing[0]}`", f"needed: {_names(CAA)}; there: {_names(row)}"
        )
    question, wanted, other = (text_of_row(row, name, where).strip() for name in CAA)
    return _checked(Choice(question, wanted, other, asks=True), where)


def shared_start(a: Sequence[Any], b: Sequence[Any]) -> int:
    """Return how many letters, or tokens, two texts have in common at the beginning."""
    pairs = enumerate(zip(a, b, strict=False))
    return next((i for i, (x, y) in pairs if x != y), min(len(a), len(b)))


def _checked(choice: Choice, where: str) -> Choice:
    if choice.wanted == choice.other:
        raise UserError(f"{where}: both texts are the same", "they must differ; take the row out")
    if not choice.wanted or not choice.other:
        raise UserError(
            f"{where}: one text is the beginning of the other, `{choice.prompt[-40:]}`",
            "both need an answer of their own where they part",
        )
    return choice


def _names(columns: Any) -> str:
    return ", ".join(f"`{name}`" for name in columns)
