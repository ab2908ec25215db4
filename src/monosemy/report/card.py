"""A feature as a card of HTML, for notebooks and for the report."""

from __future__ import annotations

from collections.abc import Sequence
from functools import cache, lru_cache
from pathlib import Path

from jinja2 import Environment, FileSystemLoader, StrictUndefined
from markupsafe import Markup, escape

from monosemy.index.view import FeatureView
from monosemy.report import numbers
from monosemy.report.svg import draw_histogram
from monosemy.report.tokens import peak_tokens, seen_tokens, visible

_TEMPLATES = Path(__file__).parent / "templates"


def card_html(view: FeatureView) -> str:
    """The card of a feature: a fragment of HTML that brings its own style and nothing else.

    It follows the reader's (or the notebook's) light or dark theme. Text of tokens and documents
    is escaped.
    """
    card = environment().get_template("card.html").module.card(view)  # type: ignore[attr-defined]
    return f"<style>{stylesheet('card.css')}</style>\n{card}"


def weights_html(pairs: Sequence[tuple[str, float]]) -> Markup:
    """Tokens and their weights as items of a list, with a bar as long as each weight's share."""
    most = max((abs(weight) for _, weight in pairs), default=0) or 1
    return Markup("\n".join(_weight(token, weight, abs(weight) / most) for token, weight in pairs))


def _weight(token: str, weight: float, share: float) -> str:
    shown, sign = _escaped(token), "+" if weight >= 0 else "\N{MINUS SIGN}"
    return (
        f'<li style="--w:{share:.3f}"><code title="{shown}">{shown}</code>'
        f"<span>{sign}{abs(weight):.2f}</span></li>"
    )


@lru_cache(2**16)
def _escaped(token: str) -> str:
    return str(escape(visible(token)))


def stylesheet(name: str) -> Markup:
    """A style sheet of the package, to be written inside a page."""
    return Markup((_TEMPLATES / name).read_text("utf-8"))


def writable(html: str) -> str:
    """Return a page as UTF-8 can write it: text may hold half of a surrogate pair."""
    return html.encode("utf-8", "xmlcharrefreplace").decode("utf-8")


@cache
def environment() -> Environment:
    """The templates, with everything that is put into them escaped."""
    env = Environment(
        loader=FileSystemLoader(_TEMPLATES, encoding="utf-8"),
        autoescape=True,
        undefined=StrictUndefined,
    )
    env.filters.update(
        figure=numbers.figure, count=numbers.count, percent=numbers.percent, visible=visible
    )
    env.globals.update(
        draw_histogram=draw_histogram,
        peak_tokens=peak_tokens,
        seen_tokens=seen_tokens,
        stylesheet=stylesheet,
        weights_html=weights_html,
    )
    return env
