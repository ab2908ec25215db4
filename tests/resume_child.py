"""Trains, or goes on training, in a process that a test kills."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

from children import tell
from tiny_models import tiny_llama, tiny_tokenizer

from monosemy.corpus import open_corpus
from monosemy.errors import UserError
from monosemy.lm import LM
from monosemy.training import resume, sweep, train
from monosemy.training.checkpoint import has_checkpoint

TEXTS = [f"def function_{i}(value):\n    return value + {i} * {i % 7}\n" * 3 for i in range(150)]
COMMON: dict[str, Any] = {"tokens": 12_288, "batch": 256, "pool": 1024, "context": 32, "width": 64}
KINDS: dict[str, dict[str, Any]] = {
    "batch_topk": {"architecture": "batch_topk", "k": 8},
    "jumprelu": {"architecture": "jumprelu", "target_l0": 8, "ema": 0.99},
    "resampled": {"architecture": "relu", "target_l0": 8, "revive": "resample"},
    "transcoder": {"architecture": "topk", "k": 8, "target": "final_norm", "skip": True},
    "end_to_end": {"architecture": "topk", "k": 8, "objective": "kl"},
}
CHECKPOINT = 1024


def main(folder: Path, kind: str) -> None:
    try:
        work(folder, kind)
    except UserError as error:
        sys.exit(f"{error.message}\n{error.hint}")


def work(folder: Path, kind: str) -> None:
    lm = LM(tiny_llama(), tiny_tokenizer())
    corpus = open_corpus(TEXTS, held_out=0.2)
    tell("started")
    if has_checkpoint(folder):
        resume(folder, lm, corpus, checkpoint_tokens=CHECKPOINT)
    elif kind == "sweep":
        grid = {"architecture": ["topk", "gated"], "seed": [0, 1]}
        sweep(
            lm, corpus, ["layers.1"], grid=grid, out=folder, checkpoint_tokens=CHECKPOINT, **COMMON
        )
    else:
        settings = {**COMMON, **KINDS[kind]}
        train(lm, corpus, "layers.1", out=folder, checkpoint_tokens=CHECKPOINT, **settings)
