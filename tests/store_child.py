"""Fills a store in a process that a test kills."""

from __future__ import annotations

from pathlib import Path

from children import tell
from tiny_models import tiny_llama, tiny_tokenizer

from monosemy.activations import Harvest, Recipe
from monosemy.corpus import open_corpus
from monosemy.lm import LM

TEXTS = [f"def function_{i}(value):\n    return value + {i} * {i % 7}\n" * 3 for i in range(150)]


def main(folder: Path) -> None:
    lm, corpus = LM(tiny_llama(), tiny_tokenizer()), open_corpus(TEXTS, held_out=0.2)
    recipe = Recipe(
        model=lm.name,
        hookpoints=("layers.1",),
        context=32,
        corpus=corpus.describe(),
        tokens_at_once=512,
    )
    tell("started")
    with Harvest(lm, corpus, recipe, folder, tokens=30_000, shard_bytes=2**17) as harvest:
        harvest.grow()
