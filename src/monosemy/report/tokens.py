"""Token text made visible: every character seen or accounted for, none able to disturb a page."""

from __future__ import annotations

import unicodedata
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Literal

from monosemy.index.view import Exemplar, FeatureView

Kind = Literal["text", "indent", "tab", "newline", "fold", "control"]

EMPTY: tuple[Kind, str] = ("control", "∅")
"""Shown for a token without text, such as the second half of a character cut in two."""


@dataclass(frozen=True, slots=True)
class Piece:
    """A stretch of a token that is shown in one way; that of a control character holds its code.

    `fold` is a line break that is followed by another one: its sign is shown, but the line is not
    broken, so that blank lines do not cost space.
    """

    kind: Kind
    text: str


@dataclass(frozen=True, slots=True)
class SeenToken:
    """A token of a context: what to show, and how strongly the feature fires on it."""

    pieces: list[Piece]
    activation: float
    share: float
    is_peak: bool


def seen_tokens(exemplar: Exemplar, maximum: float) -> list[SeenToken]:
    """The tokens of a context, with activations as shares of `maximum`, between 0 and 1."""
    seen, at_line_start = [], False
    for index, activation in enumerate(exemplar.activations):
        token, folds = exemplar.tokens[index], is_folded(exemplar.tokens, index)
        pieces, at_line_start = cut(token, folds, at_line_start)
        share = min(1.0, max(0.0, activation / maximum)) if maximum > 0 else 0.0
        seen.append(SeenToken(pieces, activation, share, index == exemplar.peak))
    return seen


def is_folded(tokens: Sequence[str], index: int) -> bool:
    """Say whether a token ends in a line break that another one follows."""
    if not tokens[index].endswith("\n"):
        return False
    return next(filter(None, tokens[index + 1 :]), "").startswith("\n")


def cut(token: str, folds: bool, at_line_start: bool) -> tuple[list[Piece], bool]:
    """Cut a token into what is shown in one way; say too whether the next begins a line."""
    pieces = []
    for kind, stretch in _stretches(token, "\n" if folds else "") or [EMPTY]:
        is_indent = kind == "text" and at_line_start and not stretch.strip(" ")
        pieces.append(Piece("indent" if is_indent else kind, stretch))
        at_line_start = kind in ("newline", "fold") or (
            at_line_start and (is_indent or kind == "tab")
        )
    return pieces, at_line_start


def visible(token: str) -> str:
    """A token on one line: spaces as ·, line breaks as ↵, tabs as →, other controls by code."""
    shown = []
    for kind, text in _stretches(token, following=""):
        if kind in ("newline", "fold"):
            shown.append("↵")
        elif kind == "tab":
            shown.append("→")
        elif kind == "control":
            shown.append(text)
        elif not text.strip(" ") and len(text) > 4:
            shown.append(f"·\N{MULTIPLICATION SIGN}{len(text)}")
        else:
            shown.append(text.replace(" ", "·"))
    return "".join(shown) or EMPTY[1]


def one_line(exemplar: Exemplar) -> list[tuple[str, float]]:
    """The text of a context on one line, token by token, with activations; indentation is cut."""
    pairs = zip(exemplar.tokens, exemplar.activations, strict=True)
    return [("".join(_flat(token)), activation) for token, activation in pairs]


def _flat(token: str) -> Iterator[str]:
    for kind, text in _stretches(token, following=""):
        if kind in ("newline", "fold"):
            yield "↵"
        elif kind == "tab" or not text.strip(" "):
            yield " "
        else:
            yield text


def peak_tokens(view: FeatureView, most: int = 3) -> list[tuple[str, int]]:
    """The tokens on which the contexts peak, and how many contexts do; commonest first."""
    peaks = Counter(visible(e.tokens[e.peak]) for e in view.exemplars)
    return peaks.most_common(most)


def _stretches(token: str, following: str) -> list[tuple[Kind, str]]:
    """Cut a token into stretches; those of "text" are all spaces or without leading spaces."""
    stretches: list[tuple[Kind, str]] = []
    plain = ""
    for index, character in enumerate(token):
        kind = _kind(character, token[index + 1 : index + 2] or following)
        starts_word = bool(plain) and plain.isspace() and character != " "
        if plain and (kind != "text" or starts_word):
            stretches.append(("text", plain))
            plain = ""
        if kind == "text":
            plain += character
        else:
            shown = f"U+{ord(character):04X}" if kind == "control" else character
            stretches.append((kind, shown))
    if plain:
        stretches.append(("text", plain))
    return stretches


def _kind(character: str, following: str) -> Kind:
    if character == "\n":
        return "fold" if following == "\n" else "newline"
    if character == "\t":
        return "tab"
    # Format characters include those that reverse the direction of the text around them.
    if unicodedata.category(character) in ("Cc", "Cf", "Cs", "Cn", "Co", "Zl", "Zp"):
        return "control"
    return "text"
