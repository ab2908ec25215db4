"""Train a dictionary on a model's activations: text in, run folder out."""

from __future__ import annotations

import json
import shutil
import time
from collections.abc import Iterable, Iterator
from dataclasses import asdict, dataclass, replace
from itertools import chain, islice
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from monosemy.activations import LiveActivations, ShufflePool, Statistics
from monosemy.artefact import new_run_folder, write_text
from monosemy.coders import (
    BatchTopK,
    Dictionary,
    Fingerprint,
    Provenance,
    SparseCoder,
    make_coder,
)
from monosemy.corpus import Corpus, TokenPolicy, TokenStream, open_corpus
from monosemy.device import fix_threads
from monosemy.errors import UserError
from monosemy.lm import LM
from monosemy.metrics import Activity
from monosemy.progress import Task
from monosemy.training.config import TrainConfig
from monosemy.training.member import Member, StepFigures

STATISTICS_TOKENS = 32_768
HELD_OUT_TOKENS = 65_536
"""Held-out tokens on which each feature's strength, and L0, are measured."""


@dataclass(slots=True)
class Run:
    """A trained dictionary, the model and text it came from, and how training went."""

    folder: Path | None
    lm: LM
    corpus: Corpus
    config: TrainConfig
    dictionary: Dictionary
    history: list[dict[str, float]]

    def __repr__(self) -> str:
        place = f" in {self.folder}" if self.folder else ""
        return f"Run({self.dictionary!r}{place})"


def train(
    lm: LM | str,
    data: Any = "builtin:stdlib",
    hookpoint: str | None = None,
    *,
    config: TrainConfig | None = None,
    out: str | Path | None = None,
    policy: TokenPolicy | None = None,
    **settings: Any,
) -> Run:
    """Train a dictionary.

    Args:
        lm: the model, or its name.
        data: a corpus, or anything `open_corpus` takes.
        hookpoint: where activations are taken; default the middle of the residual stream.
        config: settings; instead, or over them, settings of `TrainConfig` by name.
        out: folder of the run, which must not exist; None keeps the run in memory.
        policy: which tokens count; default all but special ones.
        settings: fields of `TrainConfig`.

    Raises:
        UserError: a setting, hook point, model or text that cannot work.
    """
    config = _settings(config, settings)
    lm = lm if isinstance(lm, LM) else LM(lm)
    corpus = open_corpus(data)
    policy = policy or TokenPolicy()
    point = lm.hookpoint(hookpoint or middle(lm))
    width = config.width or 8 * point.width
    coder = make_coder(
        config.architecture, point.width, width, seed=config.seed, **config.coder_options()
    ).to(lm.device)
    context = _context(lm, config.context)
    config = replace(config, context=context)
    provenance = Provenance(
        model=lm.name,
        revision=lm.revision,
        hookpoint=point.name,
        context=context,
        packed=config.packed,
        policy=policy,
        corpus=corpus.describe(),
        training=config.to_dict(),
    )
    corpus.check("train", "held_out")
    folder = new_run_folder(out) if out is not None else None
    try:
        if folder is not None:
            write_text(folder / "config.json", json.dumps(provenance.to_dict(), indent=2) + "\n")
        dictionary, history = _train(lm, corpus, coder, provenance, config)
        if folder is not None:
            dictionary.save_pretrained(folder / "dictionary")
            lines = "".join(json.dumps(line) + "\n" for line in history)
            write_text(folder / "train.jsonl", lines)
    except BaseException:
        if folder is not None:
            shutil.rmtree(folder)  # made above, and without a dictionary of no use
        raise
    return Run(folder, lm, corpus, config, dictionary, history)


