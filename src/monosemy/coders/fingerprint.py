"""The fingerprint: a few held-out texts as tokens, and what a dictionary makes of them.

It is recorded when a dictionary is saved. Replaying it on the model that a dictionary is attached
to proves that model, hook point, tokens and scale are the ones it was trained with.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable
from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from monosemy.activations import counted_activations
from monosemy.coders.code import Code
from monosemy.coders.coder import SparseCoder
from monosemy.coders.provenance import Provenance
from monosemy.corpus import Corpus, TokenBatch, TokenStream, open_corpus
from monosemy.lm import LM
from monosemy.metrics import Reconstruction

ROWS = 16
TEXT_LENGTH = 1500
"""Characters kept of each text: more than a row of usual length needs."""

Change = Callable[[Tensor], Tensor]


@dataclass(frozen=True, slots=True)
class Figures:
    """What a dictionary makes of the fingerprint's tokens."""

    fvu: float
    l0: float
    norm: float
    """Mean norm of the activations encoded."""
    agreement: float = 1.0
    """Share of tokens whose strongest feature is the one recorded."""

    def matches(self, other: Figures) -> bool:
        """Say whether `other`, measured now, is this, but for precision and kernels."""
        same_error = abs(other.fvu - self.fvu) <= 0.02 + 0.1 * self.fvu
        return same_error and self.has_code_of(other)

    def has_code_of(self, other: Figures) -> bool:
        """Say whether the features that fire are the same, whatever they are to explain."""
        return abs(other.l0 - self.l0) <= 1 + 0.1 * self.l0 and other.agreement >= 0.9


@dataclass(frozen=True, slots=True)
class Fingerprint:
    """Texts, their tokens, the strongest feature of each, and the figures expected."""

    texts: list[str]
    tokens: Int[Tensor, "rows context"]
    attention_mask: Bool[Tensor, "rows context"]
    counted: Bool[Tensor, "rows context"]
    strongest: Int[Tensor, " counted"]
    """The feature that fires most on each counted token; -1 where none does."""
    expected: Figures

    @classmethod
    @torch.no_grad()
    def record(
        cls,
        lm: LM,
        coder: SparseCoder,
        provenance: Provenance,
        corpus: Corpus,
    ) -> Fingerprint:
        """Record what `coder` makes of the first held-out documents."""
        texts = first_texts(corpus)
        batch = tokenise(texts, lm, provenance)
        values = counted_activations(lm, batch, [provenance.hookpoint, provenance.explains])
        x, y = values[provenance.hookpoint], values[provenance.explains]
        strongest = strongest_features(coder.encode_sparse(x)).cpu()
        return cls(
            texts,
            batch.tokens,
            batch.attention_mask,
            batch.counted,
            strongest,
            measure(coder, x, y, strongest),
        )

    def tensors(self) -> dict[str, Tensor]:
        """Return what goes into the safetensors file."""
        return {
            "tokens": self.tokens,
            "attention_mask": self.attention_mask,
            "counted": self.counted,
            "strongest": self.strongest,
        }


@torch.no_grad()
def measure(
    coder: SparseCoder,
    x: Float[Tensor, "counted d_in"],
    y: Float[Tensor, "counted d_out"],
    strongest: Int[Tensor, " counted"],
    before: Change = lambda x: x,
    after: Change = lambda y: y,
) -> Figures:
    """Return the figures of after(coder(before(x))) as an explanation of y, which may be x."""
    out, code = coder.reconstruct(before(x))
    sums = Reconstruction(y.mean(0))
    sums.update(y, after(out), code.l0)
    figures = sums.compute()
    same = strongest_features(code).cpu() == strongest
    return Figures(
        fvu=figures["fvu"],
        l0=figures["l0"],
        norm=x.norm(dim=1).mean().item(),
        agreement=same.float().mean().item(),
    )


def strongest_features(code: Code) -> Int[Tensor, " tokens"]:
    """Return the feature that fires most on each token; -1 where none does."""
    n_tokens = code.support.n_tokens
    best = torch.zeros(n_tokens, device=code.values.device)
    best.scatter_reduce_(0, code.tokens, code.values, "amax")
    winners = (code.values == best[code.tokens]) & (code.values > 0)
    features = torch.full((n_tokens,), -1, device=best.device)
    return features.scatter_reduce(0, code.tokens[winners], code.indices[winners], "amax")


def first_texts(corpus: Corpus) -> list[str]:
    """Return how the first held-out documents begin."""
    documents = itertools.islice(corpus.documents("held_out"), ROWS)
    return [document.text[:TEXT_LENGTH] for document in documents]


def tokenise(texts: list[str], lm: LM, provenance: Provenance) -> TokenBatch:
    """Return the texts as tokens, one a row, cut at the context of training."""
    stream = TokenStream(
        open_corpus(texts, held_out=0.0),
        lm.tokenizer,
        part="all",
        context=provenance.context,
        rows=len(texts),
        packed=False,
        policy=provenance.policy,
        seed=None,
    )
    return next(iter(stream))
