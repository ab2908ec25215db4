"""Benchmarks through the dictionary: tasks of EleutherAI's `lm-eval` harness.

A task is scored with the model as it is, and with what the dictionary makes of its activations in
their place, in prompts and in what is generated alike; on the task's own metric, sample by sample,
so that differences are paired.
"""

from __future__ import annotations

import contextlib
import logging
import os
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np

from monosemy.coders import Dictionary
from monosemy.errors import UserError, nearest
from monosemy.evaluation import baselines
from monosemy.evaluation.baselines import Reconstruct
from monosemy.evaluation.result import Judgement, SuiteResult, Table, judge, told
from monosemy.evaluation.splice import spliced
from monosemy.evaluation.subject import NotMeaningful, Subject, Suite
from monosemy.evaluation.tasks import Tasks
from monosemy.lm import LM
from monosemy.metrics import bootstrap_weights, interval
from monosemy.metrics.table import MetricRow, MetricValue

_BATCH = 16
_NORMAL = 1.96
"""Standard errors on either side of a figure in which it lies with 95% confidence."""


@dataclass(frozen=True, slots=True)
class Score:
    """One metric of one task."""

    value: float
    samples: np.ndarray | None
    """[samples], of which the value is the mean; None where it is something else."""
    error: float
    """Standard error, where there are no samples."""
    higher_is_better: bool


def score_tasks(lm: LM, tasks: Tasks) -> dict[str, Score]:
    """Score the model as it is now, edits in force included: "task metric" -> score.

    Raises:
        UserError: `lm-eval` is not installed, there is no such task, its data cannot be had, or
            the model has no language-model head.
    """
    lm_eval, HFLM, TaskManager = _harness()
    if not lm.is_causal or lm.tokenizer is None:
        raise UserError(f"{lm.name} does not predict the next token", "give a language model")
    lm.require_whole("no benchmark")
    manager = _manager(TaskManager, tasks)
    model = HFLM(
        pretrained=lm.model,
        tokenizer=lm.tokenizer,
        batch_size=_BATCH,
        max_length=lm.context_limit,
        device=str(lm.device),
    )
    try:
        found = lm_eval.simple_evaluate(
            model=model,
            tasks=list(tasks.names),
            task_manager=manager,
            limit=tasks.samples,
            num_fewshot=tasks.shots,
            bootstrap_iters=0,
        )
    except (OSError, ValueError, KeyError, RuntimeError) as error:
        reason = (str(error).splitlines() or [type(error).__name__])[0]
        raise UserError(
            f"the tasks {', '.join(tasks.names)} cannot be run: {reason}",
            "a task's data comes from the Hugging Face hub, or from files its YAML names",
        ) from error
    return {name: score for task in found["results"] for name, score in _scores(found, task)}


def run(subject: Subject) -> SuiteResult:
    """Score tasks with the model as it is, and with each reconstruction in place.

    Raises:
        NotMeaningful: no task was named.
        UserError: as `score_tasks`.
    """
    tasks = subject.tasks
    if tasks is None:
        raise NotMeaningful("no task was named: --task NAME, with --task-folder for own ones")
    lm, dictionary = subject.lm, subject.dictionary
    scores = {"dictionary": _spliced_scores(subject, baselines.of_dictionary(dictionary), tasks)}
    for name, reconstruct in _controls(subject).items():
        scores[name] = _spliced_scores(subject, reconstruct, tasks)
    scores["the model itself"] = score_tasks(lm, tasks)
    rows, judged = [], []
    for metric, own in scores["the model itself"].items():
        column = {name: found[metric] for name, found in scores.items()}
        rows.append(_row(metric, column, own, subject))
        judged += _judge(metric, column, subject)
    n = {
        metric: len(s.samples)
        for metric, s in scores["dictionary"].items()
        if s.samples is not None
    }
    return SuiteResult(
        SUITE.name,
        SUITE.title,
        [Table(list(scores), rows, "task")],
        verdict=f"With its reconstruction in the model's place: {told(judged)}." if judged else "",
        judgements=judged,
        context={
            "tasks": list(tasks.names),
            "samples": n,
            "interval": "95%, bootstrap over samples",
        },
    )


def each(tasks: Tasks, lm: LM) -> Callable[[Dictionary, int], dict[str, float]]:
    """Return what `train(measure=...)` calls: scores with a half-trained dictionary in place."""

    def measure(dictionary: Dictionary, tokens: int) -> dict[str, float]:
        with spliced(lm, dictionary, baselines.of_dictionary(dictionary)):
            return {name: score.value for name, score in score_tasks(lm, tasks).items()}

    return measure


