"""What share of its pre-training the model is worth with the dictionary in place."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from monosemy.corpus import TokenBatch
from monosemy.errors import UserError
from monosemy.evaluation import baselines
from monosemy.evaluation.result import Plot, SuiteResult, Table, judge, told
from monosemy.evaluation.splice import Splices
from monosemy.evaluation.subject import NotMeaningful, Subject, Suite
from monosemy.evaluation.suites.reconstruction import fit_baselines
from monosemy.lm import LM
from monosemy.metrics import GroupSums, bootstrap_weights, compute_share, falling_fit, interval
from monosemy.metrics.table import MetricRow, MetricValue
from monosemy.progress import Task

FILE = "checkpoints.json"
"""In the folder of checkpoints, where their names do not tell: name -> tokens trained on."""
DIFFERENT = 0.01
"""Nats between the last checkpoint's loss and the model's from which they are not the same."""

MODEL, MEAN = "model by itself", "mean ablation"


@dataclass(frozen=True, slots=True)
class Checkpoint:
    """A model as it was in training."""

    folder: Path
    trained: float
    """How long: in tokens or in steps, the same for all."""


def run(subject: Subject) -> SuiteResult:
    """Find the checkpoint whose loss is that of the model with the dictionary in place.

    `compute_share` (Gao et al. 2024, section 4.1), compute being counted in tokens: for one model
    the operations of a token are always the same. All losses are those of predicting the same
    `loss_tokens` held-out tokens, from counted positions of the same document, where activations
    are replaced. Of many checkpoints `checkpoints` are taken, evenly in the logarithm of compute.
    Intervals are 95%, from bootstrap draws of documents, the same for all.

    Raises:
        NotMeaningful: no checkpoints were given, or the model predicts no tokens.
        UserError: the folder holds none that can be ordered, or they are of another model.
    """
    chosen = _chosen(subject)
    batches, documents, tokens = _text(subject)
    rivals, mean = fit_baselines(subject)
    put = {
        "dictionary": baselines.of_dictionary(subject.dictionary),
        **rivals,
        MEAN: baselines.constant(mean),
    }
    with Task("compute", 1 + len(chosen), "models") as task:
        sums = _own_sums(subject, batches, documents, put)
        task.advance(1)
        curve = []
        for checkpoint in chosen:
            curve.append(_checkpoint_sums(subject, checkpoint, batches, documents))
            task.advance(1)
    return _result(subject, chosen, sums, curve, len(documents), tokens)


def _loss_tokens(subject: Subject) -> int:
    return subject.size("loss_tokens", 4_096, 16_384, 65_536)


def _cost(subject: Subject) -> int:
    if subject.checkpoints is None or not subject.lm.is_causal:
        return 0  # it is skipped
    return subject.fit_tokens + (6 + len(_chosen(subject))) * _loss_tokens(subject)


def _chosen(subject: Subject) -> list[Checkpoint]:
    """Return the checkpoints that are measured."""
    if not subject.lm.is_causal:
        raise NotMeaningful("the model predicts no next token, so it has no loss to compare")
    if subject.checkpoints is None:
        raise NotMeaningful(
            "no checkpoints of the model were given: name their folder with --checkpoints "
            "(`checkpoints` in Python)"
        )
    found = find_checkpoints(subject.checkpoints)
    logs = np.log([one.trained for one in found])
    wanted = np.linspace(logs[0], logs[-1], max(subject.size("checkpoints", 8, 16, 64), 2))
    nearest = np.abs(logs[:, None] - wanted).argmin(0)
    return [found[i] for i in np.unique(nearest)]


def find_checkpoints(folder: Path) -> list[Checkpoint]:
    """Return the checkpoints in a folder, the least trained first.

    How long each was trained is in `checkpoints.json` (name -> tokens), or else in its name, which
    ends in a number: `step1000`, `checkpoint-1000`. An untrained one, at 0, has no place on a
    logarithmic axis and is left out.

    Raises:
        UserError: there is no such folder, fewer than two checkpoints, one that the file names is
            missing, or names do not tell their order.
    """
    folder = Path(folder).expanduser()
    if not folder.is_dir():
        raise UserError(f"no folder of checkpoints: `{folder}`", "give the one that holds them all")
    named = folder / FILE
    trained = _written(named) if named.exists() else _in_names(folder)
    found = [Checkpoint(folder / name, n) for name, n in trained.items() if n > 0]
    for checkpoint in found:
        if not (checkpoint.folder / "config.json").exists():
            raise UserError(
                f"`{named}` names `{checkpoint.folder.name}`, which is no model: it has no "
                "config.json",
                "correct the file, or save the checkpoint with `model.save_pretrained`",
            )
    if len(found) < 2:
        raise UserError(
            f"`{folder}` holds {len(found)} checkpoints, and a curve needs at least 2",
            "each is a folder with config.json whose name ends in its step, such as step1000",
        )
    return sorted(found, key=lambda one: one.trained)


def _written(path: Path) -> dict[str, float]:
    try:
        trained = {str(name): float(n) for name, n in json.loads(path.read_text()).items()}
    except (ValueError, TypeError, AttributeError) as error:
        raise UserError(
            f"`{path}` cannot be read: {error}", 'it holds tokens by name: {"step1000": 2097152000}'
        ) from error
    return trained


def _in_names(folder: Path) -> dict[str, float]:
    names = [path.parent.name for path in folder.glob("*/config.json")]
    parts = {name: re.fullmatch(r"(.*?)[-_]?(\d+)", name) for name in names}
    numbered = {name: part for name, part in parts.items() if part}
    kinds = sorted({part[1] for part in numbered.values()})
    if len(kinds) > 1:
        raise UserError(
            f"`{folder}` holds checkpoints of several kinds, whose order names do not tell: "
            f"{', '.join(kinds)}",
            f"say in `{FILE}` there how many tokens each was trained on: "
            '{"step1000": 2097152000}',
        )
    return {name: float(part[2]) for name, part in numbered.items()}


def _text(subject: Subject) -> tuple[list[TokenBatch], dict[str, int], int]:
    """Return the text of which losses are measured, its documents, and its tokens."""
    batches: list[TokenBatch] = []
    documents: dict[str, int] = {}
    tokens = 0
    for batch in subject.stream("held_out"):
        batch.numbers(documents)
        batches.append(batch)
        tokens += int(batch.next_tokens()[1].sum())
        if tokens >= _loss_tokens(subject):
            break
    return batches, documents, tokens


def _own_sums(
    subject: Subject,
    batches: Sequence[TokenBatch],
    documents: dict[str, int],
    put: Mapping[str, baselines.Reconstruct],
) -> dict[str, GroupSums]:
    """Return the loss of the subject's model, as it is and with each reconstruction in place."""
    splices = Splices(subject.lm, subject.dictionary)
    sums = {name: GroupSums(2) for name in (*put, MODEL)}
    for batch in batches:
        original, values = splices.original(batch)
        _add(sums[MODEL], batch, original, documents)
        for name, reconstruct in put.items():
            made, _ = reconstruct(values[subject.dictionary.hookpoint])
            _add(sums[name], batch, splices.spliced(batch, made), documents)
    return sums


