"""Several corpora mixed by weight."""

from __future__ import annotations

import random
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

from monosemy.corpus.document import Document
from monosemy.corpus.source import Source
from monosemy.errors import UserError

PREFIX = "mix:"


@dataclass(frozen=True)
class MixSource:
    """Documents of several sources, so that characters come in the proportion of their weights.

    The next document is always of the source that is furthest behind its share. The mix ends with
    the source that runs out first: none is gone over twice while another still has text.
    """

    parts: Sequence[tuple[Source, float]]

    def __post_init__(self) -> None:
        if not self.parts:
            raise UserError("a mix has no source", "such as `mix:a.txt=0.7,b.txt=0.3`")
        for source, weight in self.parts:
            if not 0 < weight < float("inf"):
                raise UserError(f"the weight of `{source.name}` is {weight}", "allowed: above 0")

    @property
    def name(self) -> str:
        return PREFIX + ",".join(f"{source.name}={weight:g}" for source, weight in self.parts)

    def describe(self) -> dict[str, Any]:
        asked = [source.describe() for source, _ in self.parts]  # the same for all of them
        shared = {k: v for values in asked for k, v in values.items() if v is not None}
        return {**shared, "source": self.name}

    def read(self, rng: random.Random | None) -> Iterator[Document]:
        readers = [source.read(rng) for source, _ in self.parts]
        shares = [0.0] * len(readers)
        while True:
            behind = shares.index(min(shares))
            document = next(readers[behind], None)
            if document is None:
                return
            source, weight = self.parts[behind]
            shares[behind] += max(len(document.text), 1) / weight
            yield replace(document, id=f"{source.name}/{document.id}")


def split_mix(name: str) -> list[tuple[str, float]]:
    """Return the names and weights in `mix:NAME=WEIGHT,NAME=WEIGHT`.

    Raises:
        UserError: it is not of that form.
    """
    parts = []
    for part in name.removeprefix(PREFIX).split(","):
        source, equals, weight = part.rpartition("=")
        try:
            parts.append((source.strip(), float(weight)))
        except ValueError:
            equals = ""
        if not equals or not source.strip():
            raise UserError(
                f"`{part}` in `{name}` is not a source and its weight",
                "such as `mix:builtin:stdlib=0.7,notes.txt=0.3`; a path with a comma cannot stand "
                "in a mix",
            )
    return parts
