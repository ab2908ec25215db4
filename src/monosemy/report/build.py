"""Gather what a run's report shows, measuring what has not been measured yet."""

from __future__ import annotations

import json
import re
import shlex
import zlib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from monosemy.artefact import write_text
from monosemy.coders import Clamp, Dictionary, attach_once
from monosemy.errors import UserError
from monosemy.evaluation import Evaluation, evaluate, open_dictionary_corpus
from monosemy.interpret import (
    ConceptTable,
    Features,
    FeatureView,
    build_features,
    choose_features,
    describe,
)
from monosemy.intervene import FeatureEdit, SteeringPair
from monosemy.lm import LM
from monosemy.report.page import ReportData, write_report

REPORTED = ("reconstruction",)
"""Suites whose tables a report shows."""
STEER_SCALES = (0.4, 0.7, 1.0)
"""Strengths tried for the steering shown."""
STEER_TEMPERATURE = 0.5


@dataclass(frozen=True, slots=True)
class Report:
    """What was found, and the page that shows it."""

    path: Path
    evaluation: Evaluation
    features: Features
    named: ConceptTable | None
    """Features against concepts that are known; None where an index was there already, or the text
    is no Python source."""
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

    Leaves `metrics.json`, `report.html` and, unless it is there, `index/` in the run's folder.

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
    history = [] if "imported" in dictionary.provenance.training else read_history(folder)
    lm = lm or LM(dictionary.provenance.model, revision=dictionary.provenance.revision)
    attach_once(dictionary.to(lm.device), lm)
    corpus = open_dictionary_corpus(dictionary)
    evaluation = evaluate(dictionary, lm, corpus, suites=REPORTED)
    found = evaluation["reconstruction"]
    write_text(folder / "metrics.json", json.dumps(evaluation.to_dict(), indent=2) + "\n")
    named = None
    if (folder / "index").is_dir():
        features = Features.open(folder)
    else:
        features = build_features(dictionary, lm, corpus, folder / "index")
        named = describe(features.index, lm, dictionary)
    chosen = choose_features(features)
    views = [features[i] for i in chosen]
    steering = choose_steering(lm, dictionary, views, prompt) if lm.is_causal else []
    data = ReportData(
        title=run_title(dictionary, lm.name),
        run=run_facts(dictionary, lm.name, corpus.name, found.context) | (facts or {}),
        curves=training_curves(history),
        columns=found.table.columns,
        rows=found.table.rows,
        verdict=found.verdict,
        features=views,
        steering=steering,
        commands=_commands(folder, chosen, steering),
    )
    path = write_report(data, folder / "report.html")
    return Report(path, evaluation, features, named, chosen, steering)


def choose_steering(
    lm: LM, dictionary: Dictionary, views: list[FeatureView], prompt: str, count: int = 2
) -> list[SteeringPair]:
    """Steer by each of the features, at several strengths; return the most telling pairs.

    Telling: what the feature promotes, and the words it fires on, come up more often than
    without it, and the text stays as varied as the model's own.
    """

    def write() -> str:
        return lm.generate(prompt, max_new_tokens=60, temperature=STEER_TEMPERATURE)

    original = write()
    best: list[tuple[float, SteeringPair]] = []
    for view in views:
        words = {token for token, _ in view.promoted[:5]}
        words |= {e.tokens[e.peak] for e in view.exemplars}
        scored = []
        for scale in STEER_SCALES:
            with lm.edit(FeatureEdit(dictionary, [Clamp({view.id: scale})])):
                pair = SteeringPair(view.id, scale, prompt, original, write())
            scored.append((_telling(pair, words), pair))
        best.append(max(scored, key=lambda entry: entry[0]))
    best.sort(key=lambda entry: -entry[0])
    return [pair for score, pair in best[:count] if score > 0]


def _telling(pair: SteeringPair, words: set[str]) -> float:
    telling = [re.escape(word) + r"(?!\w)" for word in words if len(word.strip()) >= 3]

    def hits(text: str) -> int:
        return min(sum(len(re.findall(word, text)) for word in telling), 4)

    repeats = _variety(pair.original) - _variety(pair.steered)
    return hits(pair.steered) - hits(pair.original) - 10 * max(repeats, 0)


