"""Labelled examples for probes: tokens or whole documents, in folds that share no text."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, NamedTuple

import numpy as np
import torch
from jaxtyping import Bool, Float, Int
from scipy import sparse
from torch import Tensor

from monosemy.activations import counted_activations
from monosemy.coders import SparseCoder
from monosemy.corpus import (
    CONCEPTS,
    Document,
    LabelledCorpus,
    Part,
    TokenBatch,
    TokenStream,
    label_tokens,
    syntax_spans,
)
from monosemy.corpus.labels import Spans
from monosemy.evaluation.subject import NotMeaningful, Subject
from monosemy.progress import Task

DICTIONARY, UNTRAINED = "dictionary", "untrained dictionary"

FOLDS = 4
"""Parts into which texts fall; probes are fitted on all but one, and scored on that one."""
FEWEST = 50
"""Examples of either kind that a concept needs, in as many texts as there are folds."""
WINDOW = 8
"""Tokens that the bag of tokens holds at a token: itself and those before it."""
_TEXTS_SEARCHED = 10_000
"""Training texts, at most, among which labelled documents are looked for."""
_READ = 4
"""Text is read up to so many times the tokens wanted where little of it has labels."""


@dataclass(frozen=True, slots=True, eq=False)
class Examples:
    """Tokens, or documents, and which of several concepts are true of them.

    Of documents, activations and codes are means over the counted tokens of the first row of
    text; padding and special tokens are never counted.
    """

    of_tokens: bool
    """One token is an example; else one document."""
    names: tuple[str, ...]
    """Of the concepts."""
    labels: Bool[np.ndarray, "n names"]
    rows: Int[np.ndarray, "names most"]
    """Examples drawn for each concept, as many positive as negative ones; -1 fills up."""
    document: Int[np.ndarray, " n"]
    """Number of the example's text: two documents with the same text are one."""
    fold: Int[np.ndarray, " n"]
    """Part of the texts it falls into."""
    x: Float[Tensor, "n d_in"]
    codes: Mapping[str, sparse.csr_array]
    """[n, width] of the dictionary and of an untrained one."""
    words: Mapping[str, sparse.csr_array]
    """[n, vocabulary] how often tokens stand there: at the token, shortly before, in all."""
    length: Int[np.ndarray, " n"]
    """Tokens: how many come before it in the row. Documents: how many are counted."""
    context: Mapping[str, Any]
    """What was read, drawn and left out: JSON values."""

    @property
    def target(self) -> Bool[np.ndarray, "names most"]:
        """Whether the concept is true of each of its `rows`; False where these are filled up."""
        true = self.labels[self.rows, np.arange(len(self.names))[:, None]]
        return true & (self.rows >= 0)


class Read(NamedTuple):
    """All examples that were read, before some are drawn."""

    of_tokens: bool
    names: tuple[str, ...]
    labels: Bool[np.ndarray, "n names"]
    document: Int[np.ndarray, " n"]
    x: Float[Tensor, "n d_in"]
    codes: Mapping[str, sparse.csr_array] | None
    words: Mapping[str, sparse.csr_array]
    length: Int[np.ndarray, " n"]
    context: Mapping[str, Any]


def examples_of(subject: Subject) -> Examples:
    """Return examples for probes, read once for all suites.

    They are of `subject.labels` where these are given, and else of the concepts of Python source
    (`CONCEPTS`) in held-out documents. Labelled documents that are among the dictionary's training
    text are left out. For each concept as many positive as negative examples are drawn, at
    most `examples` each; concepts with fewer than 50 of either, or in fewer than 4 texts, are left
    out, and of the others at most `concepts` are drawn.

    Raises:
        NotMeaningful: nothing is labelled, or no concept has enough examples.
    """
    return subject.once("examples", lambda: _draw(subject, read_of(subject)))


def read_of(subject: Subject) -> Read:
    """Return all examples that are read for `examples_of`, before any are drawn.

    Raises:
        NotMeaningful: nothing is labelled.
    """
    return subject.once("read", lambda: _read(subject))