def _cost(subject: Subject) -> int:
    samples = (subject.tasks.samples or 1000) * len(subject.tasks.names) if subject.tasks else 0
    return samples * 4 * 128


def _harness() -> tuple[Any, Any, Any]:
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    try:
        import lm_eval
        from lm_eval.models.huggingface import HFLM
        from lm_eval.tasks import TaskManager
    except ImportError as error:
        raise UserError(
            "benchmarks need the package lm-eval",
            'install it with: pip install "monosemy[harness]"',
        ) from error
    logging.getLogger("lm_eval").setLevel(logging.ERROR)
    return lm_eval, HFLM, TaskManager


def _manager(TaskManager: Any, tasks: Tasks) -> Any:
    """Return what knows the tasks.

    Raises:
        UserError: there is no such folder or task.
    """
    if tasks.folder is None:
        manager = TaskManager()
    elif tasks.folder.is_dir():
        manager = TaskManager(include_path=str(tasks.folder), include_defaults=False)
    else:
        raise UserError(f"no folder `{tasks.folder}`", "give the one that holds the tasks' YAML")
    for name in tasks.names:
        if name not in manager.all_tasks:
            hint = nearest(name, manager.all_tasks)
            where = f" in `{tasks.folder}`" if tasks.folder else ""
            raise UserError(f"no task `{name}`{where}", hint or "`lm-eval ls tasks` lists them")
    return manager


def _scores(found: Any, task: str) -> Iterator[tuple[str, Score]]:
    better = found.get("higher_is_better", {}).get(task, {})
    for key, value in found["results"][task].items():
        metric, _, filtering = key.partition(",")
        if not filtering or metric.endswith("_stderr") or not isinstance(value, int | float):
            continue
        samples = [
            sample[metric]
            for sample in found["samples"].get(task, [])
            if sample.get("filter", filtering) == filtering and metric in sample
        ]
        error = found["results"][task].get(f"{metric}_stderr,{filtering}")
        numbers = None
        with contextlib.suppress(TypeError, ValueError):
            numbers = np.array(samples, dtype=float)
        is_mean = numbers is not None and len(numbers) and np.isclose(numbers.mean(), value)
        yield (
            f"{task} {metric}",
            Score(
                float(value),
                numbers if is_mean else None,
                float(error) if isinstance(error, int | float) else 0.0,
                better.get(metric, True) is not False,
            ),
        )


def _spliced_scores(subject: Subject, reconstruct: Reconstruct, tasks: Tasks) -> dict[str, Score]:
    with spliced(subject.lm, subject.dictionary, reconstruct):
        return score_tasks(subject.lm, tasks)


def _controls(subject: Subject) -> dict[str, Reconstruct]:
    mean = subject.sample[1].mean(0)
    return {
        "untrained dictionary": baselines.of_coder(subject.untrained),
        "mean ablation": baselines.constant(mean),
    }


def _row(metric: str, column: dict[str, Score], own: Score, subject: Subject) -> MetricRow:
    values: list[MetricValue | None] = []
    for score in column.values():
        low, high = score.value - _NORMAL * score.error, score.value + _NORMAL * score.error
        if score.samples is not None:
            low, high = interval({"v": _drawn(score.samples, subject)})["v"]
        values.append(MetricValue(score.value, low, high))
    better = "higher" if own.higher_is_better else "lower"
    return MetricRow(metric, "", better, "the task's own metric", values)  # type: ignore[arg-type]


def _judge(metric: str, column: dict[str, Score], subject: Subject) -> list[Judgement]:
    compared = {name: score for name, score in column.items() if name != "the model itself"}
    if any(score.samples is None for score in compared.values()):
        return []
    draws = {
        name: _drawn(score.samples, subject)
        for name, score in compared.items()
        if score.samples is not None
    }
    higher = column["dictionary"].higher_is_better
    return judge(metric, draws, better="higher" if higher else "lower")


def _drawn(samples: np.ndarray, subject: Subject) -> np.ndarray:
    """Return the mean over bootstrap draws of samples, the same draws for every column."""
    return bootstrap_weights(len(samples), subject.draws, subject.seed) @ samples / len(samples)


SUITE = Suite("benchmarks", "Benchmarks through the dictionary", "full", run, _cost)
