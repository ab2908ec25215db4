"""Dictionaries made by hand, without training."""

from __future__ import annotations

from dataclasses import replace

import torch
from torch import Tensor

from monosemy.activations import LiveActivations, Statistics
from monosemy.coders import Dictionary, Fingerprint, Provenance, ReLU, SparseCoder
from monosemy.coders.jumprelu import JumpReLU
from monosemy.corpus import Corpus, Part
from monosemy.lm import LM
from monosemy.metrics import Activity

INPUT, TARGET = "layers.1.post_attention_layernorm", "layers.1.mlp"
WIDTH = 96


STRENGTH_TOKENS = 16_384
"""Held-out tokens, to a batch, on which strengths are measured: of a large corpus the first."""


def activations(
    lm: LM, provenance: Provenance, corpus: Corpus, part: Part, most: float = float("inf")
) -> tuple[Tensor, Tensor]:
    """Counted tokens' activations: those encoded, those explained."""
    text = provenance.stream(lm, corpus, part)
    values, count = [], 0
    for found in LiveActivations(lm, text, [provenance.hookpoint, provenance.explains]):
        values.append(found)
        count += len(found[provenance.hookpoint])
        if count >= most:
            break
    return (
        torch.cat([v[provenance.hookpoint] for v in values]),
        torch.cat([v[provenance.explains] for v in values]),
    )


def dictionary_of(
    coder: SparseCoder,
    lm: LM,
    corpus: Corpus,
    provenance: Provenance,
    origin: Statistics,
    target: Statistics | None,
) -> Dictionary:
    """A folded coder with everything a saved one has."""
    activity = Activity(coder.width)
    x, _ = activations(lm, provenance, corpus, "held_out", STRENGTH_TOKENS)
    code = coder.encode_sparse(x)
    activity.update(code.values, code.indices, len(x))
    return Dictionary(
        coder,
        replace(provenance, training={"held_out": {"l0": activity.l0}, "tokens": 0, "seed": 0}),
        activity.max,
        origin.mean,
        origin.scale,
        Fingerprint.record(lm, coder, provenance, corpus),
        target_mean=target.mean if target else None,
        target_scale=target.scale if target else None,
    )


def make_transcoder(
    lm: LM, corpus: Corpus, hookpoint: str = INPUT, target: str = TARGET, *, skip: bool = False
) -> Dictionary:
    """Fit the decoder of random features by least squares: no training, and good enough."""
    provenance = Provenance(
        model=lm.name, hookpoint=hookpoint, target=target, context=32, corpus=corpus.describe()
    )
    x, y = activations(lm, provenance, corpus, "train")
    origin, there = Statistics.of([x]), Statistics.of([y])
    x, y = origin.apply(x), there.apply(y)
    coder = JumpReLU(x.shape[1], WIDTH, d_out=y.shape[1], skip=skip).requires_grad_(False)
    coder.log_threshold.copy_(coder.pre_activations(x).quantile(0.9, dim=0).log())
    columns = [coder.encode(x), torch.ones(len(x), 1), *([x] if skip else [])]
    solution = torch.linalg.lstsq(torch.cat(columns, 1), y).solution
    coder.W_dec.copy_(solution[:WIDTH])
    coder.b_dec.copy_(solution[WIDTH])
    if coder.W_skip is not None:
        coder.W_skip.copy_(solution[WIDTH + 1 :].T)
    coder.fold_norms()
    coder.fold(origin.mean, origin.scale, there.mean, there.scale)
    return dictionary_of(coder.eval(), lm, corpus, provenance, origin, there)


def exact(lm: LM, corpus: Corpus, hookpoint: str, target: str | None = None) -> Dictionary:
    """A coder that gives back its input: relu(x) - relu(-x)."""
    provenance = Provenance(
        model=lm.name, hookpoint=hookpoint, target=target, context=32, corpus=corpus.describe()
    )
    d = lm.hookpoint(hookpoint).width
    coder = ReLU(d, 2 * d).requires_grad_(False)
    both = torch.cat([torch.eye(d), -torch.eye(d)])
    coder.W_enc.copy_(both)
    coder.W_dec.copy_(both)
    none = Statistics(torch.zeros(d), 1.0, 0.0)
    return dictionary_of(coder, lm, corpus, provenance, none, none if target else None)
