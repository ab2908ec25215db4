"""Makes an index in a process that a test kills; a line a batch."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from children import tell
from handmade import exact
from tiny_models import tiny_llama, tiny_tokenizer

from monosemy.corpus import open_corpus
from monosemy.index import build, build_index
from monosemy.lm import LM

TEXTS = [f"def function_{i}(value):\n    return value + {i} * {i % 7}\n" * 3 for i in range(150)]


def main(folder: Path) -> None:
    lm, corpus = LM(tiny_llama(), tiny_tokenizer()), open_corpus(TEXTS, held_out=0.5)
    activations: Any = build.counted_activations

    def told(*args: Any) -> Any:
        tell("batch")
        return activations(*args)

    build._PART_ENTRIES = 20_000
    build.counted_activations = told
    build_index(exact(lm, corpus, "layers.1"), lm, corpus, folder / "index")