def drawn_from(subject: Subject, read: Read, rows: Int[np.ndarray, " n"]) -> Examples:
    """Return certain examples, with all labels, in the folds of `examples_of`; nothing of words."""
    fold = _folds(read.document, np.random.default_rng(subject.seed))[read.document]
    x = read.x[rows]
    return Examples(
        of_tokens=read.of_tokens,
        names=read.names,
        labels=read.labels[rows],
        rows=np.zeros((len(read.names), 0), dtype=np.int64),
        document=read.document[rows],
        fold=fold[rows],
        x=x,
        codes={name: to_csr(coder, x) for name, coder in _coders(subject).items()}
        if read.codes is None
        else {name: code[rows] for name, code in read.codes.items()},
        words={},
        length=read.length[rows],
        context=read.context,
    )


def tokens_read(subject: Subject) -> int:
    """Return how many tokens go through the model for `examples_of`."""
    labels = subject.labels
    if labels is None or labels.of_tokens:
        return subject.size("probe_tokens", 16_384, 32_768, 131_072)
    return _documents(subject) * subject.dictionary.provenance.context


def _documents(subject: Subject) -> int:
    return subject.size("probe_documents", 512, 2_048, 8_192)


def _read(subject: Subject) -> Read:
    labels = subject.labels
    if labels is None:
        return _read_tokens(subject, subject.stream("held_out"), tuple(CONCEPTS), _syntax, set())
    stream, seen = _labelled_stream(subject, labels), _seen(subject, labels)
    if labels.of_tokens:
        return _read_tokens(subject, stream, labels.classes, labels.spans, seen)
    return _read_documents(subject, stream, labels, seen)


def _syntax(document: Document) -> Spans | None:
    return syntax_spans(document.text)


def _labelled_stream(subject: Subject, labels: LabelledCorpus) -> TokenStream:
    """Return labelled text, documents each in a row; of the dictionary's own only held-out ones."""
    provenance = subject.dictionary.provenance
    if not labels.of_tokens:
        provenance = replace(provenance, packed=False)
    mine = subject.corpus.describe()
    same = {name: labels.describe().get(name) for name in mine} == mine
    part: Part = "held_out" if same and not labels.name.startswith("python:") else "all"
    return provenance.stream(subject.lm, labels, part)


def _seen(subject: Subject, labels: LabelledCorpus) -> set[str]:
    """Return the labelled texts that are found among the dictionary's training text."""
    texts = {document.text for document in labels.documents("all")}
    training = itertools.islice(subject.corpus.documents("train"), _TEXTS_SEARCHED)
    return {document.text for document in training if document.text in texts}


def _read_tokens(
    subject: Subject,
    stream: TokenStream,
    names: tuple[str, ...],
    spans: Callable[[Document], Spans | None],
    seen: set[str],
) -> Read:
    """Read labelled tokens until there are enough."""
    wanted, hookpoint = tokens_read(subject), subject.dictionary.hookpoint
    texts: dict[str, int] = {}
    parts: list[tuple[np.ndarray, ...]] = []
    x: list[Tensor] = []
    found = read = 0
    with Task("examples", wanted) as task:
        for batch in stream:
            labels, known = label_tokens(batch, spans, names)
            new = torch.tensor([d.text not in seen for d in batch.documents] + [False])
            keep = batch.counted & known & new[batch.document]
            read += int(batch.counted.sum())
            if keep.any():
                values = subject.reader.activations(batch)[hookpoint]
                x.append(values[keep[batch.counted].to(values.device)])
                place = batch.attention_mask.cumsum(1) - 1
                columns = (_numbers(batch, texts), _windows(batch), place)
                parts.append(
                    tuple(t.numpy() for t in (labels[:, keep].T, *(c[keep] for c in columns)))
                )
                found += len(x[-1])
                task.advance(len(x[-1]))
            if found >= wanted or read >= _READ * wanted:
                break
    if not parts:
        raise NotMeaningful(_nothing(subject))
    true, document, windows, before = (np.concatenate(a) for a in zip(*parts, strict=True))
    vocabulary = len(stream.tokenizer)
    words = {
        "token identity": _counts(windows[:, :1], vocabulary),
        "bag of tokens": _counts(windows, vocabulary),
    }
    context = {"unit": "token", "tokens": found, "in_training": len(seen)}
    return Read(True, names, true, document, torch.cat(x), None, words, before, context)


