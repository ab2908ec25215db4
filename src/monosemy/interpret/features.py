"""What is known of every feature over some text: who fires where, and how much.

Entries are held feature by feature, so a feature is one slice. They are collected in one pass
over held-out text and saved as an artefact, from which cards are cut without the model.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch

from monosemy.activations import counted_activations
from monosemy.artefact import load_manifest, load_tensors, save_artefact
from monosemy.coders import Dictionary, attach
from monosemy.corpus import TokenStream
from monosemy.errors import UserError
from monosemy.interpret.logit_lens import in_stream, logit_lens
from monosemy.interpret.text import TextRecorder, TextTable
from monosemy.interpret.view import Exemplar, FeatureView
from monosemy.lm import LM
from monosemy.progress import Task

KIND = "features"
_FILE = "features.safetensors"
_BINS = 30


@dataclass(frozen=True, slots=True)
class Features:
    """Every feature of a dictionary over some text; `features[28]` is one of them.

    Iterating goes over those that fired, most frequent first.
    """

    offsets: np.ndarray
    """[width + 1] entries of feature f are those from offsets[f] to offsets[f+1]."""
    tokens: np.ndarray
    """[entries] number of the token, ascending within a feature."""
    values: np.ndarray
    """[entries] activation there."""
    lens_values: np.ndarray
    """[width, 2n] logit weights of the n most promoted and n most suppressed tokens."""
    lens_tokens: list[list[str]]
    """[width][2n] the tokens."""
    text: TextTable
    n_tokens: int

    @property
    def width(self) -> int:
        """Number of features, dead ones included."""
        return len(self.offsets) - 1

    @property
    def counts(self) -> np.ndarray:
        """[width] tokens on which each feature fired."""
        return np.diff(self.offsets)

    @property
    def live(self) -> list[int]:
        """Features that fired, most frequent first."""
        order = np.argsort(-self.counts, kind="stable")
        return order[self.counts[order] > 0].tolist()

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
        if not 0 <= feature < self.width:
            raise UserError(
                f"there is no feature {feature}",
                f"this dictionary has features 0 to {self.width - 1}",
            )
        tokens, values = self.entries(feature)
        half = self.lens_values.shape[1] // 2
        lens = list(zip(self.lens_tokens[feature], self.lens_values[feature].tolist(), strict=True))
        top = float(values.max(initial=0.0))
        counts, edges = np.histogram(values, bins=_BINS, range=(0, top or 1.0))
        return FeatureView(
            id=feature,
            density=len(tokens) / max(self.n_tokens, 1),
            max=top,
            mean_active=float(values.mean()) if len(values) else 0.0,
            n_tokens=self.n_tokens,
            histogram=(edges.tolist(), counts.tolist()),
            exemplars=[
                self._exemplar(tokens, values, peak, window)
                for peak in self._peaks(tokens, values, exemplars)
            ],
            promoted=lens[:half],
            suppressed=lens[half:],
        )

    def entries(self, feature: int) -> tuple[np.ndarray, np.ndarray]:
        """Return the numbers of the tokens a feature fires on, ascending, and its activations."""
        part = slice(self.offsets[feature], self.offsets[feature + 1])
        return self.tokens[part], self.values[part]

    def _peaks(self, tokens: np.ndarray, values: np.ndarray, count: int) -> list[int]:
        """Return the entries with the largest activations: at first one a document, one a row."""
        places = self.text.places[tokens]
        context = self.text.document.shape[1]
        order = np.argsort(-values, kind="stable")
        documents = self.text.document.reshape(-1)[places[order]]
        rows = places[order] // context
        first_in_document = np.unique(documents, return_index=True)[1]
        first_in_row = np.unique(rows, return_index=True)[1]
        chosen = sorted(first_in_document.tolist())[:count]
        chosen += [i for i in sorted(first_in_row.tolist()) if i not in set(chosen)]
        return order[sorted(chosen[:count])].tolist()

    def _exemplar(self, tokens: np.ndarray, values: np.ndarray, peak: int, window: int) -> Exemplar:
        place = int(self.text.places[tokens[peak]])
        words, numbers, index = self.text.window(place, window)
        found = np.searchsorted(tokens, numbers)
        found = np.minimum(found, len(tokens) - 1)
        activations = np.where(tokens[found] == numbers, values[found], 0.0)
        document = self.text.document.reshape(-1)[place]
        return Exemplar(self.text.ids[document], words, activations.tolist(), index)

    def save(self, folder: str | Path) -> Path:
        """Write to a folder; see `docs/format.md`.

        Raises:
            UserError: the folder holds something else, or the disk refuses.
        """
        text = [t.encode("utf-8") for t in self.text.texts]
        tensors = {
            "offsets": self.offsets,
            "tokens": self.tokens,
            "values": self.values,
            "lens_values": self.lens_values,
            "document": self.text.document,
            "start": self.text.start,
            "end": self.text.end,
            "number": self.text.number,
            "text": np.frombuffer(b"".join(text), dtype=np.uint8).copy(),
            "text_offsets": np.cumsum([0, *map(len, text)]),
        }
        manifest = {
            "n_tokens": self.n_tokens,
            "documents": self.text.ids,
            "lens_tokens": self.lens_tokens,
        }
        files = {_FILE: {name: torch.from_numpy(a) for name, a in tensors.items()}}
        return save_artefact(folder, KIND, manifest, files)

    @classmethod
    def load(cls, folder: str | Path) -> Features:
        """Read what `save` wrote.

        Raises:
            UserError: it is not there, damaged, or of a format this version does not read.
        """
        manifest = load_manifest(folder, KIND)
        a = {name: t.numpy() for name, t in load_tensors(folder, _FILE, manifest).items()}
        raw, cuts = a["text"].tobytes(), a["text_offsets"]
        texts = [raw[i:j].decode("utf-8") for i, j in itertools.pairwise(cuts)]
        text = TextTable(
            a["document"], a["start"], a["end"], a["number"], manifest["documents"], texts
        )
        return cls(
            a["offsets"],
            a["tokens"],
            a["values"],
            a["lens_values"],
            manifest["lens_tokens"],
            text,
            manifest["n_tokens"],
        )


def collect_features(
    dictionary: Dictionary, lm: LM, stream: TokenStream, *, tokens: int = 100_000
) -> Features:
    """Stream text through a model and its dictionary and keep every active entry.

    Memory: 8 bytes for each active entry, so about 26 MB for 100,000 tokens at L0 32.

    Args:
        dictionary: what to look at.
        lm: the model it belongs to; checked.
        stream: rows of text, by rights held out from training.
        tokens: counted tokens to look at.

    Raises:
        UserError: the dictionary does not fit the model, or there is no text.
    """
    attach(dictionary, lm)
    lens_values, lens_tokens = _lens(dictionary, lm)
    recorder = TextRecorder()
    parts: list[tuple[np.ndarray, np.ndarray, np.ndarray]] = []
    seen = 0
    with Task("features", tokens) as task:
        for batch in stream:
            name = dictionary.hookpoint
            x = counted_activations(lm, batch, [name])[name]
            code = dictionary.encode_sparse(x)
            fired = code.values > 0
            entries = (code.indices[fired], code.tokens[fired] + seen, code.values[fired])
            features, numbers, values = (t.cpu().numpy() for t in entries)
            parts.append((features.astype(np.int32), numbers.astype(np.int32), values))
            recorder.add(batch)
            seen += len(x)
            task.advance(len(x))
            if seen >= tokens:
                break
    features, numbers, values = (np.concatenate(a) for a in zip(*parts, strict=True))
    order = np.argsort(features, kind="stable")
    offsets = np.concatenate([[0], np.cumsum(np.bincount(features, minlength=dictionary.width))])
    return Features(
        offsets, numbers[order], values[order], lens_values, lens_tokens, recorder.table(), seen
    )


def _lens(dictionary: Dictionary, lm: LM) -> tuple[np.ndarray, list[list[str]]]:
    """Read the directions that features write; outside the residual stream they say nothing."""
    tokenizer = lm.tokenizer if lm.is_causal else None
    if tokenizer is None or not lm.has_head or not in_stream(lm, dictionary.explains):
        return np.zeros((dictionary.width, 0), np.float32), [[] for _ in range(dictionary.width)]
    values, ids = logit_lens(lm, dictionary.coder.W_dec)
    names = {i: str(tokenizer.decode([i])) for i in ids.unique().tolist()}
    return values.numpy(), [[names[i] for i in row] for row in ids.tolist()]
