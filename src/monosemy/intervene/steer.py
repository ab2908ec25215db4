"""Steering: generate with features turned up or down, beside the model by itself."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from functools import partial
from typing import Any

from torch import Tensor

from monosemy.coders import Dictionary
from monosemy.intervene.edits import FeatureEdit
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
    found = []
    for edit in (None, _through(edits[0].dictionary), *edits):
        with _edited(lm, edit):
            written = lm.write(
                prompt, max_new_tokens=max_new_tokens, temperature=temperature, seed=seed
            )
        found.append(_steered(lm, edit, written))
    return found


def _through(dictionary: Dictionary) -> FeatureEdit:
    return FeatureEdit(dictionary, [], error="drop")


def _edited(lm: LM, edit: FeatureEdit | None) -> AbstractContextManager[None]:
    return nullcontext() if edit is None else lm.edit(edit)


def _steered(lm: LM, edit: FeatureEdit | None, written: Continuation) -> Steered:
    touched = [False] * len(written.tokens) if edit is None else touched_by(lm, edit, written)
    return Steered(_pieces(lm, written.tokens.tolist()), written.start, touched)


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
        # The rest of a character may follow.
        whole = not text.endswith("\N{REPLACEMENT CHARACTER}") or end == len(ids)
        pieces.append(text[len(before) :] if whole else "")
        before = text if whole else before
    return pieces


@dataclass(frozen=True, slots=True)
class Measured:
    """A continuation of a prompt, and how likely it is.

    Attributes:
        written: the text, and where it was edited.
        by_original: mean log-probability of a written token under the model as it is, nats.
        by_steered: the same under the edited model.
        distinct: n -> share of its n-grams of tokens that are different ones, for n = 1, 2, 3.
    """

    written: Steered
    by_original: float
    by_steered: float
    distinct: dict[int, float]


def steer_measured(
    lm: LM,
    edit: FeatureEdit,
    prompt: str,
    *,
    through: bool = False,
    max_new_tokens: int = 60,
    temperature: float = 0.0,
    seed: int = 0,
    heard: Callable[[str, str], None] | None = None,
) -> dict[str, Measured]:
    """Continue a prompt with and without an edit, and measure what that did.

    Args:
        lm: the model.
        edit: of a dictionary that fits the model (see `attach`).
        prompt: text to continue.
        through: continue it through the dictionary as well, as `steer` does.
        max_new_tokens: length of each continuation.
        temperature: 0 is greedy.
        seed: of the sampling, the same for all.
        heard: called after each token with `original`, `through` or `steered` and what is written
            so far; what it raises ends the writing.

    Returns:
        What was written by the model as it is, through the dictionary, and under the edit:
        `original`, `through` if that was asked for, and `steered`.

    Raises:
        UserError: the prompt is empty or too long.
    """
    edits: dict[str, FeatureEdit | None] = {"original": None}
    if through:
        edits["through"] = _through(edit.dictionary)
    edits["steered"] = edit
    texts = {}
    for side, its in edits.items():
        with _edited(lm, its):
            texts[side] = lm.write(
                prompt,
                max_new_tokens=max_new_tokens,
                temperature=temperature,
                seed=seed,
                heard=partial(heard, side) if heard else None,
            )
    by_original = {side: _log_probability(lm, text) for side, text in texts.items()}
    with lm.edit(edit):
        by_steered = {side: _log_probability(lm, text) for side, text in texts.items()}
    return {
        side: Measured(
            _steered(lm, edits[side], text),
            by_original[side],
            by_steered[side],
            {n: distinct_n(text.tokens[text.start :].tolist(), n) for n in (1, 2, 3)},
        )
        for side, text in texts.items()
    }


def _log_probability(lm: LM, written: Continuation) -> float:
    """Return the mean over written tokens, in nats; what predicts a token stands before it."""
    tokens, start = written.tokens, written.start
    with lm.prompted(start):
        logits = lm.logits(tokens[None])[0, start - 1 : -1].float()
    each = logits.log_softmax(-1).gather(-1, tokens[start:, None])
    return float(each.double().mean())
