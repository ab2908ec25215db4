"""Gather what a run's report shows, measuring what has not been measured yet."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from monosemy.artefact import write_text
from monosemy.coders import Dictionary
from monosemy.corpus import Corpus
from monosemy.errors import UserError
from monosemy.evaluate import Evaluation, evaluate, open_dictionary_corpus
from monosemy.interpret import Features, FeatureView, choose_features, collect_features
from monosemy.intervene import SteeringPair, compare
from monosemy.lm import LM
from monosemy.report.page import ReportData, write_report

STEER_SCALES = (1.0, 2.0)
"""Strengths tried for the steering shown: the least that changes the text to the point."""


@dataclass(frozen=True, slots=True)
class Report:
    """What was found, and the page that shows it."""

    path: Path
    evaluation: Evaluation
    features: Features
    chosen: list[int]
    steering: list[SteeringPair]


def report_run(
    folder: str | Path,
    lm: LM | None = None,
    *,
    prompt: str = "def read_file(path):",
    facts: dict[str, str] | None = None,
) -> Report:
    """Measure a run's dictionary, look at its features, steer one, and write `report.html`.

    Leaves `metrics.json`, `features/` and `report.html` in the run's folder.

    Args:
        folder: of the run.
        lm: the model; default the one the dictionary names.
        prompt: continued with and without features turned up.
        facts: shown with those of the run.

    Raises:
        UserError: no run there, or its model or text cannot be had.
    """
    folder = Path(folder)
    dictionary = Dictionary.from_pretrained(folder)
    history = _history(folder)
    lm = lm or LM(dictionary.provenance.model, revision=dictionary.provenance.revision)
    dictionary.to(lm.device)
    corpus = open_dictionary_corpus(dictionary)
    evaluation = evaluate(dictionary, lm, corpus)
    write_text(folder / "metrics.json", json.dumps(evaluation.to_dict(), indent=2) + "\n")
    stream = dictionary.provenance.stream(lm, corpus, "held_out")
    features = collect_features(dictionary, lm, stream)
    features.save(folder / "features")
    chosen = choose_features(features)
    views = [features[i] for i in chosen]
    steering = choose_steering(lm, dictionary, views, prompt) if lm.is_causal else []
    data = ReportData(
        title=f"{dictionary.width:,} features of {dictionary.hookpoint} in {lm.name}",
        run=_facts(dictionary, lm, corpus, evaluation) | (facts or {}),
        curves=_curves(history),
        columns=evaluation.columns,
        rows=evaluation.rows,
        verdict=evaluation.verdict,
        features=views,
        steering=steering,
        commands=_commands(folder, chosen, prompt),
    )
    path = write_report(data, folder / "report.html")
    return Report(path, evaluation, features, chosen, steering)


def choose_steering(
    lm: LM, dictionary: Dictionary, views: list[FeatureView], prompt: str, count: int = 2
) -> list[SteeringPair]:
    """Steer by each of the first twelve features, gently and harder; return the most telling.

    Telling: words on which the feature fires most come up more often than without it, and the
    text does not fall into repetition.
    """
    scored: list[tuple[float, SteeringPair]] = []
    for view in views[:12]:
        words = {e.tokens[e.peak].strip() for e in view.exemplars} - {""}
        pairs = [
            compare(lm, dictionary, feature=view.id, scale=s, prompt=prompt, max_new_tokens=60)
            for s in STEER_SCALES
        ]
        scored.append(max(((_telling(pair, words), pair) for pair in pairs), key=lambda p: p[0]))
    scored.sort(key=lambda entry: -entry[0])
    return [pair for _, pair in scored[:count]]


def _telling(pair: SteeringPair, words: set[str]) -> float:
    def hits(text: str) -> int:
        return min(sum(text.count(word) for word in words), 4)

    pieces = pair.steered.split()
    variety = len(set(pieces)) / max(len(pieces), 1)
    return (hits(pair.steered) - hits(pair.original)) * variety


def _history(folder: Path) -> list[dict[str, float]]:
    path = folder / "train.jsonl"
    if not path.is_file():
        raise UserError(
            f"`{folder}` is not a run: it has no {path.name}",
            "give the folder that `monosemy train` made, such as runs/1",
        )
    return [json.loads(line) for line in path.read_text("utf-8").splitlines()]


def _curves(history: list[dict[str, float]]) -> dict[str, tuple[list[int], list[float]]]:
    tokens = [int(line["tokens"]) for line in history]
    names = {"FVU": "fvu", "loss": "loss", "L0": "l0", "dead share": "dead_share"}
    return {name: (tokens, [line[key] for line in history]) for name, key in names.items()}


def _facts(
    dictionary: Dictionary, lm: LM, corpus: Corpus, evaluation: Evaluation
) -> dict[str, str]:
    training: dict[str, Any] = dictionary.provenance.training
    return {
        "model": lm.name,
        "hook point": f"{dictionary.hookpoint}, width {dictionary.d_in}",
        "text": corpus.name,
        "architecture": dictionary.coder.architecture.replace("_", " "),
        "features": f"{dictionary.width:,}",
        "L0": f"{dictionary.l0:.1f} on held-out text",
        "trained on": f"{training['tokens']:,} tokens in {training['seconds']:.0f} s",
        "measured on": f"{evaluation.context['tokens']:,} held-out tokens of "
        f"{evaluation.context['documents']} documents",
        "seed": str(training["seed"]),
    }


def _commands(folder: Path, chosen: list[int], prompt: str) -> list[str]:
    feature = chosen[0] if chosen else 0
    return [
        f"monosemy features {folder} {feature}",
        f'monosemy steer {folder} --feature {feature} --scale 2 --prompt "{prompt}"',
        f"monosemy evaluate {folder}",
        f"monosemy doctor {folder}",
    ]