def _read_documents(
    subject: Subject, stream: TokenStream, labels: LabelledCorpus, seen: set[str]
) -> Read:
    """Read documents, each pooled over its counted tokens, until there are enough."""
    wanted, hookpoint = _documents(subject), subject.dictionary.hookpoint
    coders = _coders(subject)
    codes: dict[str, list[sparse.csr_array]] = {name: [] for name in coders}
    texts: dict[str, int] = {}
    truths: list[list[bool]] = []
    numbers: list[np.ndarray] = []
    counts: list[sparse.csr_array] = []
    lengths: list[np.ndarray] = []
    x: list[Tensor] = []
    vocabulary = len(stream.tokenizer)
    with Task("examples", wanted, "documents") as task:
        for batch in stream:
            kept = _new_rows(batch, seen)
            if not len(kept.tokens):
                continue
            each = counted_activations(subject.lm, kept, [hookpoint])[hookpoint]
            pool = _pooling(kept.counted.numpy())
            x.append(torch.from_numpy(pool @ each.cpu().numpy()).to(each))
            for name, coder in coders.items():
                codes[name].append(sparse.csr_array(pool @ to_csr(coder, each)))
            one = [kept.documents[int(row.max())] for row in kept.document]
            truths += [[name in labels.labels(d) for name in labels.classes] for d in one]
            numbers.append(np.array([texts.setdefault(d.text, len(texts)) for d in one]))
            counts.append(_counts(np.where(kept.counted, kept.tokens, -1), vocabulary))
            lengths.append(kept.counted.sum(1).numpy())
            task.advance(len(one))
            if len(truths) >= wanted:
                break
    if not truths:
        raise NotMeaningful("every labelled document is among the dictionary's training text")
    context = {"unit": "document", "documents": len(truths), "in_training": len(seen)}
    return Read(
        False,
        labels.classes,
        np.array(truths),
        np.concatenate(numbers),
        torch.cat(x),
        {name: sparse.csr_array(sparse.vstack(parts)) for name, parts in codes.items()},
        {"bag of tokens": sparse.csr_array(sparse.vstack(counts))},
        np.concatenate(lengths),
        context,
    )


def _nothing(subject: Subject) -> str:
    if subject.labels is not None:
        return "every labelled document is among the dictionary's training text"
    return (
        f"nothing is known of {subject.corpus.name}: it is no Python source, whose concepts come "
        "built in; give labelled text with --labels (`labels=open_labels(...)` in Python)"
    )


def _new_rows(batch: TokenBatch, seen: set[str]) -> TokenBatch:
    """Return the rows with counted tokens whose document was not seen in training."""
    new = torch.tensor([d.text not in seen for d in batch.documents] + [False])
    rows = (batch.counted & new[batch.document]).any(1)
    columns = ("tokens", "attention_mask", "counted", "document", "start", "end")
    return replace(batch, **{name: getattr(batch, name)[rows] for name in columns})


def _numbers(batch: TokenBatch, texts: dict[str, int]) -> Int[Tensor, "batch context"]:
    """Return the number of each token's text; `texts` takes new ones."""
    numbers = [texts.setdefault(document.text, len(texts)) for document in batch.documents]
    return torch.tensor([*numbers, -1])[batch.document]


def _windows(batch: TokenBatch) -> Int[Tensor, "batch context window"]:
    """Return each token and those before it in its document; -1 where there are none."""
    found = torch.full((*batch.tokens.shape, WINDOW), -1)
    for back in range(min(WINDOW, batch.tokens.shape[1])):
        end = batch.tokens.shape[1] - back
        same = batch.document[:, back:] == batch.document[:, :end]
        found[:, back:, back] = batch.tokens[:, :end].where(same, -1)
    return found


def _counts(ids: Int[np.ndarray, "n some"], vocabulary: int) -> sparse.csr_array:
    """Return how often each token is among the ids of a row; -1 is none."""
    there = ids >= 0
    places = np.nonzero(there)[0], ids[there]
    counts = sparse.coo_array((np.ones(len(places[0])), places), (len(ids), vocabulary))
    return sparse.csr_array(counts)


def _pooling(counted: Bool[np.ndarray, "rows context"]) -> sparse.csr_array:
    """Return the matrix that takes counted tokens to the means of their rows."""
    each = counted.sum(1)
    row = np.nonzero(counted)[0]
    weights = (1 / each[row]).astype(np.float32)
    return sparse.csr_array((weights, (row, np.arange(len(row)))), (len(each), len(row)))


def _coders(subject: Subject) -> dict[str, SparseCoder]:
    return {DICTIONARY: subject.dictionary.coder, UNTRAINED: subject.untrained}