def _train(
    lm: LM, corpus: Corpus, coder: SparseCoder, provenance: Provenance, config: TrainConfig
) -> tuple[Dictionary, list[dict[str, float]]]:
    fix_threads()
    began, hookpoint = time.monotonic(), provenance.hookpoint
    text = provenance.stream(lm, corpus, "train", seed=config.seed, epochs=None)
    pool = ShufflePool(
        LiveActivations(lm, text, [hookpoint]),
        size=config.pool,
        batch_size=config.batch,
        seed=config.seed,
    )
    statistics, batches = _measure_statistics((values[hookpoint] for values in pool), config.batch)
    member = Member(
        coder,
        lr=config.learning_rate(coder.width),
        steps=config.steps,
        dead_after=config.dead_after,
    )
    history = _take_steps(member, statistics, batches, config)
    _finish(coder, statistics, batches)
    figures = {"seconds": round(time.monotonic() - began, 1), "final": history[-1]}
    activity = _activity(lm, coder, hookpoint, provenance.stream(lm, corpus, "held_out"))
    figures["held_out"] = {
        "tokens": activity.n_tokens,
        "l0": activity.l0,
        "dead_share": activity.dead_share,
    }
    dictionary = Dictionary(
        coder,
        replace(provenance, training=provenance.training | figures),
        activity.max,
        statistics.mean,
        statistics.scale,
        Fingerprint.record(lm, coder, provenance, corpus),
    )
    return dictionary, history


def middle(lm: LM) -> str:
    """Return the hook point in the middle of the residual stream."""
    return f"layers.{lm.n_layers // 2}"


def _settings(config: TrainConfig | None, settings: dict[str, Any]) -> TrainConfig:
    known = TrainConfig().to_dict()
    for name in settings:
        if name not in known:
            raise UserError(f"no setting `{name}`", f"allowed: {', '.join(known)}")
    base = config.to_dict() if config else {}
    return TrainConfig(**{**base, **settings})


def _context(lm: LM, context: int | None) -> int:
    if context is None:
        return min(128, lm.context_limit or 128)
    if lm.context_limit is not None and context > lm.context_limit:
        raise UserError(
            f"context is {context}, but {lm.name} reads at most {lm.context_limit} tokens",
            f"choose a context up to {lm.context_limit}",
        )
    return context


def _measure_statistics(
    batches: Iterator[Tensor], batch: int
) -> tuple[Statistics, Iterator[Tensor]]:
    """Measure centre and scale on the first batches, which stay in the stream."""
    sample = list(islice(batches, max(STATISTICS_TOKENS // batch, 1)))
    return Statistics.of(sample), chain(sample, batches)


def _take_steps(
    member: Member, statistics: Statistics, batches: Iterable[Tensor], config: TrainConfig
) -> list[dict[str, float]]:
    history: list[dict[str, float]] = []
    every = max(config.steps // 200, 1)
    with Task("train", config.steps * config.batch) as task:
        for step, x in enumerate(islice(batches, config.steps), start=1):
            figures = member.step(statistics.apply(x))
            _check_loss(figures, step)
            note = (
                f"loss {figures.loss:.3f}  FVU {figures.fvu:.3f}  L0 {figures.l0:.0f}  "
                f"dead {figures.dead_share:.1%}"
            )
            task.advance(len(x), note)
            if step % every == 0 or step == config.steps:
                history.append({"tokens": step * config.batch, **asdict(figures)})
    return history


def _check_loss(figures: StepFigures, step: int) -> None:
    if figures.loss != figures.loss:
        raise UserError(f"the loss became NaN at step {step}", "lower the learning rate with --lr")


@torch.no_grad()
def _finish(coder: SparseCoder, statistics: Statistics, batches: Iterable[Tensor]) -> None:
    """Set the inference threshold where there is one, then fold centre and scale in."""
    if isinstance(coder, BatchTopK):
        coder.set_threshold(statistics.apply(x) for x in islice(batches, 8))
    coder.eval().requires_grad_(False)
    coder.fold(statistics.mean, statistics.scale)


@torch.no_grad()
def _activity(lm: LM, coder: SparseCoder, hookpoint: str, stream: TokenStream) -> Activity:
    """Return how often, and how strongly, each feature fires on held-out text."""
    activity = Activity(coder.width)
    with Task("held out", HELD_OUT_TOKENS) as task:
        for values in LiveActivations(lm, stream, [hookpoint]):
            code = coder.encode_sparse(values[hookpoint])
            activity.update(code.values, code.indices, len(values[hookpoint]))
            task.advance(len(values[hookpoint]))
            if activity.n_tokens >= HELD_OUT_TOKENS:
                break
    return activity
