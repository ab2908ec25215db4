"""Measure a dictionary on held-out text, beside baselines, with a verdict."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import tyro

from monosemy.artefact import write_text
from monosemy.cli.console import console, open_dictionary, open_text
from monosemy.coders import Dictionary
from monosemy.corpus import open_corpus, open_labels, read_facts, read_questions
from monosemy.evaluation import (
    Evaluation,
    Subject,
    SuiteResult,
    Tasks,
    choose_suites,
    gather,
    make_subject,
    run_suites,
    write_saebench,
)
from monosemy.evaluation.subject import Tier
from monosemy.evaluation.suites import stability
from monosemy.report.evaluation import write_evaluation
from monosemy.report.numbers import count
from monosemy.report.terminal import suite_tables
from monosemy.training import seeds_beside


@dataclass(frozen=True)
class Command:
    """Options of `monosemy evaluate`."""

    run_folder: Annotated[tyro.conf.Positional[Path], tyro.conf.arg(metavar="RUN")]
    """A run or a dictionary."""
    model: str | None = None
    """Another model than the one it was trained on."""
    data: str | None = None
    """Other text than the one it was trained on; its held-out part is used."""
    column: str | None = None
    """Column that holds the text."""
    tier: Tier = "standard"
    """How much is measured: `quick`, `standard` or `full`."""
    suite: tuple[str, ...] = ()
    """Only these suites."""
    tokens: int | None = None
    """Held-out tokens for reconstruction; default: the tier's."""
    loss_tokens: int | None = None
    """Held-out tokens for the effect on the model's loss; default: the tier's."""
    task: tuple[str, ...] = ()
    """Tasks of `lm-eval` to score through the dictionary: suite `benchmarks`."""
    task_folder: Path | None = None
    """Folder of own tasks (*.yaml); default: those that `lm-eval` knows."""
    samples: int = 100
    """Of each task at most."""
    seeds: tuple[Path, ...] = ()
    """Runs that differ from it in the seed alone, for `stability`; default: those of its sweep."""
    labels: str | None = None
    """Labelled text for probing: .jsonl .csv .parquet, a folder of them, a Hugging Face data set;
    default: concepts of the corpus, where it is Python source."""
    label: str | None = None
    """Column of `--labels` that holds the label."""
    label_text: str | None = None
    """Column of `--labels` that holds the text."""
    checkpoints: Path | None = None
    """Folder of the model's checkpoints, for the share of pre-training compute: `compute`."""
    forget: str | None = None
    """Text that clamping features is to make the model worse at, for `unlearning`."""
    questions: Path | None = None
    """Questions about that and about other things (.jsonl .parquet), for `unlearning`: rows of
    `question`, `choices`, `answer`, `forget`."""
    facts: Path | None = None
    """Facts about entities (.jsonl .csv .parquet), for `ravel`: rows of `entity`, `attribute`,
    `prompt`, `answer`."""
    saebench: Path | None = None
    """Folder for the results as SAEBench's JSON too."""
    device: str | None = None
    """`cpu`, `cuda`, `mps`; default the best there is."""

    def run(self) -> None:
        """Print what it costs, the tables and the verdict; write `metrics.json` and a page.

        They are written after every suite, so that what is measured is kept if the rest is
        interrupted; those of single suites beside those of a tier, under the suites' names. Each
        feature's stability goes to `stability.json`.
        """
        suites = choose_suites(self.tier, self.suite)
        subject = self._subject(with_seeds=stability.SUITE in suites)
        costs = [f"{suite.name} {count(suite.cost(subject))}" for suite in suites]
        console.print(f"tokens through the model, at most: {', '.join(costs)}", style="dim")
        results: list[SuiteResult] = []
        for result in run_suites(subject, suites):
            results.append(result)
            console.print(suite_tables(result))
            if ce := result.context.get("ce"):
                kl = result.context["kl"]
                console.print(
                    f"CE of the model by itself {ce['original']:.3f} nats; mean-ablated "
                    f"{ce['mean']:.3f}, KL {kl['mean']:.3f}; zero-ablated {ce['zero']:.3f}, "
                    f"KL {kl['zero']:.3f}",
                    style="dim",
                )
            console.print(f"{result.seconds:.1f} s\n", style="dim")
            if result.suite == stability.SUITE.name:
                stability.save(result, self.run_folder)
            evaluation = gather(subject, results)
            written = self._write(evaluation)
        if self.saebench is not None:
            name = self.run_folder.resolve().name
            written += write_saebench(evaluation, subject.dictionary, self.saebench, name)
        console.print(f"written: {', '.join(map(str, written))}", style="dim")
        console.print(evaluation.verdict, style="bold")

    def _subject(self, *, with_seeds: bool) -> Subject:
        dictionary, lm = open_dictionary(self.run_folder, self.model, self.device)
        asked: dict[str, Any] = {"tokens": self.tokens, "loss_tokens": self.loss_tokens}
        labels = None
        if self.labels is not None:
            labels = open_labels(self.labels, column=self.label_text, label=self.label)
        return make_subject(
            dictionary,
            lm,
            open_text(dictionary, self.data, self.column),
            others=self._others() if with_seeds else [],
            tier=self.tier,
            tasks=Tasks(self.task, self.task_folder, self.samples) if self.task else None,
            labels=labels,
            checkpoints=self.checkpoints,
            forget=None if self.forget is None else open_corpus(self.forget),
            questions=() if self.questions is None else read_questions(self.questions),
            facts=() if self.facts is None else read_facts(self.facts),
            sizes={name: value for name, value in asked.items() if value is not None},
        )

    def _write(self, evaluation: Evaluation) -> list[Path]:
        of = "".join(f"-{name}" for name in self.suite)
        path = self.run_folder / f"metrics{of}.json"
        write_text(path, json.dumps(evaluation.to_dict(), indent=2) + "\n")
        return [path, write_evaluation(evaluation, self.run_folder / f"evaluation{of}.html")]

    def _others(self) -> list[Dictionary]:
        folders = self.seeds or seeds_beside(self.run_folder)
        return [Dictionary.from_pretrained(folder) for folder in folders]
