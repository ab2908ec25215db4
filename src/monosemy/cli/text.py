"""Options that say which text to train on."""

from __future__ import annotations

from dataclasses import dataclass

from monosemy.corpus import Corpus, open_corpus


@dataclass(frozen=True)
class Text:
    """Text, and how it is read."""

    data: str = "builtin:stdlib"
    """`builtin:stdlib`, a file or folder of .txt .md .py .jsonl .parquet .csv, a data set,
    `mix:NAME=WEIGHT,...`, or `pairs:FILE`."""
    column: str | None = None
    """Column that holds the text; found if not named. Of pairs two: BEFORE,AFTER."""
    config: str | None = None
    """Configuration of a Hugging Face data set."""
    split: str = "train"
    """Split of a Hugging Face data set."""
    held_out: float = 0.1
    """Share of documents kept away from training."""

    skip_bad: bool = False
    """Pass over files that cannot be read, and say which."""
    disk_budget: str | None = None
    """Read a Hugging Face data set from whole files, downloaded ahead and removed when read, that
    take no more than this, such as 20GB; else its rows are streamed."""

    def open(self) -> Corpus:
        """Open the corpus.

        Raises:
            UserError: there is nothing there, or it cannot be read.
        """
        return open_corpus(
            self.data,
            column=self.column,
            config=self.config,
            split=self.split,
            held_out=self.held_out,
            skip_bad=self.skip_bad,
            disk_budget=self.disk_budget,
        )
