"""Steering: generate with features turned up or down, beside the model by itself."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from functools import partial
from typing import Any

from torch import Tensor

from monosemy.coders import Clamp, Dictionary, attach
from monosemy.intervene.edits import FeatureEdit
from monosemy.intervene.pair import Written
from monosemy.lm import LM, Continuation
from monosemy.metrics.diversity import distinct_n


@dataclass(frozen=True, slots=True)
class Steered:
    """What a model wrote after a prompt under some edits.

    Attributes:
        tokens: text of each token, of the prompt and of what was written.
        prompt: how many of them are the prompt's.
        touched: whether an edit acted on it.
    """

    tokens: list[str]
    prompt: int
    touched: list[bool]

    @property
    def text(self) -> str:
        """What was written."""
        return "".join(self.tokens[self.prompt :])


def steer(
    lm: LM,
    edits: Sequence[FeatureEdit],
    prompt: str,
    *,
    max_new_tokens: int = 60,
    temperature: float = 0.0,
    seed: int = 0,
) -> list[Steered]:
    """Continue a prompt by the model as it is, through the dictionary, and under each edit.

    Through the dictionary: without what it does not explain, and nothing else changed; what an
    edit does is held against both.

    Args:
        lm: the model.
        edits: tried one by one, all of one dictionary, which is checked against the model.
        prompt: text to continue.
        max_new_tokens: length of each continuation.
        temperature: 0 is greedy.
        seed: of the sampling, the same for all.

    Raises:
        UserError: a dictionary that does not fit, or a prompt empty or too long.
    """
    attach(edits[0].dictionary, lm)
    through = FeatureEdit(edits[0].dictionary, [], error="drop")
    found = []
    for edit in (None, through, *edits):
        with lm.edit(edit) if edit is not None else nullcontext():
            written = lm.write(
                prompt, max_new_tokens=max_new_tokens, temperature=temperature, seed=seed
            )
        touched = (
            touched_by(lm, edit, written) if edit is not None else [False] * len(written.tokens)
        )
        found.append(Steered(_pieces(lm, written.tokens.tolist()), written.start, touched))
    return found


def touched_by(lm: LM, edit: FeatureEdit, written: Continuation) -> list[bool]:
    """Return on which tokens of a text an edit acts, reading it again under the edit."""
    found: list[Tensor] = []
    here = edit.dictionary.hookpoint

    def note(x: Tensor, tokens: Tensor | None) -> Tensor:
        found.append(edit.where(x, lm.call)[0])
        return x

    with lm.prompted(written.start), lm.edit({here: note}, edit):
        lm.logits(written.tokens[None])
    return found[0].tolist()


def _pieces(lm: LM, ids: list[int]) -> list[str]:
    """Return the text of each token, so that together they are the text; special ones are empty."""
    tokenizer: Any = lm.tokenizer
    pieces, before = [], ""
    for end in range(1, len(ids) + 1):
        text = tokenizer.decode(ids[:end], skip_special_tokens=True)
        whole = not text.endswith("\N{REPLACEMENT CHARACTER}")  # the rest of a character follows
        pieces.append(text[len(before) :] if whole else "")
        before = text if whole else before
    return pieces


@contextmanager
def clamped(lm: LM, dictionary: Dictionary, scales: Mapping[int, float]) -> Iterator[None]:
    """Clamp several features at once in every forward pass of the block, special tokens excepted.

    Args:
        lm: the model.
        dictionary: whose features.
        scales: feature -> strength, in multiples of its largest activation on held-out text.

    Raises:
        UserError: no such feature, or one that never fired.
    """
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
