"""Makes an index in a process that a test kills: `index_child.py FOLDER`; a line a batch."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import torch
from handmade import exact
from tiny_models import tiny_llama, tiny_tokenizer

from monosemy.corpus import open_corpus
from monosemy.index import build, build_index
from monosemy.lm import LM

TEXTS = [f"def function_{i}(value):\n    return value + {i} * {i % 7}\n" * 3 for i in range(150)]


def main(folder: Path) -> None:
    torch.set_num_threads(1)
    lm, corpus = LM(tiny_llama(), tiny_tokenizer()), open_corpus(TEXTS, held_out=0.5)
    activations: Any = build.counted_activations

    def told(*args: Any) -> Any:
        sys.stdout.write("batch\n")
        sys.stdout.flush()
        return activations(*args)

    build._PART_ENTRIES = 20_000
    build.counted_activations = told
    build_index(exact(lm, corpus, "layers.1"), lm, corpus, folder / "index")


if __name__ == "__main__":
    main(Path(sys.argv[1]))
