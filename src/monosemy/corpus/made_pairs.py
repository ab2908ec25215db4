"""Labelled pairs made from Python's standard library: functions with a flaw, and as they were."""

from __future__ import annotations

import ast
import itertools
import re
from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import replace
from random import Random
from typing import NamedTuple

from monosemy.corpus.document import Document
from monosemy.corpus.edits import Change, Edits, Function, Site, Source, edited, sites, tree_of
from monosemy.corpus.flaws import FLAWS
from monosemy.corpus.refactorings import REFACTORINGS
from monosemy.corpus.stdlib import stdlib_documents

CHANGES = {**FLAWS, **REFACTORINGS}
_DEF = re.compile(r"\s*(async )?def ")
_LONGEST = 30
"""Lines of a function at most, so that most of it is read with its change."""


class MadePair(NamedTuple):
    """A function with an edit, and as it was."""

    kind: str
    """What was done to it: a name in `FLAWS` or `REFACTORINGS`."""
    file: str
    name: str
    """Of the function."""
    before: str
    after: str
    """As it is in the library."""


class _Place(NamedTuple):
    """A function in which a kind of edit can be made, and how."""

    document: Document
    function: Function
    lines: tuple[int, int]
    edits: list[Edits]


def made_pairs(seed: int = 0, most: int = 60) -> Iterator[MadePair]:
    """Yield functions of the standard library with a flaw, and as they are.

    `before` has the flaw, as before a fix; likewise for refactorings, which make none. An edit
    changes no character but its own, the result parses, and is another program or, where only
    comments change, the same. Files take turns, and a function serves a kind once. Files are those
    that are held out of `builtin:stdlib`, and for seldom kinds as many others as are needed.

    Args:
        seed: of the edits that are drawn.
        most: pairs of each kind.
    """
    documents = list(stdlib_documents(rng=Random(seed)))
    places: dict[str, list[_Place]] = {kind: [] for kind in CHANGES}
    for document in documents:
        if document.is_held_out():
            for kind, place in _places(document, CHANGES):
                places[kind].append(place)
    for kind, change in CHANGES.items():
        rng, found = Random(f"{seed}/{kind}"), places[kind]
        if change.seldom and len(found) < most:
            found += itertools.islice(_elsewhere(documents, kind, change), most - len(found))
        pairs = (pair for place in _in_turns(found, rng) if (pair := _pair(kind, place, rng)))
        yield from itertools.islice(pairs, most)


def _places(document: Document, changes: Mapping[str, Change]) -> Iterator[tuple[str, _Place]]:
    """Yield the short functions of a file and what can be done to them."""
    source = Source(document.text)
    for function, lines in source.functions():
        if not 2 < document.text.count("\n", *lines) <= _LONGEST:
            continue
        by_type: dict[type[ast.AST], list[Site]] = {}
        for site in sites(source, function):
            by_type.setdefault(type(site.node), []).append(site)
        for kind, change in changes.items():
            where = [site for node in change.nodes for site in by_type.get(node, ())]
            if edits := [edits for site in where for edits in change.find(site)]:
                yield kind, _Place(document, function, lines, edits)


def _elsewhere(documents: list[Document], kind: str, change: Change) -> Iterator[_Place]:
    """Yield places of a seldom kind in files that are not held out, which are not parsed whole."""
    for document in documents:
        for function in [] if document.is_held_out() else _cut_out(document, change.seldom):
            try:
                yield from (place for _, place in _places(function, {kind: change}))
            except SyntaxError:  # the end of the function was guessed wrongly
                continue


def _cut_out(document: Document, pattern: str) -> Iterator[Document]:
    """Yield functions that hold a text, as documents of which all lines before are empty."""
    lines = document.text.splitlines(keepends=True)
    done = -1
    for match in re.finditer(pattern, document.text):
        line = document.text.count("\n", 0, match.start())
        above = range(line, max(line - _LONGEST, done), -1)
        first = next((i for i in above if _DEF.match(lines[i])), None)
        if first is None:
            continue
        depth, done = _depth(lines[first]), first + 1
        while done < len(lines) and (lines[done].isspace() or _depth(lines[done]) > depth):
            done += 1
        head = "\n" * (first - 1) + "if 1:\n" if depth else "\n" * first
        yield replace(document, text=f"{head}{''.join(lines[first:done]).rstrip()}\n")


def _depth(line: str) -> int:
    return len(line) - len(line.lstrip())


def _in_turns(places: list[_Place], rng: Random) -> list[_Place]:
    """Return places in a random order, in which no file comes a second time before all others."""
    turns: Counter[str] = Counter()
    numbered = []
    for place in rng.sample(places, len(places)):
        numbered.append((turns[place.document.id], place))
        turns[place.document.id] += 1
    return [place for _, place in sorted(numbered, key=lambda pair: pair[0])]


def _pair(kind: str, place: _Place, rng: Random) -> MadePair | None:
    """Make one of a place's edits, the first in a random order that gives a proper pair."""
    start, end = place.lines
    after = place.document.text[start:end]
    tree = tree_of(after)
    for edits in rng.sample(place.edits, len(place.edits)):
        moved = [(first - start, last - start, new) for first, last, new in edits]
        before = edited(after, moved)
        other = tree_of(before)
        if before == after or other is None or tree is None:
            continue
        if (ast.dump(other) == ast.dump(tree)) == (kind == "comment changed"):
            name = f"{place.function.name}:{place.function.lineno}"
            return MadePair(kind, place.document.id, name, before, after)
    return None