def _checkpoint_sums(
    subject: Subject,
    checkpoint: Checkpoint,
    batches: Sequence[TokenBatch],
    documents: dict[str, int],
) -> GroupSums:
    """Return the loss of a checkpoint, which is let go again.

    Raises:
        UserError: it is of another model.
    """
    own = subject.lm
    dtype = next(own.model.parameters()).dtype
    lm = LM(checkpoint.folder, own.tokenizer, device=str(own.device), dtype=dtype)
    for what, mine, its in (
        ("architecture", own.config.model_type, lm.config.model_type),
        (
            "vocabulary size",
            own.config.get_text_config().vocab_size,
            lm.config.get_text_config().vocab_size,
        ),
        ("number of parameters", own.count_parameters(), lm.count_parameters()),
    ):
        if mine != its:
            raise UserError(
                f"checkpoint `{checkpoint.folder}` is of another model: its {what} is {its}, that "
                f"of {own.name} {mine}",
                "give checkpoints from the model's own training",
            )
    sums = GroupSums(2)
    for batch in batches:
        logits = lm.logits(batch.tokens, attention_mask=batch.attention_mask)
        _add(sums, batch, logits, documents)
    return sums


def _add(sums: GroupSums, batch: TokenBatch, logits: Tensor, documents: dict[str, int]) -> None:
    targets, counted = batch.next_tokens()
    loss = F.cross_entropy(logits.cpu()[counted].float(), targets[counted], reduction="none")
    rows = torch.stack([torch.ones_like(loss), loss], 1).double().numpy()
    sums.add(rows, batch.numbers(documents)[counted].numpy())


