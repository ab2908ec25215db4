"""Steering: generate with a feature turned up or down, beside the model by itself."""

from __future__ import annotations

from functools import partial

from monosemy.coders import Dictionary, attach
from monosemy.intervene.pair import SteeringPair
from monosemy.lm import LM


def compare(
    lm: LM,
    dictionary: Dictionary,
    *,
    feature: int,
    scale: float,
    prompt: str,
    max_new_tokens: int = 60,
    temperature: float = 0.0,
    seed: int = 0,
) -> SteeringPair:
    """Continue a prompt by the model as it is, and with one feature clamped at every position.

    Args:
        lm: the model.
        dictionary: whose feature; checked against the model first.
        feature: its number.
        scale: strength, in multiples of the feature's largest activation on held-out text; 0
            ablates it, negative numbers push the other way.
        prompt: text to continue.
        max_new_tokens: length of both continuations.
        temperature: 0 is greedy.
        seed: of the sampling, the same for both.

    Raises:
        UserError: no such feature, one that never fired, a transcoder, or a dictionary that does
            not fit.
    """
    dictionary.check_feature(feature)
    dictionary.check_steerable()
    attach(dictionary, lm)
    write = partial(
        lm.generate, prompt, max_new_tokens=max_new_tokens, temperature=temperature, seed=seed
    )
    original = write()
    with lm.steer(dictionary, feature=feature, scale=scale):
        steered = write()
    return SteeringPair(feature, scale, prompt, original, steered)
