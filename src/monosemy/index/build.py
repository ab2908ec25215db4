"""Making an index: one pass of the model over some text."""

from __future__ import annotations

import json
import shutil
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from scipy.sparse import csr_matrix

from monosemy.activations import counted_activations
from monosemy.artefact import MANIFEST, load_manifest, write_text
from monosemy.coders import Code, Dictionary, attach
from monosemy.corpus import Corpus, Place, ShardSource
from monosemy.corpus import Part as Side
from monosemy.errors import UserError
from monosemy.index.index import Index
from monosemy.index.join import KIND, join_parts
from monosemy.index.part import PART, Entries, Misses, Part
from monosemy.index.text import TokenRecorder
from monosemy.lm import LM
from monosemy.progress import Task

TOKENS = 1_000_000
"""Tokens looked at, unless asked otherwise."""

_RECIPE = "recipe.json"
_PART_ENTRIES = 2**23
"""Active entries held before they are written as a part: 100 MB."""
_MISSES_EVERY = 8
"""Batches, of which in one it is looked where features nearly fire."""


def build_index(
    dictionary: Dictionary,
    lm: LM,
    corpus: Corpus,
    folder: str | Path,
    *,
    part: Side = "held_out",
    tokens: int = TOKENS,
) -> Index:
    """Run text through a model and its dictionary once, and leave what fires where on disk.

    The work is kept in parts in a hidden folder beside the index's; interrupted, it goes on there
    when asked for the same again. Memory: some 300 MB, and the text of 8 million active entries.

    Args:
        dictionary: what to look at.
        lm: the model it belongs to; checked.
        corpus: the text.
        folder: of the index; one that is there is replaced when the new one is whole.
        part: of the corpus.
        tokens: counted tokens to look at; the batch that reaches them is used whole.

    Raises:
        UserError: the dictionary does not fit the model, there is no text, or the disk refuses.
    """
    look(dictionary, lm, corpus, folder, part=part, tokens=tokens)
    return join_index(lm, folder)


