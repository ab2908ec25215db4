"""Documents from a Hugging Face data set, streamed."""

from __future__ import annotations

import random
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Any

from monosemy.corpus.columns import column_of_row, text_of_row
from monosemy.corpus.document import Document
from monosemy.errors import UserError


@dataclass(frozen=True)
class HubSource:
    """A data set of the Hugging Face hub; rows are read as they are needed, none is stored."""

    name: str
    config: str | None = None
    split: str = "train"
    column: str | None = None

    def describe(self) -> dict[str, str | None]:
        return {
            "source": self.name,
            "config": self.config,
            "split": self.split,
            "column": self.column,
        }

    def read(self, rng: random.Random | None) -> Iterator[Document]:
        """Yield the rows in their own order, as they cannot be listed (`rng` is not used)."""
        column = None
        for where, row in self.rows():
            column = column or column_of_row(self.column, row, f"data set `{self.name}`")
            yield Document(id=where, text=text_of_row(row, column, where))

    def rows(self) -> Iterator[tuple[str, Mapping[str, Any]]]:
        """Yield the rows, each with the name of its place."""
        for number, row in enumerate(self.dataset):
            yield f"{self.name}:{self.split}:{number}", row

    @cached_property
    def dataset(self) -> Any:
        """The `datasets.IterableDataset`.

        Raises:
            UserError: `datasets` is not installed, or finds no such data set, config or split.
        """
        try:
            import datasets
        except ImportError as error:
            raise UserError(
                f"`{self.name}` is no file or folder here; to read it from the Hugging Face hub, "
                "the package `datasets` is needed",
                'install it with: pip install "monosemy[data]"',
            ) from error
        try:
            return datasets.load_dataset(self.name, self.config, split=self.split, streaming=True)
        except (OSError, ValueError, RuntimeError) as error:
            reason = (str(error).splitlines() or [type(error).__name__])[0]
            raise UserError(
                f"`{self.name}` is no file or folder here, and as a data set of the Hugging Face "
                f"hub it could not be opened: {reason}",
                "check the name, `config` and `split`; gated data sets need HF_TOKEN",
            ) from error
