"""Find features: by words, by the tokens they tell from others, or by a text they fire on."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import tyro
from rich.table import Table

from monosemy.cli.console import console, open_dictionary
from monosemy.errors import UserError
from monosemy.index import Index, Match
from monosemy.report.tokens import peak_tokens


@dataclass(frozen=True)
class Command:
    """Options of `monosemy search`."""

    run_folder: Annotated[tyro.conf.Positional[Path], tyro.conf.arg(metavar="RUN")]
    """A run with an index."""
    words: Annotated[tyro.conf.Positional[str | None], tyro.conf.arg(metavar="WORDS")] = None
    """Words in features' names and strongest contexts."""
    token: str | None = None
    """Features that fire on this token, white space in front included."""
    regex: str | None = None
    """Features that fire on what this regular expression matches in the text."""
    prompt: str | None = None
    """Features that fire on this text."""
    without: str | None = None
    """With --prompt: and do not fire on this one."""
    among: tuple[str, ...] = ()
    """Features that fire on all of these words, and those of each one alone, such as digits."""
    count: int = 15
    """Features to show."""
    device: str | None = None
    """`cpu`, `cuda`, `mps`; default the best there is."""

    def run(self) -> None:
        """Print the features found, best first."""
        asked = [self.words, self.token, self.regex, self.prompt, self.among or None]
        if sum(x is not None for x in asked) != 1:
            raise UserError(
                "say what to look for, in one way", "WORDS, --token, --regex, --prompt or --among"
            )
        if self.without is not None and self.prompt is None:
            raise UserError("--without needs --prompt", "the text on which features are to fire")
        index = Index.open(self.run_folder)
        if self.words is not None:
            self._show_found(index)
        elif self.prompt is not None:
            self._show_prompt(index, self.prompt)
        elif self.among:
            self._show_shared(index)
        else:
            matches = index.where(token=self.token, text=self.regex)
            title = repr(self.token if self.token is not None else self.regex)
            console.print(self._matches(index, title, matches))

    def _show_found(self, index: Index) -> None:
        table = _table(f"`{self.words}`", "score")
        found = index.search(str(self.words), self.count)
        for hit in found:
            table.add_row(str(hit.feature), f"{hit.score:g}", *_seen(index, hit.feature))
        if not found:
            raise UserError(
                f"no feature's name or strongest contexts hold `{self.words}`",
                "try fewer words, or what --regex matches anywhere in the text",
            )
        console.print(table)

    def _show_shared(self, index: Index) -> None:
        shared = index.shared(self.among)
        console.print(self._matches(index, "fire on all of them", shared.all))
        for word, own in shared.own.items():
            if own:
                console.print(self._matches(index, f"of {word!r} alone", own))
            else:
                console.print(f"no feature of {word!r} alone", style="dim")

    def _matches(self, index: Index, title: str, matches: list[Match]) -> Table:
        table = _table(title, "F1", "precision", "recall", "lift")
        for match in matches[: self.count]:
            figures = (match.f1, match.precision, match.recall)
            shown = [*(f"{x:.2f}" for x in figures), f"{match.lift:,.0f}"]
            table.add_row(str(match.feature), *shown, *_seen(index, match.feature))
        return table

    def _show_prompt(self, index: Index, prompt: str) -> None:
        dictionary, lm = open_dictionary(self.run_folder, None, self.device)
        found = index.top(prompt, dictionary, lm)
        left_out: set[int] = set()
        if self.without is not None:
            left_out = {f.feature for f in index.top(self.without, dictionary, lm).overall}
        table = _table(f"{prompt!r}", "on", "activation", "of its largest", "tokens")
        for hit in [f for f in found.overall if f.feature not in left_out][: self.count]:
            share = hit.max / max(float(index.max[hit.feature]), 1e-9)
            shown = [repr(found.tokens[hit.token]), f"{hit.max:.2f}", f"{share:.0%}"]
            table.add_row(str(hit.feature), *shown, str(hit.tokens), *_seen(index, hit.feature))
        console.print(table)


def _table(title: str, *columns: str) -> Table:
    table = Table("feature", *columns, "density", "fires most on", "names", title=title)
    for column in table.columns[: len(columns) + 2]:
        column.justify = "right"
    return table


def _seen(index: Index, feature: int) -> tuple[str, str, str]:
    view = index.feature(feature)
    peaks = " ".join(token for token, _ in peak_tokens(view))
    return f"{view.density:.3%}", peaks, "; ".join(view.names[:2])
