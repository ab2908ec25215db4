"""`Index`: which features fire where, and how much, read from disk as it is asked for."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from safetensors import SafetensorError
from safetensors.numpy import load_file, save_file

from monosemy.artefact import disk_error, load_manifest, map_tensors, verify_artefact
from monosemy.coders import Dictionary
from monosemy.coders.dictionary import check_feature
from monosemy.errors import UserError
from monosemy.index.examples import BINS, DRAWN, GROUPS, MISSES, QUANTILES, RANDOM, TOP
from monosemy.index.join import KIND
from monosemy.index.names import HUMAN, NO_CONCEPT, read_lines, read_names, write_lines
from monosemy.index.part import ENTRIES, EXAMPLES, blocks
from monosemy.index.prompt import PromptFeatures, fire_on
from monosemy.index.search import Found, SearchText
from monosemy.index.text import TokenTable
from monosemy.index.view import Exemplar, FeatureView
from monosemy.lm import LM

if TYPE_CHECKING:
    import pyarrow
    from scipy.sparse import csr_matrix

_SHAPES = {
    "histogram": (BINS,),
    "quantiles": (len(QUANTILES),),
    "top": (TOP,),
    "groups": (GROUPS, DRAWN),
    "random": (RANDOM,),
    "miss_places": (MISSES,),
    "miss_scores": (MISSES,),
}


@dataclass(frozen=True, slots=True)
class Match:
    """How well a feature tells some tokens from the others."""

    feature: int
    both: int
    """Tokens of them on which it fires."""
    precision: float
    """Share of the tokens on which it fires that are of them."""
    recall: float
    """Share of them on which it fires."""
    lift: float
    """Precision over their share of all tokens."""

    @property
    def f1(self) -> float:
        """Harmonic mean of precision and recall."""
        total = self.precision + self.recall
        return 2 * self.precision * self.recall / total if total else 0.0


@dataclass(frozen=True, slots=True)
class Shared:
    """What features make of a set of words, such as the days of the week."""

    all: list[Match]
    """Features that fire on half or more of the occurrences of each; recall is that of the word
    they fire on least, precision and lift are of all words together."""
    own: dict[str, list[Match]]
    """Of each word the features that fire on half or more of its occurrences, and four times as
    often on them as on those of any other; precision is their share of its firings on the set,
    were all words as frequent."""


@dataclass(frozen=True, slots=True)
class Coactivation:
    """How often some features fire together with every one."""

    features: list[int]
    joint: np.ndarray
    """[features, width] tokens on which both fire."""
    counts: np.ndarray
    """[width] tokens on which each fires."""

    @property
    def jaccard(self) -> np.ndarray:
        """[features, width] tokens on which both fire over those on which either does."""
        either = self.counts[self.features][:, None] + self.counts - self.joint
        return self.joint / np.maximum(either, 1)


class Index:
    """Every active entry of a dictionary over some text, feature by feature.

    `index[28]` is a feature; iterating goes over those that fired, most frequent first. Arrays are
    mapped from disk: opening is instant, and memory holds what was looked at.

    Attributes:
        folder: where it lies.
        offsets: [width + 1] entries of feature f are those from offsets[f] to offsets[f+1].
        places: [entries] place in `text`, ascending within a feature.
        values: [entries] activation there.
        text: the token table.
        n_tokens: counted tokens looked at.
    """

    def __init__(self, folder: Path, manifest: dict[str, Any]) -> None:
        """Map the files; callers want `open`."""
        self.folder, self.manifest = folder, manifest
        entries = map_tensors(folder, ENTRIES, manifest)
        self.offsets = np.asarray(entries["offsets"])
        # Plain arrays over the mapped memory: a slice of a `memmap` takes ten times as long.
        self.places, self.values = np.asarray(entries["places"]), np.asarray(entries["values"])
        self.text = TokenTable.open(folder, manifest)
        self.n_tokens = int(manifest["n_tokens"])
        examples = map_tensors(folder, EXAMPLES, manifest)
        self._examples = {
            name: np.asarray(a.reshape(-1, *_SHAPES.get(name, ()))) for name, a in examples.items()
        }
        self._read: dict[str, tuple[Any, Any]] = {}
        self._checked: Dictionary | None = None

    @classmethod
    def open(cls, folder: str | Path) -> Index:
        """Open an index by its own folder or its run's.

        Raises:
            UserError: it is not there, truncated, of a format this version does not read, or was
                made of another dictionary than the run's.
        """
        folder = Path(folder)
        if not (folder / "dictionary").is_dir():
            return cls(folder, load_manifest(folder, KIND))
        if not (folder / "index").is_dir():
            raise UserError(f"`{folder}` has no index", f"make it with: monosemy index {folder}")
        index = cls(folder / "index", load_manifest(folder / "index", KIND))
        index.check_dictionary(Dictionary.from_pretrained(folder))
        return index

    def check_dictionary(self, dictionary: Dictionary) -> None:
        """Refuse an index of another dictionary.

        Raises:
            UserError: its weights are not those that the index was made with.
        """
        if dictionary is self._checked:  # the checksum of large weights takes a second
            return
        if self.manifest["dictionary"] != dictionary.identity():
            raise UserError(
                f"`{self.folder}` is the index of another dictionary: the weights differ",
                "make it again with `monosemy index RUN`; names that people gave are kept",
            )
        self._checked = dictionary

    def verify(self) -> None:
        """Hold every file against its checksum.

        Raises:
            UserError: one was altered.
        """
        verify_artefact(self.folder, KIND)

    def __repr__(self) -> str:
        live = int((self.counts > 0).sum())
        return (
            f"Index({live:,} of {self.width:,} features live on {self.n_tokens:,} tokens of "
            f"{len(self.text.names):,} documents, {len(self.values):,} entries)"
        )

    # --- sizes ------------------------------------------------------------------------------

    @property
    def width(self) -> int:
        """Number of features, dead ones included."""
        return len(self.offsets) - 1

    @cached_property
    def counts(self) -> np.ndarray:
        """[width] tokens on which each feature fired."""
        return np.diff(self.offsets)

    @property
    def live(self) -> list[int]:
        """Features that fired, most frequent first."""
        order = np.argsort(-self.counts, kind="stable")
        return order[self.counts[order] > 0].tolist()

    @property
    def max(self) -> np.ndarray:
        """[width] largest activation of each feature."""
        return self._examples["max"]

    @property
    def mean(self) -> np.ndarray:
        """[width] mean activation of each feature where it fires."""
        return self._examples["mean"]

    @property
    def peaks(self) -> np.ndarray:
        """[width, 24] places of the strongest activations, no text twice; -1: there are fewer."""
        return self._examples["top"]

    def __len__(self) -> int:
        return self.width

    def __iter__(self) -> Iterator[FeatureView]:
        return (self.feature(feature) for feature in self.live)

    def __getitem__(self, feature: int) -> FeatureView:
        """Return one feature.

        Raises:
            UserError: there is no feature of that number.
        """
        return self.feature(feature)

    # --- one feature ------------------------------------------------------------------------

    def check_feature(self, feature: int) -> None:
        """Refuse a feature number that does not exist.

        Raises:
            UserError: it is negative or not below the width.
        """
        check_feature(feature, self.width)

    def entries(self, feature: int) -> tuple[np.ndarray, np.ndarray]:
        """Return the places at which a feature fires, ascending, and its activations."""
        part = slice(self.offsets[feature], self.offsets[feature + 1])
        return self.places[part], self.values[part]

    def feature(self, feature: int, *, exemplars: int = 8, window: int = 32) -> FeatureView:
        """Return one feature.

        Args:
            feature: its number.
            exemplars: strongest contexts to show, up to 24: of different documents as far as there
                are, and never the same text twice.
            window: tokens in each.

        Raises:
            UserError: there is no feature of that number.
        """
        self.check_feature(feature)
        of = {name: a[feature] for name, a in self._examples.items()}
        top = float(of["max"])
        edges = np.linspace(0, top or 1.0, BINS + 1)
        misses = zip(of["miss_places"], of["miss_scores"], strict=True)
        return FeatureView(
            id=feature,
            density=int(self.counts[feature]) / max(self.n_tokens, 1),
            max=top,
            mean_active=float(of["mean"]),
            n_tokens=self.n_tokens,
            histogram=(edges.tolist(), of["histogram"].tolist()),
            exemplars=self._exemplars(feature, of["top"][:exemplars], window),
            quantiles=dict(zip(QUANTILES, of["quantiles"].tolist(), strict=True)),
            groups=[self._exemplars(feature, group, window) for group in of["groups"]],
            random=self._exemplars(feature, of["random"], window),
            near_misses=[
                (self.exemplar(feature, int(place), window), float(score))
                for place, score in misses
                if place >= 0
            ],
            names=self.names.get(feature, []),
        )

    def exemplars(self, feature: int, count: int = TOP, window: int = 32) -> list[Exemplar]:
        """Return a feature's strongest contexts, strongest first.

        Raises:
            UserError: there is no feature of that number.
        """
        self.check_feature(feature)
        return self._exemplars(feature, self.peaks[feature][:count], window)

    def _exemplars(self, feature: int, places: np.ndarray, window: int) -> list[Exemplar]:
        return [self.exemplar(feature, place, window) for place in places.tolist() if place >= 0]

    def exemplar(self, feature: int, place: int, window: int = 32) -> Exemplar:
        """Return the context of a place, with a feature's activations in it.

        It stays within the row and the document: what the model saw.
        """
        around = self.text.window(place, window)
        places, values = self.entries(feature)
        first, last = np.searchsorted(places, [around[0], around[-1] + 1])
        activations = np.zeros(len(around))
        activations[places[first:last] - around[0]] = values[first:last]
        name = self.text.names[int(self.text.document[place])]
        words = self.text.words(around)
        return Exemplar(name, words, activations.tolist(), place - int(around[0]), place)

    # --- questions --------------------------------------------------------------------------

    def where(
        self, *, token: str | None = None, text: str | None = None, fewest: int = 5
    ) -> list[Match]:
        """Return the features that tell some tokens from the others, best first by F1.

        Args:
            token: those of this text, white space in front included; if there is none, those that
                are this text without it.
            text: a regular expression; those with a character of a match.
            fewest: of them on which a feature must fire.

        Raises:
            UserError: neither or both are given, the expression is none, or nothing matches.
        """
        return self.telling(self.tokens_where(token=token, text=text), fewest=fewest)

    def tokens_where(self, *, token: str | None = None, text: str | None = None) -> np.ndarray:
        """Return the places of counted tokens, chosen as `where` does.

        Raises:
            UserError: as `where`.
        """
        if (token is None) == (text is None):
            raise UserError("say which tokens", "give `token` or `text`, one of them")
        if token is not None:
            places = self.text.with_token(token)
        else:
            try:
                pattern = re.compile(str(text))
            except re.error as error:
                raise UserError(f"`{text}` is no regular expression: {error}") from error
            places = self.text.matching(pattern)
        places = places[self.text.counted[places]]
        if not len(places):
            raise UserError(
                f"nothing in the index's text matches {token if text is None else text!r}",
                f"it holds {self.n_tokens:,} tokens of {len(self.text.names)} documents; "
                "a larger one may hold it (monosemy index --tokens)",
            )
        return places

    def shared(self, words: Sequence[str]) -> Shared:
        """Return the features that fire on all of some words, and those of each one alone.

        Words are whole words of the text, their case as given; a feature counts that fires on any
        of a word's tokens.

        Raises:
            UserError: there are fewer than two words, or one is not in the text.
        """
        if len(dict.fromkeys(words)) < 2:
            raise UserError(f"{len(words)} words are no set", "give two or more different ones")
        places = {word: self._last_tokens(word) for word in words}
        recall = {w: self.counts_on(p) / len(p) for w, p in places.items()}
        rates = np.stack(list(recall.values()))
        everywhere = np.unique(np.concatenate(list(places.values())))
        both, least = self.counts_on(everywhere), rates.min(0)
        precision = both / np.maximum(self.counts, 1)
        lift = precision / (len(everywhere) / self.n_tokens)
        common = [
            Match(f, int(both[f]), float(precision[f]), float(least[f]), float(lift[f]))
            for f in np.flatnonzero(least >= _OFTEN).tolist()
        ]
        return Shared(
            sorted(common, key=lambda match: (-match.f1, match.feature)),
            {w: _own(i, rates, places[w]) for i, w in enumerate(places)},
        )

    def _last_tokens(self, word: str) -> np.ndarray:
        """Return the place of the last token of each occurrence of a word: all of it was read."""
        return self.tokens_where(text=rf"(?<=\b{re.escape(word[:-1])}){re.escape(word[-1:])}\b")

    def telling(self, places: np.ndarray, *, fewest: int = 1) -> list[Match]:
        """Return the features that fire on some places, best first by F1."""
        both = self.counts_on(places)
        found = np.flatnonzero(both >= max(fewest, 1))
        share = len(places) / self.n_tokens
        matches = []
        for feature in found.tolist():
            precision = float(both[feature] / self.counts[feature])
            recall = float(both[feature] / len(places))
            matches.append(Match(feature, int(both[feature]), precision, recall, precision / share))
        return sorted(matches, key=lambda match: (-match.f1, match.feature))

    def counts_on(self, places: np.ndarray) -> np.ndarray:
        """[width] on how many of some places each feature fires."""
        chosen = np.zeros(len(self.text), bool)
        chosen[places] = True
        total = np.zeros(self.width, np.int64)
        for first, last in blocks(self.offsets, _BLOCK):
            hits = chosen[self.places[self.offsets[first] : self.offsets[last]]]
            sums = np.concatenate([[0], np.cumsum(hits)])
            total[first:last] = np.diff(sums[self.offsets[first : last + 1] - self.offsets[first]])
        return total

    def coactivation(self, features: int | Sequence[int]) -> Coactivation:
        """Count on how many tokens features fire together with each other one.

        Raises:
            UserError: there is no feature of that number.
        """
        chosen = [features] if isinstance(features, int) else list(features)
        for feature in chosen:
            self.check_feature(feature)
        joint = np.stack([self.counts_on(self.entries(f)[0]) for f in chosen])
        return Coactivation(chosen, joint, self.counts)

    def top(
        self, prompt: str, dictionary: Dictionary | None = None, lm: LM | None = None
    ) -> PromptFeatures:
        """Return which features fire on a text, token by token and over all of it.

        Args:
            prompt: the text.
            dictionary: whose index it is; None: the one in the run that the index lies in.
            lm: the model it belongs to; None: it is loaded, once.

        Raises:
            UserError: the text is empty or too long, the index is another dictionary's, or there
                is no dictionary or model.
        """
        dictionary = dictionary or self._own_dictionary
        self.check_dictionary(dictionary)
        lm = lm or self._own_lm
        density = self.counts / max(self.n_tokens, 1)
        return fire_on(prompt, dictionary.to(lm.device), lm, largest=self.max, density=density)

    @cached_property
    def _own_dictionary(self) -> Dictionary:
        return Dictionary.from_pretrained(self.folder.parent)

    @cached_property
    def _own_lm(self) -> LM:
        made_with = self.manifest["provenance"]
        return LM(made_with["model"], revision=made_with.get("revision"))

    def search(self, words: str, count: int = 50) -> list[Found]:
        """Return features whose names or strongest contexts hold all of some words, best first.

        A name counts most, then the tokens on which a feature fires most, then the text around.
        """
        return self._search_text.search(words, count, self.names)

    @cached_property
    def _search_text(self) -> SearchText:
        return SearchText.of(self)

    # --- slices -----------------------------------------------------------------------------

    def to_scipy(self, features: Sequence[int] | None = None) -> csr_matrix:
        """Return features' activations as a matrix [features, places]; of all, not copied."""
        from scipy.sparse import csr_matrix

        if features is None:
            offsets, places, values = self.offsets, self.places, self.values
        else:
            own = [self.entries(feature) for feature in features]
            offsets = np.cumsum([0, *(len(places) for places, _ in own)])
            places = np.concatenate([np.zeros(0, np.int32), *(p for p, _ in own)])
            values = np.concatenate([np.zeros(0, np.float32), *(v for _, v in own)])
        if offsets[-1] < 2**31:  # else scipy would copy the places to the offsets' type
            offsets = offsets.astype(np.int32)
        shape = (len(offsets) - 1, len(self.text))
        return csr_matrix((values, places, offsets), shape, copy=False)

    def to_numpy(self, features: Sequence[int], places: np.ndarray) -> np.ndarray:
        """Return activations [features, places]."""
        found = np.zeros((len(features), len(places)), np.float32)
        for row, feature in enumerate(features):
            own, values = self.entries(feature)
            at = np.minimum(np.searchsorted(own, places), max(len(own) - 1, 0))
            if len(own):
                found[row] = np.where(own[at] == places, values[at], 0)
        return found

    def to_arrow(self, features: Sequence[int]) -> pyarrow.Table:
        """Return features' active entries, one a row, with token, document and characters."""
        import pyarrow

        own = [self.entries(feature) for feature in features]
        owner = np.repeat(np.asarray(features), [len(places) for places, _ in own])
        places = np.concatenate([np.zeros(0, np.int32), *(p for p, _ in own)])
        values = np.concatenate([np.zeros(0, np.float32), *(v for _, v in own)])
        ids = self.text.ids[places]
        words = {i: self.text.vocabulary[i] for i in np.unique(ids).tolist()}
        names = [self.text.names[i] for i in self.text.document[places].tolist()]
        return pyarrow.table(
            {
                "feature": owner,
                "place": places,
                "activation": values,
                "token": [words[i] for i in ids.tolist()],
                "document": names,
                "start": self.text.start[places],
                "end": self.text.end[places],
            }
        )

    # --- what features are called -----------------------------------------------------------

    def table(self, name: str) -> dict[int, dict[str, Any]]:
        """Return what `write_table` wrote: feature -> row; empty where nothing was.

        Raises:
            UserError: a line is damaged.
        """
        path = self.folder / f"{name}.jsonl"
        return self._kept(name, [path], lambda: {row["feature"]: row for row in read_lines(path)})

    def write_table(self, name: str, rows: Iterable[dict[str, Any]]) -> None:
        """Keep what was found out about features in the index's folder, a JSON line each.

        Raises:
            UserError: the disk refuses.
        """
        write_lines(self.folder / f"{name}.jsonl", rows)

    def arrays(self, name: str) -> dict[str, np.ndarray]:
        """Return what `write_arrays` wrote; nothing where nothing was."""
        path = self.folder / f"{name}.safetensors"
        return self._kept(path.name, [path], lambda: load_file(path) if path.is_file() else {})

    def write_arrays(self, name: str, arrays: Mapping[str, np.ndarray]) -> None:
        """Keep arrays that were found out about features in the index's folder.

        Raises:
            UserError: the disk refuses.
        """
        path = self.folder / f"{name}.safetensors"
        draft = path.with_name(f".{path.name}.draft")
        try:
            save_file(dict(arrays), draft)
            draft.replace(path)
        except (OSError, SafetensorError) as error:
            draft.unlink(missing_ok=True)
            raise disk_error(path, error) from error

    @property
    def names(self) -> dict[int, list[str]]:
        """What each is called: by people, the latest first, then by explanations, by concepts."""
        files = (HUMAN, *(f"{table}.jsonl" for table, _ in _NAMING))
        return self._kept("names", [self.folder / file for file in files], self._names)

    def _names(self) -> dict[int, list[str]]:
        names: dict[int, list[str]] = {}
        for feature, given in read_names(self.folder).items():
            names[feature] = [name.name for name in reversed(given)]
        for table, column in _NAMING:
            for feature, row in self.table(table).items():
                if row.get(column, NO_CONCEPT) not in (NO_CONCEPT, "", None):
                    names.setdefault(feature, []).append(str(row[column]))
        return names

    def _kept(self, name: str, files: Sequence[Path], read: Callable[[], Any]) -> Any:
        """Return what was read of some files, read anew when one of them was changed."""
        stamp = [_stamp(file) for file in files]
        if name not in self._read or self._read[name][0] != stamp:
            self._read[name] = stamp, read()
        return self._read[name][1]


