"""Prompt: which features fire on a text that somebody pastes, token by token and overall."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from urllib.parse import urlencode

from fastapi import APIRouter, Request, Response
from fastapi.responses import RedirectResponse

from monosemy.app.asked import Form, text, whole
from monosemy.app.columns import labels
from monosemy.app.pages import ThisRun, page
from monosemy.app.runs import OpenRun
from monosemy.index import Exemplar, PromptFeature, PromptFeatures
from monosemy.report.tokens import SeenToken, seen_tokens

router = APIRouter()

OVERALL, EACH = 30, 5
"""Features shown of the whole text, and of a token."""
_ADDRESS = 4000
"""Characters of an address; longer texts stay in the form."""


@dataclass(frozen=True, slots=True)
class Reading:
    """The features that fire on a text, as they are shown.

    Attributes:
        fired: all of them.
        overall: those listed, most telling first.
        shown: the one whose activations the text shows, or None.
        largest: listed feature -> its largest activation over the index's text.
        called: feature -> what it is called; of all that are listed.
    """

    fired: PromptFeatures
    overall: list[PromptFeature]
    shown: int | None
    largest: dict[int, float]
    called: dict[int, str]

    @property
    def tokens(self) -> list[tuple[SeenToken, bool, list[tuple[int, float]]]]:
        """Tokens, whether each is counted, and its strongest features."""
        fired = self.fired
        values = [0.0] * len(fired.tokens)
        if self.shown is not None:
            values = fired.activations(self.shown)
        top = 0.0 if self.shown is None else self.largest[self.shown]
        seen = seen_tokens(Exemplar("", fired.tokens, values, peak=-1), top)
        each = [firing[:EACH] for firing in fired.by_token]
        return list(zip(seen, fired.counted, each, strict=True))

    @property
    def activations(self) -> dict[int, dict[int, float]]:
        """Listed feature -> token -> activation, for pages that show one after the other."""
        listed: dict[int, dict[int, float]] = {f.feature: {} for f in self.overall}
        for token, firing in enumerate(self.fired.by_token):
            for feature, value in firing:
                if feature in listed:
                    listed[feature][token] = float(f"{value:.4g}")
        return listed


def read_prompt(
    run: OpenRun, prompt: str, *, without: str = "", shown: int | None = None
) -> Reading:
    """Run a text through a run's model and dictionary.

    Args:
        run: whose.
        prompt: the text.
        without: another text; features that fire on it are left out of the list.
        shown: the feature whose activations the text shows; default the first of the list.

    Raises:
        UserError: a text is empty or too long, there is no index, or no such feature.
    """
    index = run.features.index
    if shown is not None:
        index.check_feature(shown)
    with run.model:
        fired = index.top(prompt, run.dictionary, run.lm)
        others = index.top(without, run.dictionary, run.lm).overall if without.strip() else []
    left_out = {other.feature for other in others}
    overall = [f for f in fired.overall if f.feature not in left_out]
    listed = overall[:OVERALL]
    if shown is None and listed:
        shown = listed[0].feature
    shown_of = {f for firing in fired.by_token for f, _ in firing[:EACH]}
    shown_of |= {f.feature for f in listed} | ({shown} if shown is not None else set())
    numbers = sorted(shown_of)
    names = dict(zip(numbers, labels(index, numbers), strict=True))
    largest = {f: float(index.max[f]) for f in names}
    return Reading(replace(fired, overall=overall), listed, shown, largest, names)


@router.get("/prompt")
def prompt(request: Request, run: ThisRun) -> Response:
    """Show the features that fire on the text of the address."""
    return _prompt_page(request, run, request.query_params)


@router.post("/prompt")
def sent(request: Request, run: ThisRun, form: Form) -> Response:
    """Give a short text an address; show the features of a long one."""
    asked = {name: text(form, name) for name in ("text", "without", "feature") if form.get(name)}
    address = f"{request.url.path}?{urlencode(asked)}"
    if len(address) <= _ADDRESS:
        return RedirectResponse(address, 303)
    return _prompt_page(request, run, asked)


def _prompt_page(request: Request, run: OpenRun, asked: Mapping[str, str]) -> Response:
    typed, without = text(asked, "text"), text(asked, "without")
    reading = None
    if typed:
        shown = whole(asked, "feature", -1, -1, run.dictionary.width - 1)
        reading = read_prompt(run, typed, without=without, shown=None if shown < 0 else shown)
    return page(
        "prompt.html",
        request,
        run,
        title="Prompt",
        text=typed,
        without=without,
        reading=reading,
        examples=_examples(run) if reading is None else [],
    )


def _examples(run: OpenRun) -> Iterable[str]:
    """Return the beginnings of some documents of the index, to try."""
    table = run.features.index.text
    return [table.text(document)[:600] for document in range(min(3, len(table.names)))]
