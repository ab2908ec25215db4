"""How much a text repeats itself."""

from __future__ import annotations

import math
from collections.abc import Sequence


def distinct_n(tokens: Sequence[int], n: int) -> float:
    """Return the share of a text's n-grams that are different ones: 1 where none comes twice.

    Distinct-n of Li et al. 2016 ("A Diversity-Promoting Objective Function for Neural Conversation
    Models", section 5.3), over the number of n-grams, where the paper has the number of tokens.
    Longer texts repeat more: compare texts of the same length. NaN where there is no n-gram.
    """
    grams = [tuple(tokens[i : i + n]) for i in range(len(tokens) - n + 1)]
    return len(set(grams)) / len(grams) if grams else math.nan
