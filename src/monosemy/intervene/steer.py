"""Steering: generate with features turned up or down, beside the model by itself."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from functools import partial

from monosemy.coders import Clamp, Dictionary, attach
from monosemy.intervene.edits import FeatureEdit
from monosemy.intervene.pair import SteeringPair, Written
from monosemy.lm import LM, Continuation
from monosemy.metrics.diversity import distinct_n


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
    dictionary.targets({feature: scale})
    attach(dictionary, lm)
    write = partial(
        lm.generate, prompt, max_new_tokens=max_new_tokens, temperature=temperature, seed=seed
    )
    original = write()
    with lm.steer(dictionary, feature=feature, scale=scale):
        steered = write()
    return SteeringPair(feature, scale, prompt, original, steered)


@contextmanager
def clamped(lm: LM, dictionary: Dictionary, scales: Mapping[int, float]) -> Iterator[None]:
    """Clamp several features at once in every forward pass of the block, special tokens excepted.

    Args:
        lm: the model.
        dictionary: whose features.
        scales: feature -> strength, in multiples of its largest activation on held-out text.

    Raises:
        UserError: no such feature, one that never fired, or a transcoder.
    """
    dictionary.targets(scales)
    with lm.edit(FeatureEdit(dictionary, [Clamp(scales)])):
        yield


def write_both(
    lm: LM,
    dictionary: Dictionary,
    scales: Mapping[int, float],
    prompt: str,
    *,
    max_new_tokens: int = 60,
    temperature: float = 0.0,
    seed: int = 0,
    heard: Callable[[str, str], None] | None = None,
) -> tuple[Written, Written]:
    """Continue a prompt with and without some features clamped, and measure what that did.

    Args:
        lm: the model.
        dictionary: whose features; it must fit the model (see `attach`).
        scales: feature -> strength, in multiples of its largest activation on held-out text.
        prompt: text to continue.
        max_new_tokens: length of both continuations.
        temperature: 0 is greedy.
        seed: of the sampling, the same for both.
        heard: called after each token with "original" or "steered" and what is written so far;
            what it raises ends the writing.

    Returns:
        What the model wrote by itself, and what it wrote steered.

    Raises:
        UserError: as `clamped`, or the prompt is empty or too long.
    """
    steering = partial(clamped, lm, dictionary, scales)

    def write(side: str) -> Continuation:
        return lm.write(
            prompt,
            max_new_tokens=max_new_tokens,
            temperature=temperature,
            seed=seed,
            heard=partial(heard, side) if heard else None,
        )

    original = write("original")
    with steering():
        steered = write("steered")
    by_original = [_log_probability(lm, text) for text in (original, steered)]
    with steering():
        by_steered = [_log_probability(lm, text) for text in (original, steered)]
    first, second = zip(by_original, by_steered, strict=True)
    return _written(original, *first), _written(steered, *second)


def _log_probability(lm: LM, written: Continuation) -> float:
    """Return the mean over written tokens, in nats; what predicts a token stands before it."""
    tokens, start = written.tokens, written.start
    logits = lm.logits(tokens[None])[0, start - 1 : -1].float()
    each = logits.log_softmax(-1).gather(-1, tokens[start:, None])
    return float(each.double().mean())


def _written(written: Continuation, by_original: float, by_steered: float) -> Written:
    new = written.tokens[written.start :].tolist()
    distinct = {n: distinct_n(new, n) for n in (1, 2, 3)}
    return Written(written.text, len(new), by_original, by_steered, distinct)
