"""Measure what activations are like, before anything is trained on them."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from monosemy.activations import Recipe
from monosemy.corpus import Corpus
from monosemy.errors import UserError
from monosemy.lm import LM
from monosemy.metrics.spread import Spread, SpreadFigures
from monosemy.progress import Task


def measure_spread(
    lm: LM,
    corpus: Corpus,
    hookpoints: Sequence[str],
    *,
    context: int = 128,
    tokens: int = 65_536,
    title: str = "stats",
) -> dict[str, SpreadFigures]:
    """Return the figures of hook points, from one pass over the beginning of shuffled text.

    Args:
        lm: the model.
        corpus: the text; its training part is read.
        hookpoints: where.
        context: tokens in a row.
        tokens: counted tokens, about.
        title: of the progress.

    Raises:
        UserError: a hook point that does not exist, activations that are NaN or infinite, or too
            little text.
    """
    points = [lm.hookpoint(name) for name in dict.fromkeys(hookpoints)]
    recipe = Recipe(
        model=lm.name,
        hookpoints=tuple(point.name for point in points),
        context=context,
        corpus=corpus.describe(),
    )
    spreads = {point.name: Spread(point.width, context) for point in points}
    seen = 0
    with Task(title, tokens) as task:
        for batch in recipe.stream(lm, corpus):
            found = lm.capture(batch.tokens, list(spreads), attention_mask=batch.attention_mask)
            for name, spread in spreads.items():
                if not bool(torch.isfinite(found[name]).all()):
                    names = ", ".join(f"`{document.id}`" for document in batch.documents[:5])
                    raise UserError(
                        f"activations at `{name}` are NaN or infinite, in text of {names}",
                        "load the model in float32 or bfloat16, or leave the text out",
                    )
                mask = batch.attention_mask.to(found[name].device)
                spread.update(found[name], batch.counted.to(found[name].device), mask)
            count = int(batch.counted.sum())
            seen += count
            task.advance(count)
            if seen >= tokens:
                break
    if seen < 2:
        raise UserError(f"{corpus.name} gives {seen} tokens", "give more text")
    return {name: spread.compute() for name, spread in spreads.items()}
