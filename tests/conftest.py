"""Fixtures that several test files share."""

from __future__ import annotations

import os

# No test reaches for the network; a model or data set that is not here is an error at once.
os.environ["HF_HUB_OFFLINE"] = "1"
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
# Several workers share the cores. Set before anything with threads is imported: of torch alone,
# scikit-learn would undo it, and threads that wait for a core slow each other ten times.
CORES = max(1, (os.cpu_count() or 2) // int(os.environ.get("PYTEST_XDIST_WORKER_COUNT", "1")))
os.environ.setdefault("OMP_NUM_THREADS", str(CORES))
os.environ.setdefault("NUMBA_NUM_THREADS", str(CORES))

from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
import type_check
from hypothesis import settings

# How long an example takes says something about the machine, not about what is tested.
settings.register_profile("suite", deadline=None)
settings.load_profile("suite")
# Every signature of the package, shapes included, is checked at run time from here on.
type_check.install("monosemy")

from tiny_models import tiny_llama, tiny_tokenizer

from monosemy.corpus import Corpus, open_corpus
from monosemy.lm import LM
from monosemy.training import Run, train

torch.set_num_threads(CORES)


LONGEST = ["docs", "resume", "training", "benchmarks", "cli", "sweep_report", "hub", "fit"]
"""Files of tests that take longest, the longest first."""


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Begin with the longest files, so that no worker is left with one alone at the end."""
    place = {f"test_{name}": number for number, name in enumerate(LONGEST)}
    items.sort(key=lambda item: place.get(item.path.stem, len(LONGEST)))


@pytest.fixture(autouse=True)
def seed() -> Iterator[None]:
    """Begin each test alike; none leaves another number of threads behind."""
    torch.manual_seed(0)
    yield
    assert torch.get_num_threads() == CORES


@pytest.fixture(scope="session")
def texts() -> list[str]:
    """Small documents, all different, with text that is not ASCII among them."""
    return [
        f"def function_{i}(value):\n    '''Größe {i} of 東京.'''\n    return value + {i}\n" * 3
        for i in range(120)
    ]


@pytest.fixture(scope="session")
def corpus(texts: list[str]) -> Corpus:
    return open_corpus(texts, held_out=0.25)


@pytest.fixture(scope="session")
def lm() -> LM:
    return LM(tiny_llama(), tiny_tokenizer())


@pytest.fixture(scope="session")
def run(lm: LM, corpus: Corpus) -> Run:
    """A small dictionary, trained in a second or two. Do not change it."""
    return train(lm, corpus, "layers.1", **SMALL)


SMALL = {
    "width": 96,
    "k": 8,
    "tokens": 40_000,
    "batch": 512,
    "pool": 4096,
    "context": 32,
    "lr": 1e-2,
}


@pytest.fixture(scope="session")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model and tokenizer saved as a user would have them."""
    folder = tmp_path_factory.mktemp("model")
    tiny_llama().save_pretrained(folder)
    tiny_tokenizer().save_pretrained(folder)
    return folder