@torch.no_grad()
def to_csr(coder: SparseCoder, x: Float[Tensor, "n d_in"]) -> sparse.csr_array:
    """Return the code of activations as a sparse matrix of scipy, [n, width]."""
    parts = []
    for some in x.split(4096):
        code = coder.encode_sparse(some)
        entries = (t.cpu().numpy() for t in (code.values, code.indices, code.offsets))
        parts.append(sparse.csr_array(tuple(entries), (len(some), code.width)))
    return sparse.csr_array(sparse.vstack(parts))


def _draw(subject: Subject, read: Read) -> Examples:
    """Draw examples of each concept that has enough, and put texts into folds."""
    rng = np.random.default_rng(subject.seed)
    fold = _folds(read.document, rng)[read.document]
    named = range(len(read.names))
    usable = [c for c in named if _usable(read.labels[:, c], read.document, fold)]
    if not usable:
        raise NotMeaningful(_too_few(read))
    left_out = [read.names[c] for c in named if c not in usable]
    concepts = subject.size("concepts", 32, 64, 1024)
    usable = sorted(rng.permutation(usable)[:concepts].tolist())
    most = subject.size("examples", 128, 256, 1024)
    # One order for all: concepts share what they can, and little has to be encoded.
    order = rng.permutation(len(read.labels))
    shuffled = read.labels[order]
    drawn = [order[_first_of_both(shuffled[:, c], most)] for c in usable]
    kept, inverse = np.unique(np.concatenate(drawn), return_inverse=True)
    x = read.x[kept]
    return Examples(
        of_tokens=read.of_tokens,
        names=tuple(read.names[c] for c in usable),
        labels=read.labels[kept][:, usable],
        rows=_padded(np.split(inverse, np.cumsum([len(d) for d in drawn])[:-1])),
        document=read.document[kept],
        fold=fold[kept],
        x=x,
        codes={name: to_csr(coder, x) for name, coder in _coders(subject).items()}
        if read.codes is None
        else {name: code[kept] for name, code in read.codes.items()},
        words={name: counts[kept] for name, counts in read.words.items()},
        length=read.length[kept],
        context={
            **read.context,
            "texts": len(np.unique(read.document)),
            "folds": FOLDS,
            "concepts": len(usable),
            "concepts_left_out": left_out,
            "base_rate": {read.names[c]: float(read.labels[:, c].mean()) for c in usable},
        },
    )


def _folds(document: Int[np.ndarray, " n"], rng: np.random.Generator) -> Int[np.ndarray, " texts"]:
    """Return a fold for each text, so that folds hold about as many examples each."""
    sizes = np.bincount(document)
    fold, filled = np.zeros(len(sizes), dtype=np.int64), np.zeros(FOLDS)
    shuffled = rng.permutation(len(sizes))
    for text in shuffled[np.argsort(-sizes[shuffled], kind="stable")]:
        fold[text] = filled.argmin()
        filled[fold[text]] += sizes[text]
    return fold


def _usable(true: np.ndarray, document: np.ndarray, fold: np.ndarray) -> bool:
    """Say whether there are enough examples of both kinds, so spread that a fold can be left out.

    What is in two folds is, whichever is left out, in the rest.
    """
    return all(
        kind.sum() >= FEWEST
        and len(np.unique(document[kind])) >= FOLDS
        and len(np.unique(fold[kind])) > 1
        for kind in (true, ~true)
    )


def _too_few(read: Read) -> str:
    unit, positives = read.context["unit"], read.labels.sum(0)
    best = int(np.minimum(positives, len(read.labels) - positives).argmax())
    texts = len(np.unique(read.document[read.labels[:, best]]))
    return (
        f"no label is true of {FEWEST} {unit}s, and false of as many, in {FOLDS} texts or more, "
        f"one for each fold; the best, `{read.names[best]}`, is true of {positives[best]} of "
        f"{len(read.labels)} {unit}s, in {texts} texts; give more labelled text"
    )


def _first_of_both(true: Bool[np.ndarray, " n"], most: int) -> Int[np.ndarray, " drawn"]:
    """Return the places of the first positive and as many negative ones."""
    both = np.flatnonzero(true), np.flatnonzero(~true)
    size = min(most, *map(len, both))
    return np.sort(np.concatenate([places[:size] for places in both]))


def _padded(rows: Sequence[np.ndarray]) -> Int[np.ndarray, "names most"]:
    padded = np.full((len(rows), max(map(len, rows))), -1)
    for into, row in zip(padded, rows, strict=True):
        into[: len(row)] = row
    return padded
