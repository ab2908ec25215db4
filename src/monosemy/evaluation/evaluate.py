"""Measure a dictionary on held-out text, beside baselines, with intervals over documents."""

from __future__ import annotations

import importlib.metadata
import platform
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from monosemy.coders import Dictionary, attach
from monosemy.corpus import Corpus, Fact, LabelledCorpus, Question, open_corpus
from monosemy.device import describe
from monosemy.errors import UserError
from monosemy.evaluation.foreign import adopt
from monosemy.evaluation.result import Evaluation
from monosemy.evaluation.subject import Subject
from monosemy.evaluation.suites import choose_suites, run_suites
from monosemy.evaluation.tasks import Tasks
from monosemy.lm import LM
from monosemy.metrics import FORMULAS


def evaluate(
    dictionary: Dictionary | Any,
    lm: LM | None = None,
    data: Any = None,
    *,
    tier: str = "standard",
    suites: Sequence[str] = (),
    hookpoint: str | None = None,
    tasks: Tasks | None = None,
    others: Sequence[Dictionary | Any] = (),
    labels: LabelledCorpus | None = None,
    checkpoints: Path | None = None,
    forget: Corpus | None = None,
    questions: Sequence[Question] = (),
    facts: Sequence[Fact] = (),
    draws: int = 1000,
    seed: int = 0,
    **sizes: Any,
) -> Evaluation:
    """Measure a dictionary on held-out documents beside its baselines.

    Args:
        dictionary: a dictionary, a run, or any object with `encode` and `decode` (which needs
            `lm`, `data` and `hookpoint`).
        lm: the model; default the one the dictionary names.
        data: a corpus; default the one the dictionary was trained on.
        tier: `quick`, `standard` or `full`: which suites, and on how much text.
        suites: only these.
        hookpoint: where a foreign object's activations live.
        tasks: of `lm-eval`, for the suite `benchmarks`.
        others: dictionaries that differ in the seed alone, for the suite `stability`.
        labels: labelled text (`open_labels`), for suites that ask what features know of it;
            default concepts of the corpus, where it is Python source.
        checkpoints: folder of the model's checkpoints, for the suite `compute`.
        forget: text that clamping features is to make the model worse at, for the suite
            `unlearning`.
        questions: about that and about other things (`read_questions`), for the same suite.
        facts: about entities (`read_facts`), for the suite `ravel`.
        draws: bootstrap draws of documents, from which 95% intervals come.
        seed: of everything drawn at random.
        sizes: numbers that replace a suite's own, such as `tokens` and `loss_tokens`.

    Raises:
        UserError: the dictionary does not fit the model, the model was loaded in part, there is
            no held-out text, no such tier or suite, a transcoder's input comes after its target,
            or one of `others` is of other activations.
    """
    chosen = choose_suites(tier, suites)
    subject = make_subject(
        dictionary,
        lm,
        data,
        hookpoint=hookpoint,
        others=others,
        tier=tier,
        tasks=tasks,
        labels=labels,
        checkpoints=checkpoints,
        forget=forget,
        questions=questions,
        facts=facts,
        draws=draws,
        seed=seed,
        sizes=sizes,
    )
    return gather(subject, list(run_suites(subject, chosen)))