def _losses(sums: np.ndarray) -> np.ndarray:
    return sums[:, 1] / sums[:, 0]


def _result(
    subject: Subject,
    chosen: Sequence[Checkpoint],
    sums: Mapping[str, GroupSums],
    curve: Sequence[GroupSums],
    documents: int,
    tokens: int,
) -> SuiteResult:
    trained = np.array([one.trained for one in chosen])
    weights = bootstrap_weights(documents, subject.draws, subject.seed)
    points = {name: _losses(one.total()) for name, one in sums.items()}
    samples = {name: _losses(one.weighted(weights)) for name, one in sums.items()}
    losses = np.stack([_losses(one.total()) for one in curve], 1)
    drawn = np.stack([_losses(one.weighted(weights)) for one in curve], 1)
    columns = [name for name in sums if name != MODEL]
    shares = {name: compute_share(trained, losses, points[name]) for name in columns}
    drawn_shares = {name: compute_share(trained, drawn, samples[name]) for name in columns}

    def values(whole: Mapping[str, np.ndarray], draws: Mapping[str, np.ndarray]) -> list:
        return [
            MetricValue(float(whole[name][0]), *interval({name: draws[name]})[name])
            for name in columns
        ]

    first = float(trained[0] / trained[-1])
    rows = [
        MetricRow(
            "share of compute",
            "share",
            "higher",
            "of the training after which the model has this loss; "
            f"{first:.2g}, the first checkpoint's, stands for any less",
            values(shares, drawn_shares),
        ),
        MetricRow(
            "CE", "nats", "lower", "next-token loss with it in place", values(points, samples)
        ),
    ]
    judgements = judge("share of compute", drawn_shares, better="higher")
    worth, gap = float(shares["dictionary"][0]), float(losses[0, -1] - points[MODEL][0])
    said = f"With it in place the model is worth {_told(worth, first)} of its training; "
    if abs(gap) > DIFFERENT:
        said = (
            f"The last checkpoint is not this model: its CE is {losses[0, -1]:.3f}, the model's "
            f"{points[MODEL][0]:.3f}. {said.rstrip('; ')} up to that checkpoint; "
        )
    return SuiteResult(
        SUITE.name,
        SUITE.title,
        [Table(columns, rows, f"{len(chosen)} checkpoints")],
        verdict=f"{said}{told(judgements)}.",
        judgements=judgements,
        context={
            "checkpoints": {one.folder.name: one.trained for one in chosen},
            "losses": dict(
                zip((one.folder.name for one in chosen), losses[0].tolist(), strict=True)
            ),
            "model_ce": float(points[MODEL][0]),
            "loss_tokens": tokens,
            "documents": documents,
            "interval": "95%, bootstrap over documents",
        },
        plots=[_plot(trained, losses, drawn, points["dictionary"], samples["dictionary"])],
    )


def _told(share: float, first: float) -> str:
    return f"less than {first:.2%}" if share <= first else f"{share:.1%}"


def _plot(
    trained: np.ndarray,
    losses: np.ndarray,
    drawn: np.ndarray,
    spliced: np.ndarray,
    spliced_draws: np.ndarray,
) -> Plot:
    """Return the loss over the course of training, made to fall, and that with the dictionary."""
    x = np.log10(trained / trained[-1])
    low, high = np.quantile(falling_fit(drawn), [0.025, 0.975], axis=0)
    ends = np.quantile(spliced_draws, [0.025, 0.975]).tolist()
    curve = zip(x, falling_fit(losses)[0], low, high, strict=True)
    return Plot(
        "Loss in the course of training, and with the dictionary in place",
        "log10 of the share of compute",
        "CE",
        {
            "checkpoints": [(float(at), float(y), float(a), float(b)) for at, y, a, b in curve],
            "dictionary": [(float(at), float(spliced[0]), *ends) for at in (x[0], x[-1])],
        },
    )


SUITE = Suite("compute", "Share of pre-training compute", "standard", run, _cost)
