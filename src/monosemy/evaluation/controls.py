"""Dictionaries trained for comparison, briefly: with directions frozen, and on a random model."""

from __future__ import annotations

from dataclasses import fields, replace
from typing import Any

from monosemy.coders import ARCHITECTURES, Dictionary
from monosemy.evaluation.subject import Subject
from monosemy.training import TrainConfig, fit
from monosemy.training.fit import OF_TEXT

ROWS = 32_768
"""Training tokens whose activations controls are trained on, again and again."""
LEAST_STEPS = 64
"""Of a brief training: batches are made smaller for it."""


def control_tokens(subject: Subject) -> int:
    """Return how many tokens controls are trained on: no more than the dictionary was."""
    tokens = subject.size("control_tokens", 32_768, 65_536, 524_288)
    return min(tokens, subject.dictionary.provenance.training.get("tokens") or tokens)


def trained_as_briefly(subject: Subject) -> Dictionary:
    """Return the dictionary's twin, trained on as few tokens as controls are.

    Controls are autoencoders with the dictionary's own settings. Where these are not known, as of
    somebody else's dictionary, it is the default architecture, as wide and with as many features a
    token, that stands in for it here and in the other controls.
    """
    return subject.once("brief", lambda: _trained(subject))


def frozen_decoder(subject: Subject) -> Dictionary:
    """Return a control whose directions stay random: only the rest is trained."""

    def make() -> Dictionary:
        settings = _settings(subject.dictionary)
        revive = {"revive": "auxk"} if settings.get("revive") == "resample" else {}
        return _trained(subject, freeze_decoder=True, tied=False, **revive)

    return subject.once("frozen decoder", make)


def random_model(subject: Subject) -> Subject:
    """Return a control of the model: its architecture with random weights, and a dictionary of it.

    The dictionary is trained and counted on the same text at the same place. A score that depends
    on what the model has learned must be higher for the subject (Heap et al. 2025, 2501.17727).
    """

    def make() -> Subject:
        random = replace(subject, lm=subject.lm.reinitialised(subject.seed + 1))
        return replace(random, dictionary=_trained(random))

    return subject.once("random model", make)


def knows_settings(dictionary: Dictionary) -> bool:
    """Say whether a dictionary could be trained again as it was."""
    return "architecture" in dictionary.provenance.training


def _trained(subject: Subject, **changes: Any) -> Dictionary:
    x, _ = subject.reader.sample(ROWS)
    settings, tokens = _settings(subject.dictionary), control_tokens(subject)
    batch = max(min(settings.pop("batch", 2048), tokens // LEAST_STEPS, len(x) // 8), 1)
    settings |= {"tokens": tokens, "batch": batch, "seed": subject.seed + 1, **changes}
    made = fit(x, device=str(subject.lm.device), **settings)
    training = {**made.provenance.training, "tokens": tokens}
    origin = replace(
        subject.dictionary.provenance, model=subject.lm.name, target=None, training=training
    )
    return replace(made, provenance=origin)


def _settings(dictionary: Dictionary) -> dict[str, Any]:
    """Return what a dictionary was trained with, or stand-ins."""
    known = dictionary.provenance.training
    if knows_settings(dictionary):
        names = [f.name for f in fields(TrainConfig) if f.name not in (*OF_TEXT, "clamp")]
        return {name: known[name] for name in names if name in known}
    kind = dictionary.coder.architecture
    kind = kind if kind in ARCHITECTURES else TrainConfig().architecture
    l0 = max(round(dictionary.l0), 1)
    asked = {"k": l0} if ARCHITECTURES[kind].has_k else {"target_l0": l0}
    return {"architecture": kind, "width": dictionary.width, **asked}