def make_subject(
    dictionary: Dictionary | Any,
    lm: LM | None = None,
    data: Any = None,
    *,
    hookpoint: str | None = None,
    others: Sequence[Dictionary | Any] = (),
    **settings: Any,
) -> Subject:
    """Return what suites measure; arguments as for `evaluate`, the rest fields of `Subject`.

    Raises:
        UserError: the dictionary does not fit the model, no text is to be had, or one of `others`
            is of other activations.
    """
    run, dictionary = dictionary, getattr(dictionary, "dictionary", dictionary)
    lm = lm or getattr(run, "lm", None)
    if not isinstance(dictionary, Dictionary):
        if lm is None or data is None or hookpoint is None:
            raise UserError(
                f"a {type(dictionary).__name__} does not say what it belongs to",
                "give `lm`, `data` and `hookpoint` with it",
            )
        corpus = open_corpus(data)
        dictionary = adopt(dictionary, lm, corpus, hookpoint)
    else:
        lm = lm or LM(dictionary.provenance.model, revision=dictionary.provenance.revision)
        if lm.is_causal:
            lm.require_whole("the effect on the loss cannot be measured")
        with lm.unedited():
            attach(dictionary, lm)  # before its text is opened: the first time it gets another
        corpus = open_dictionary_corpus(run, data)
        _check_held_out(dictionary, corpus)
    beside = [_beside(dictionary, other, lm, corpus) for other in others]
    return Subject(dictionary, lm, corpus, others=beside, **settings)


def _check_held_out(dictionary: Dictionary, corpus: Corpus) -> None:
    """See that what is held out was held out in training: shares are nested, by a hash of texts.

    Text in memory has no name by which it would be known again.
    """
    mine, its = corpus.describe(), dict(dictionary.provenance.corpus)
    share = its.pop("held_out", None)
    if share is None or str(its.get("source", "")).startswith("python:"):
        return
    if corpus.held_out > share and all(mine.get(n) == v for n, v in its.items()):
        raise UserError(
            f"{corpus.name} holds out {corpus.held_out:g} of its documents, but the dictionary was "
            f"trained on all but {share:g} of them",
            f"hold out {share:g} or less, or take other text",
        )


def _beside(dictionary: Dictionary, other: Any, lm: LM, corpus: Corpus) -> Dictionary:
    """Return a dictionary to compare with another, which must be of the same activations."""
    other = getattr(other, "dictionary", other)
    if not isinstance(other, Dictionary):
        other = adopt(other, lm, corpus, dictionary.hookpoint)
    for what in ("model", "hookpoint", "explains"):
        mine, its = getattr(dictionary.provenance, what), getattr(other.provenance, what)
        if mine != its:
            raise UserError(
                f"two dictionaries differ in their {what}: `{mine}` and `{its}`",
                "only dictionaries of the same activations have features to match",
            )
    return other


def gather(subject: Subject, results: Sequence[Any]) -> Evaluation:
    """Return suites' results as one, with what was measured and on what."""
    d = subject.dictionary
    return Evaluation(
        suites=list(results),
        context={
            "model": subject.lm.name,
            "revision": subject.lm.revision,
            "hookpoint": d.hookpoint,
            "explains": d.explains,
            "architecture": d.coder.architecture,
            "width": d.width,
            "corpus": subject.corpus.describe(),
            "tier": subject.tier,
            "seed": subject.seed,
            "draws": subject.draws,
            "formulas": FORMULAS,
            "environment": _environment(subject.lm),
        },
    )


def open_dictionary_corpus(dictionary: Dictionary | Any, data: Any = None) -> Corpus:
    """Return the corpus given, or the one a dictionary or run was trained on.

    Raises:
        UserError: none is given and the dictionary's cannot be opened again.
    """
    if data is not None:
        return open_corpus(data)
    corpus = getattr(dictionary, "corpus", None)
    if corpus is not None:
        return corpus
    described = dictionary.provenance.corpus
    if not described or described["source"].startswith("python:"):
        raise UserError(
            "this dictionary was trained on text held in memory, which is gone",
            "say which text to use with `data` (--data)",
        )
    return open_corpus(**described)


def _environment(lm: LM) -> dict[str, Any]:
    """Return what may move the last digits."""
    names = ("monosemy", "torch", "transformers", "numpy")
    return {
        "python": platform.python_version(),
        **{name: importlib.metadata.version(name) for name in names},
        "machine": f"{platform.system()} {platform.machine()}",
        "device": describe(lm.device),
        "threads": torch.get_num_threads(),
    }
