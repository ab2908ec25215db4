"""What is known of every feature: where it fires, from the index, and what that means."""

from __future__ import annotations

import shutil
import tempfile
import weakref
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np

from monosemy.coders import Dictionary
from monosemy.corpus import Corpus, Part
from monosemy.index import FeatureView, Index, join_index, look
from monosemy.interpret.describe import LENS, write_lens
from monosemy.lm import LM


class Features:
    """Every feature of a dictionary over some text; `features[28]` is one of them.

    Iterating goes over those that fired, most frequent first.
    """

    def __init__(self, index: Index) -> None:
        """Look at an index, and at what was found out beside it."""
        self.index = index

    @classmethod
    def open(cls, folder: str | Path) -> Features:
        """Open those of a run, or of an index's folder.

        Raises:
            UserError: as `Index.open`.
        """
        return cls(Index.open(folder))

    @property
    def width(self) -> int:
        """Number of features, dead ones included."""
        return self.index.width

    @property
    def n_tokens(self) -> int:
        """Number of tokens looked at."""
        return self.index.n_tokens

    @property
    def counts(self) -> np.ndarray:
        """[width] tokens on which each feature fired."""
        return self.index.counts

    @property
    def live(self) -> list[int]:
        """Features that fired, most frequent first."""
        return self.index.live

    def __len__(self) -> int:
        return self.width

    def __iter__(self) -> Iterator[FeatureView]:
        return (self[feature] for feature in self.live)

    def __getitem__(self, feature: int) -> FeatureView:
        """Return one feature, with its eight strongest contexts.

        Raises:
            UserError: there is no feature of that number.
        """
        return self.view(feature)

    def view(self, feature: int, *, exemplars: int = 8, window: int = 32) -> FeatureView:
        """Return one feature.

        Args:
            feature: its number.
            exemplars: contexts to show, each from another document as far as there are.
            window: tokens in each.

        Raises:
            UserError: there is no feature of that number.
        """
        view = self.index.feature(feature, exemplars=exemplars, window=window)
        lens = self.lens(feature)
        half = len(lens) // 2
        return replace(view, promoted=lens[:half], suppressed=lens[half:])

    def lens(self, feature: int, table: str = "logits") -> list[tuple[str, float]]:
        """Return the tokens that a feature promotes most, then those it suppresses most.

        Args:
            feature: its number.
            table: of `vocabulary_lens`; nothing is returned where there is none of that name.
        """
        arrays = self.index.arrays(LENS)
        if f"{table}.values" not in arrays:
            return []
        words = self.index.text.vocabulary
        ids, values = (arrays[f"{table}.{name}"][feature].tolist() for name in ("tokens", "values"))
        return [(words[i], value) for i, value in zip(ids, values, strict=True)]


def build_features(
    dictionary: Dictionary,
    lm: LM,
    corpus: Corpus,
    folder: str | Path | None = None,
    *,
    part: Part = "held_out",
    tokens: int = 100_000,
) -> Features:
    """Make an index of a dictionary's features, and look at what they write.

    Args:
        dictionary: what to look at.
        lm: the model it belongs to; checked.
        corpus: the text.
        folder: of the index; None: one that goes when the features do.
        part: of the corpus.
        tokens: counted tokens to look at.

    Raises:
        UserError: as `build_index`.
    """
    temporary = Path(tempfile.mkdtemp(prefix="monosemy-")) if folder is None else None
    folder = temporary / "index" if temporary else Path(str(folder))
    look(dictionary, lm, corpus, folder, part=part, tokens=tokens)
    features = join_features(dictionary, lm, folder)
    if temporary:
        weakref.finalize(features, shutil.rmtree, temporary, ignore_errors=True)
    return features


def join_features(dictionary: Dictionary, lm: LM, folder: str | Path) -> Features:
    """Join what was looked at into an index, and find out what features write.

    Raises:
        UserError: as `join_index`.
    """
    index = join_index(lm, folder)
    write_lens(index, lm, dictionary)
    return Features(index)
