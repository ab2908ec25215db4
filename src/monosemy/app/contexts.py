"""Contexts of a feature as HTML, hundreds in a few milliseconds."""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache

from markupsafe import Markup, escape

from monosemy.index import Exemplar
from monosemy.report.numbers import figure
from monosemy.report.tokens import Piece, cut, is_folded

_BREAK = '<span class="ms-newline" aria-hidden="true"></span>'


def context_html(exemplar: Exemplar, maximum: float) -> Markup:
    """Return the text of a context, each token that fires as warm as its share of `maximum`.

    As the macro `tokens` of card.html writes it, but tokens on which nothing fires are plain text.
    """
    shown: list[str] = []
    at_line_start = False
    pairs = zip(exemplar.tokens, exemplar.activations, strict=True)
    for index, (token, activation) in enumerate(pairs):
        folds = token[-1:] == "\n" and is_folded(exemplar.tokens, index)
        text, at_line_start = _text(token, folds, at_line_start)
        if activation > 0 or index == exemplar.peak:
            text = _firing(text, activation, maximum, index == exemplar.peak)
        shown.append(text)
    return Markup("".join(shown))


def contexts_html(contexts: Sequence[tuple[str, Exemplar]], maximum: float) -> Markup:
    """Return contexts as items of a list, each with the figure it was chosen by."""
    return Markup("\n".join(_item(shown, exemplar, maximum) for shown, exemplar in contexts))


def _item(shown: str, exemplar: Exemplar, maximum: float) -> str:
    name = escape(exemplar.document)
    return (
        f'<li><span class="ms-peak">{shown}</span>\n'
        f'<span class="ms-doc" title="{name}">{name}</span>\n'
        f'<pre class="ms-text" data-place="{exemplar.place}">'
        f"{context_html(exemplar, maximum)}</pre></li>"
    )


def _firing(text: str, activation: float, maximum: float, is_peak: bool) -> str:
    share = min(activation / maximum, 1.0) if maximum > 0 else 0.0
    on = f' ms-on" style="--a:{share:.3f}' if share > 0 else ""
    top = " ms-top" if is_peak else ""
    return f'<span class="ms-t{top}{on}" data-a="{figure(activation)}">{text}</span>'


@lru_cache(2**16)
def _text(token: str, folds: bool, at_line_start: bool) -> tuple[str, bool]:
    pieces, at_line_start = cut(token, folds, at_line_start)
    return "".join(map(_piece, pieces)), at_line_start


def _piece(piece: Piece) -> str:
    text = str(escape(piece.text))
    if piece.kind == "text":
        return text
    if piece.kind == "newline":
        return _BREAK + text
    if piece.kind == "fold":
        return f'{_BREAK}<span class="ms-fold">{text}</span>'
    return f'<span class="ms-{piece.kind}">{text}</span>'
