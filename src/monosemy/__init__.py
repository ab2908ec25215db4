"""Open a language model, find the features it computes with, measure them, turn them up and down.

>>> import monosemy
>>> lm = monosemy.LM("builtin:stdlib")
>>> run = monosemy.train(lm, hookpoint="layers.2", width=2048, k=32)
>>> monosemy.evaluate(run)

Names are imported when first used, so that `import monosemy` is instant.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from monosemy.activations import Store, store_arrays
    from monosemy.coders import Dictionary, attach, diagnose
    from monosemy.corpus import TokenPolicy, open_corpus
    from monosemy.errors import UserError
    from monosemy.evaluation import evaluate
    from monosemy.formats import export, load
    from monosemy.formats.spliced import SplicedForCausalLM, splice
    from monosemy.index import Index
    from monosemy.intervene import FeatureEdit, steer
    from monosemy.lm import LM
    from monosemy.report import features
    from monosemy.training import TrainConfig, fit, resume, sweep, train

__version__ = "0.1.0.dev0"

_HOMES = {
    "Dictionary": "coders",
    "FeatureEdit": "intervene",
    "Index": "index",
    "LM": "lm",
    "SplicedForCausalLM": "formats.spliced",
    "Store": "activations",
    "TokenPolicy": "corpus",
    "TrainConfig": "training",
    "UserError": "errors",
    "attach": "coders",
    "diagnose": "coders",
    "evaluate": "evaluation",
    "export": "formats",
    "features": "report",
    "fit": "training",
    "load": "formats",
    "open_corpus": "corpus",
    "resume": "training",
    "splice": "formats.spliced",
    "steer": "intervene",
    "store_arrays": "activations",
    "sweep": "training",
    "train": "training",
}

__all__ = [
    "LM",
    "Dictionary",
    "FeatureEdit",
    "Index",
    "SplicedForCausalLM",
    "Store",
    "TokenPolicy",
    "TrainConfig",
    "UserError",
    "attach",
    "diagnose",
    "evaluate",
    "export",
    "features",
    "fit",
    "load",
    "open_corpus",
    "resume",
    "splice",
    "steer",
    "store_arrays",
    "sweep",
    "train",
]


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module `monosemy` has no attribute `{name}`")
    return getattr(importlib.import_module(f"monosemy.{_HOMES[name]}"), name)


def __dir__() -> list[str]:
    return [*__all__, "__version__"]
