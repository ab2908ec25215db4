"""Measure what a model's activations are like, before anything is spent on training."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated

import tyro

from monosemy.artefact import write_text
from monosemy.cli.console import console
from monosemy.cli.text import Text
from monosemy.corpus import open_corpus
from monosemy.device import describe
from monosemy.errors import UserError
from monosemy.evaluation import measure_spread
from monosemy.lm import LM, empty_model
from monosemy.report.spread import COLUMNS, remarks, spread_html, spread_table
from monosemy.training import context_for


@dataclass(frozen=True)
class Command:
    """Options of `monosemy stats`."""

    model: Annotated[tyro.conf.Positional[str], tyro.conf.arg(metavar="MODEL")]
    """`builtin:stdlib`, a folder, or a Hugging Face id."""
    text: Annotated[Text, tyro.conf.arg(name="")] = field(default_factory=Text)
    against: str | None = None
    """Other text, to compare: `builtin:stdlib`, a file, a folder or a data set."""
    hookpoint: tuple[str, ...] = ()
    """Where, any number; default every block of the residual stream."""
    tokens: int = 65_536
    """Tokens to measure on."""
    context: int | None = None
    """Tokens in a row of text; default 128, or what the model can read if that is less."""
    page: Path | None = None
    """Write a page with pictures here, one HTML file."""
    device: str | None = None
    """`cpu`, `cuda`, `mps`; default the best there is."""

    def run(self) -> None:
        """Print the table, what it asks for in words, and write the page."""
        if self.tokens < 2:
            raise UserError(f"tokens is {self.tokens}", "allowed: 2 and above")
        points = self.hookpoint or _every_block(self.model)
        lm = LM(self.model, device=self.device, upto=points)
        corpora = [self.text.open()]
        if self.against is not None:
            corpora.append(open_corpus(self.against, held_out=self.text.held_out))
        context = context_for(lm, self.context)
        console.print(f"{lm} on {describe(lm.device)}", style="dim")
        measured = {}
        for corpus in corpora:
            corpus.check("train")
            title = corpus.name if len(corpora) > 1 else "stats"
            measured[corpus.name] = measure_spread(
                lm, corpus, points, context=context, tokens=self.tokens, title=title
            )
        console.print(spread_table(measured))
        for remark in remarks(measured):
            console.print(remark, markup=False)
        if self.page is not None:
            facts = {
                "model": lm.name,
                "text": ", ".join(corpus.name for corpus in corpora),
                "tokens": f"{self.tokens:,}",
                "rows": f"{context} tokens",
            }
            write_text(self.page, spread_html(f"Activations of {lm.name}", facts, measured))
            console.print(f"page: {self.page}", markup=False)
        else:
            width = max(len(column.title) for column in COLUMNS)
            for column in COLUMNS:
                console.print(f"{column.title:<{width}}  {column.why}", style="dim", markup=False)


def _every_block(model: str) -> tuple[str, ...]:
    return tuple(f"layers.{i}" for i in range(LM(empty_model(model)).n_layers))
