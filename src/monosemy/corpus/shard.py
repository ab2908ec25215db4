"""A share of a corpus's documents, so that several machines can look at one corpus."""

from __future__ import annotations

import random
import zlib
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from monosemy.corpus.document import Document
from monosemy.corpus.source import Source
from monosemy.errors import UserError


@dataclass(frozen=True)
class ShardSource:
    """Every document whose id falls to shard `number` of `of`, counted from 1."""

    whole: Source
    number: int
    of: int

    def __post_init__(self) -> None:
        if not 1 <= self.number <= self.of:
            raise UserError(
                f"there is no shard {self.number}/{self.of}", "such as 1/4, 2/4, 3/4 and 4/4"
            )

    @property
    def name(self) -> str:
        return self.whole.name

    def describe(self) -> dict[str, Any]:
        return self.whole.describe()

    def read(self, rng: random.Random | None) -> Iterator[Document]:
        for document in self.whole.read(rng):
            if zlib.crc32(document.id.encode("utf-8", "replace")) % self.of == self.number - 1:
                yield document