def _own(number: int, rates: np.ndarray, places: np.ndarray) -> list[Match]:
    """Return the features of one word of a set alone, from recall [words, width]."""
    mine, others = rates[number], np.delete(rates, number, axis=0).max(0)
    share = mine / np.maximum(rates.sum(0), 1e-12)
    found = np.flatnonzero((mine >= _OFTEN) & (mine >= _OVER * others)).tolist()
    matches = [
        Match(
            feature=f,
            both=round(mine[f] * len(places)),
            precision=float(share[f]),
            recall=float(mine[f]),
            lift=float(share[f]) * len(rates),
        )
        for f in found
    ]
    return sorted(matches, key=lambda match: (-match.f1, match.feature))


_BLOCK = 2**24
"""Entries looked at at once."""
_OFTEN, _OVER = 0.5, 4.0
"""Share of a word's occurrences on which its features fire, and how much more than on others'."""

_NAMING = (("explanations", "explanation"), ("concepts", "label"))
"""Tables whose rows name features, and the column that does."""


def _stamp(file: Path) -> tuple[int, int, int] | None:
    """Return what tells a file from the same one after it was changed; None where there is none."""
    try:
        found = file.stat()
    except OSError:
        return None
    return found.st_mtime_ns, found.st_size, found.st_ino