def look(
    dictionary: Dictionary,
    lm: LM,
    corpus: Corpus,
    folder: str | Path,
    *,
    part: Side = "held_out",
    tokens: int = TOKENS,
    shard: tuple[int, int] = (1, 1),
) -> None:
    """Do one shard's share of `build_index`: look at its documents, leave parts for `join_index`.

    Args:
        dictionary: what to look at.
        lm: the model it belongs to; checked.
        corpus: the text.
        folder: of the index that is to be.
        part: of the corpus.
        tokens: of all shards together.
        shard: its number, from 1, and how many there are.

    Raises:
        UserError: as `build_index`; no such shard; an index of another kind in the way.
    """
    folder = Path(folder)
    if folder.exists() and any(folder.iterdir()):
        load_manifest(folder, KIND)
    if tokens < 1:
        raise UserError(f"tokens is {tokens}", "allowed: 1 and above")
    attach(dictionary, lm)
    number, of = shard
    recipe = {**_recipe(dictionary, corpus, part, tokens), "shards": of}
    work = _Work.open(_parts_folder(folder) / f"{number}-of-{of}", recipe)
    shared = Corpus(ShardSource(corpus.source, number, of), held_out=corpus.held_out)
    stream = dictionary.provenance.stream(lm, shared, part, shuffled_rows=False)
    share = -(-tokens // of)
    if work.complete:
        return
    gathered = _Gathered(dictionary.width)
    with Task("index", share) as task:
        task.advance(work.n_tokens)
        for batch in stream.read(work.place):
            x = counted_activations(lm, batch, [dictionary.hookpoint])[dictionary.hookpoint]
            gathered.add(dictionary, x, gathered.text.add(batch))
            task.advance(len(x))
            work.n_tokens += len(x)
            work.place = batch.place
            if work.n_tokens >= share:
                break
            if gathered.n_entries >= _PART_ENTRIES:
                work.add(gathered, complete=False)
                gathered = _Gathered(dictionary.width)
    work.add(gathered, complete=True)


def join_index(lm: LM, folder: str | Path) -> Index:
    """Join what `look` left of every shard into the index, and remove it.

    Raises:
        UserError: a shard is missing or not complete, or they are of different things.
    """
    folder = Path(folder)
    shards = sorted(_parts_folder(folder).glob("*-of-*"), key=lambda p: int(p.name.split("-")[0]))
    recipes = [json.loads((shard / _RECIPE).read_text("utf-8")) for shard in shards]
    of = recipes[0]["shards"] if recipes else 1
    if any(recipe != recipes[0] for recipe in recipes):
        raise UserError(
            f"the shards in `{_parts_folder(folder)}` are not of one index",
            "remove those of another dictionary, text or number of tokens",
        )
    found = [_Work.open(shard, recipes[0]) for shard in shards]
    ready = [shard.name for shard, work in zip(shards, found, strict=True) if work.complete]
    missing = [name for i in range(1, of + 1) if (name := f"{i}-of-{of}") not in ready]
    if missing:
        raise UserError(
            f"not every shard of `{folder}` is complete: {', '.join(missing)} missing",
            "run `monosemy index RUN --shard I/N` for each, then join",
        )
    recipe = {name: value for name, value in recipes[0].items() if name != "shards"}
    parts = [part for work in found for part in work.parts]
    join_parts(parts, folder, recipe, _vocabulary(lm))
    shutil.rmtree(_parts_folder(folder))
    return Index.open(folder)


def is_made(
    dictionary: Dictionary,
    corpus: Corpus,
    folder: str | Path,
    *,
    part: Side = "held_out",
    tokens: int = TOKENS,
) -> bool:
    """Say whether the index that `build_index` would make is there already.

    Text that has changed under its name is not noticed.
    """
    if not (Path(folder) / MANIFEST).is_file():
        return False
    manifest, recipe = load_manifest(folder, KIND), _recipe(dictionary, corpus, part, tokens)
    return {name: manifest.get(name) for name in recipe} == json.loads(json.dumps(recipe))


def _recipe(dictionary: Dictionary, corpus: Corpus, part: Side, tokens: int) -> dict[str, Any]:
    return {
        "dictionary": dictionary.identity(),
        "provenance": dictionary.provenance.to_dict(),
        "text": {**corpus.describe(), "part": part},
        "context": dictionary.provenance.context,
        "tokens_asked": tokens,
    }


def _parts_folder(folder: Path) -> Path:
    return folder.with_name(f".{folder.name}-parts")


@dataclass
class _Work:
    """Parts of one shard that are on disk, and how far they reach."""

    folder: Path
    parts: list[Path]
    n_tokens: int = 0
    place: Place = field(default_factory=Place)
    complete: bool = False

    @classmethod
    def open(cls, folder: Path, recipe: dict[str, Any]) -> _Work:
        """Find the parts made for this recipe; those for another are removed."""
        path = folder / _RECIPE
        text = json.dumps(recipe, indent=2, sort_keys=True)
        if not path.is_file() or path.read_text("utf-8") != text:
            shutil.rmtree(folder, ignore_errors=True)
            write_text(path, text)
        parts = sorted(p for p in folder.iterdir() if p.is_dir() and not p.name.startswith("."))
        work = cls(folder, parts)
        for part in parts:
            manifest = load_manifest(part, PART)
            work.n_tokens += manifest["n_tokens"]
            work.place = Place.from_dict(manifest["place"])
            work.complete = manifest["complete"]
        return work

    def add(self, gathered: _Gathered, *, complete: bool) -> None:
        """Write what was gathered as the next part."""
        folder = self.folder / f"{len(self.parts):06}"
        place = self.place.to_dict()
        manifest = {"n_tokens": gathered.n_tokens, "place": place, "complete": complete}
        gathered.part().save(folder, manifest)
        self.parts.append(folder)
        self.complete = complete


class _Gathered:
    """What is to be the next part: active entries, token by token."""

    def __init__(self, width: int) -> None:
        self.width = width
        self.n_entries = 0
        self.n_tokens = 0
        self.text = TokenRecorder()
        self._places: list[np.ndarray] = []
        self._codes: list[csr_matrix] = []
        self._misses = Misses.none(width)
        self._batches = 0

    @torch.no_grad()
    def add(self, dictionary: Dictionary, x: torch.Tensor, places: np.ndarray) -> None:
        """Add the activations of counted tokens at some places."""
        if not len(x):
            return
        if self._batches % _MISSES_EVERY == 0:
            code = self._look_for_misses(dictionary, x, places)
        else:
            code = dictionary.encode_sparse(x)
        self._batches += 1
        fired = code.values > 0
        counts = code.l0.cpu().numpy()
        values, features = (t[fired].cpu().numpy() for t in (code.values, code.indices))
        offsets = np.concatenate([[0], np.cumsum(counts)]).astype(np.int32)
        columns = features.astype(np.int32)
        self._codes.append(csr_matrix((values, columns, offsets), (len(x), self.width)))
        self._places.append(places)
        self.n_entries += len(values)
        self.n_tokens += len(x)

    def _look_for_misses(self, dictionary: Dictionary, x: torch.Tensor, places: np.ndarray) -> Code:
        """Encode, and note where each feature's pre-activation is highest without firing."""
        scores = dictionary.coder.pre_activations(x)
        code = dictionary.coder.code_of(x, scores)
        fired = code.values > 0
        scores[code.tokens[fired], code.indices[fired]] = -torch.inf
        nearest = scores.max(0)
        self._misses.add(places[nearest.indices.cpu().numpy()], nearest.values.cpu().numpy())
        return code

    def part(self) -> Part:
        """Return everything added, feature by feature."""
        places = np.concatenate([np.zeros(0, np.int64), *self._places]).astype(np.int32)
        offsets, entries, values = _by_feature(self._codes, self.width)
        return Part(
            Entries(offsets, places[entries], values),
            self._misses,
            self.text.columns(),
            self.text.names,
            self.text.texts,
        )


def _by_feature(codes: Sequence[csr_matrix], width: int) -> tuple[np.ndarray, ...]:
    """Return offsets of features, and each entry's token and activation, feature by feature."""
    if not codes:
        return np.zeros(width + 1, np.int64), np.zeros(0, np.int64), np.zeros(0, np.float32)
    ends = np.cumsum([code.nnz for code in codes])[:-1]
    starts = zip([0, *ends.tolist()], codes, strict=True)
    offsets = np.concatenate([[0], *(code.indptr[1:] + start for start, code in starts)])
    columns = np.concatenate([code.indices for code in codes])
    values = np.concatenate([code.data for code in codes])
    whole = csr_matrix((values, columns, offsets), (len(offsets) - 1, width)).tocsc()
    return whole.indptr.astype(np.int64), whole.indices, whole.data


def _vocabulary(lm: LM) -> list[str]:
    tokenizer = lm.tokenizer
    if tokenizer is None:
        return []
    return [str(tokenizer.decode([i])) for i in range(len(tokenizer))]