def _variety(text: str) -> float:
    """Say how little of a text repeats itself: by its compressed size, and its different words."""
    words = text.split()
    packed = len(zlib.compress(text.encode())) / max(len(text.encode()), 1)
    return packed + len(set(words)) / max(len(words), 1)


def read_history(folder: Path) -> list[dict[str, float]]:
    """Return what a run wrote down while it trained.

    Raises:
        UserError: there is nothing.
    """
    path = folder / "train.jsonl"
    if not path.is_file():
        raise UserError(
            f"`{folder}` is not a run: it has no {path.name}",
            "give the folder that `monosemy train` made, such as runs/1",
        )
    return [json.loads(line) for line in path.read_text("utf-8").splitlines()]


def training_curves(history: list[dict[str, float]]) -> dict[str, tuple[list[int], list[float]]]:
    """Return each figure of training over the tokens seen."""
    tokens = [int(line["tokens"]) for line in history]
    names = {"FVU": "fvu", "loss": "loss", "L0": "l0", "dead share": "dead_share"}
    return {name: (tokens, [line[key] for line in history]) for name, key in names.items()}


def run_title(dictionary: Dictionary, model: str) -> str:
    """Say how many features of what a run found."""
    if not dictionary.is_transcoder:
        return f"{dictionary.width:,} features of {dictionary.hookpoint} in {model}"
    return (
        f"{dictionary.width:,} features that explain {dictionary.explains} "
        f"from {dictionary.hookpoint} in {model}"
    )


def _places(dictionary: Dictionary) -> dict[str, str]:
    """Say where in the model a dictionary reads and, if elsewhere, writes."""
    here = f"{dictionary.hookpoint}, width {dictionary.d_in}"
    if not dictionary.is_transcoder:
        return {"hook point": here}
    skip = dictionary.coder.W_skip is not None
    return {
        "explains": f"{dictionary.explains}, width {dictionary.d_out}",
        "from": here,
        "by": "features and a linear path beside them" if skip else "features alone",
    }


def run_facts(
    dictionary: Dictionary, model: str, text: str, measured: Mapping[str, Any] | None
) -> dict[str, str]:
    """Return what a run is, by name.

    Args:
        dictionary: its dictionary.
        model: what to call the model.
        text: what to call the text it was trained on.
        measured: context of the suite `reconstruction`, if it ran.
    """
    training: dict[str, Any] = dictionary.provenance.training
    facts = {
        "model": model,
        **_places(dictionary),
        "text": text,
        "architecture": dictionary.coder.architecture.replace("_", " "),
        "features": f"{dictionary.width:,}",
        "L0": f"{dictionary.l0:.1f} on held-out text",
        **_origin(training),
    }
    if measured is None:
        return facts
    facts["measured on"] = (
        f"{measured['tokens']:,} held-out tokens of {measured['documents']} documents"
    )
    if ce := measured["ce"]:
        facts["CE"] = (
            f"{ce['original']:.3f} nats; mean-ablated {ce['mean']:.3f}, "
            f"zero-ablated {ce['zero']:.3f}"
        )
    return facts


def _origin(training: Mapping[str, Any]) -> dict[str, str]:
    """Say how a dictionary came to be: trained here, or read from another tool's files."""
    if "imported" in training:
        imported = training["imported"]
        text = imported.get("trained_on", {}).get("source", "text unknown")
        return {
            "read from": f"{imported['source']} ({imported['format']})",
            "trained on": f"{text}; what is held out here may not have been",
        }
    facts = {}
    if "seconds" in training:
        facts["trained on"] = f"{training['tokens']:,} tokens in {training['seconds']:.0f} s"
    return {**facts, **({"seed": str(training["seed"])} if "seed" in training else {})}


def _commands(folder: Path, chosen: list[int], steering: list[SteeringPair]) -> list[str]:
    steer = [
        f"monosemy steer {folder} --feature {pair.feature} --scale {pair.scale:g} "
        f"--temperature {STEER_TEMPERATURE} --prompt {shlex.quote(pair.prompt)}"
        for pair in steering[:1]
    ]
    return [
        *(f"monosemy features {folder} {feature}" for feature in chosen[:1]),
        *steer,
        f"monosemy evaluate {folder}",
        f"monosemy doctor {folder}",
    ]
