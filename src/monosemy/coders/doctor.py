"""Replay a dictionary's fingerprint, and find out what is wired wrongly when it is off.

The usual mistakes are tried one after another: another hook point, a scale that was left out,
BOS present or absent, another base model. What makes the figures right again is the cause.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Literal

import torch
from torch import Tensor

from monosemy.coders.dictionary import Dictionary
from monosemy.coders.fingerprint import Figures, measure, tokenise
from monosemy.errors import UserError
from monosemy.lm import LM

Cause = Literal["", "hook point", "scale", "BOS", "tokenizer", "base model"]


@dataclass(frozen=True, slots=True)
class Diagnosis:
    """What replaying a fingerprint showed."""

    expected: Figures
    observed: Figures | None
    """None where the activations do not even have the dictionary's width."""
    hookpoint: str
    cause: Cause = ""
    explanation: str = "wired as it was trained: the fingerprint replays"
    advice: str = ""
    elsewhere: dict[str, Figures] = field(default_factory=dict)
    """Figures at the other hook points, when they were tried."""

    @property
    def healthy(self) -> bool:
        """Say whether nothing is wrong."""
        return self.cause == ""


def attach(dictionary: Dictionary, lm: LM, hookpoint: str | None = None) -> None:
    """Refuse to use a dictionary on a model it is not wired to rightly.

    Raises:
        UserError: the fingerprint's figures are off; says why, as far as that can be found.
    """
    found = diagnose(dictionary, lm, hookpoint)
    if not found.healthy:
        raise UserError(
            f"the dictionary does not fit `{found.hookpoint}` of {lm.name}: {found.explanation}",
            found.advice,
        )


def diagnose(dictionary: Dictionary, lm: LM, hookpoint: str | None = None) -> Diagnosis:
    """Replay the fingerprint at a hook point (default: the dictionary's own)."""
    name = lm.hookpoint(hookpoint or dictionary.hookpoint).name
    return _Examination(dictionary, lm, name).run()


class _Examination:
    """One dictionary on one model: the replays tried so far."""

    def __init__(self, dictionary: Dictionary, lm: LM, hookpoint: str) -> None:
        self.dictionary, self.lm, self.hookpoint = dictionary, lm, hookpoint
        self.expected = dictionary.fingerprint.expected
        self.fits = lm.hookpoint(hookpoint).width == dictionary.d_in

    def run(self) -> Diagnosis:
        observed = self._replay() if self.fits else None
        if observed is not None and self.expected.matches(observed):
            return self._check_tokenizer(observed)
        for attempt in (self._try_hookpoints, self._try_scale, self._try_bos):
            found = attempt(observed)
            if found is not None:
                return found
        return self._base_model(observed)

    def _replay(
        self,
        before: Callable[[Tensor], Tensor] = lambda x: x,
        after: Callable[[Tensor], Tensor] = lambda x: x,
    ) -> Figures:
        fingerprint = self.dictionary.fingerprint
        x = self._activations([self.hookpoint], fingerprint.tokens, fingerprint.attention_mask)
        return self._measure(x[self.hookpoint][fingerprint.counted], before, after)

    def _activations(self, names: list[str], tokens: Tensor, mask: Tensor) -> dict[str, Tensor]:
        captured = self.lm.capture(tokens, names, attention_mask=mask)
        return {name: x.float().cpu() for name, x in captured.items()}

    def _measure(
        self,
        x: Tensor,
        before: Callable[[Tensor], Tensor] = lambda x: x,
        after: Callable[[Tensor], Tensor] = lambda x: x,
    ) -> Figures:
        device = self.dictionary.coder.W_enc.device
        strongest = self.dictionary.fingerprint.strongest
        return measure(self.dictionary.coder, x.to(device), strongest, before, after)

    def _check_tokenizer(self, observed: Figures) -> Diagnosis:
        """The stored tokens replay; see whether this tokenizer makes the same ones."""
        recorded, provenance = self.dictionary.fingerprint, self.dictionary.provenance
        healthy = Diagnosis(self.expected, observed, self.hookpoint)
        if self.lm.tokenizer is None:
            return healthy
        batch = tokenise(recorded.texts, self.lm, provenance)
        ours = [row[m].tolist() for row, m in zip(batch.tokens, batch.attention_mask, strict=True)]
        theirs = [
            row[m].tolist() for row, m in zip(recorded.tokens, recorded.attention_mask, strict=True)
        ]
        if ours == theirs:
            return healthy
        if all(a[:-1] == b[1:] or a == b[1:] for a, b in zip(ours, theirs, strict=True)):
            return self._found(observed, "BOS", *_BOS_ABSENT)
        if all(a[1:] == b[:-1] or a[1:] == b for a, b in zip(ours, theirs, strict=True)):
            return self._found(observed, "BOS", *_BOS_PRESENT)
        return self._found(
            observed,
            "tokenizer",
            "the model is right, but its tokenizer makes other tokens than in training",
            f"use the tokenizer of {provenance.model}",
        )

    def _try_hookpoints(self, observed: Figures | None) -> Diagnosis | None:
        points = [p.name for p in self.lm.hookpoints() if p.width == self.dictionary.d_in]
        points = [name for name in points if name != self.hookpoint]
        if not points:
            return None
        recorded = self.dictionary.fingerprint
        captured = self._activations(points, recorded.tokens, recorded.attention_mask)
        elsewhere = {name: self._measure(x[recorded.counted]) for name, x in captured.items()}
        right = [name for name in points if self.expected.matches(elsewhere[name])]
        if not right:
            return None
        best = min(right, key=lambda name: elsewhere[name].fvu)
        return Diagnosis(
            self.expected,
            observed,
            self.hookpoint,
            "hook point",
            f"it belongs to `{best}`, where its figures are as expected",
            f"attach it at `{best}`",
            elsewhere,
        )

    def _try_scale(self, observed: Figures | None) -> Diagnosis | None:
        if observed is None:
            return None
        mean, scale = self.dictionary.mean.cpu(), self.dictionary.scale
        centred = self._replay(lambda x: (x - mean) * scale, lambda y: y / scale + mean)
        if self.expected.matches(centred):
            return self._found(
                observed,
                "scale",
                "its weights expect centred and scaled activations: the scale is missing, "
                "normalisation was never folded into them",
                f"fold it: `coder.fold(mean, scale)` with the mean saved and scale {scale:.4g}",
            )
        factor = self.expected.norm / max(observed.norm, 1e-12)
        if abs(factor - 1) < 0.02:
            return None
        scaled = self._replay(lambda x: x * factor, lambda y: y / factor)
        if not self.expected.matches(scaled):
            return None
        return self._found(
            observed,
            "scale",
            f"activations here are {1 / factor:.3g} times those in training: a scale is missing",
            f"multiply activations by {factor:.4g} before encoding, and undo it after decoding",
        )

    def _try_bos(self, observed: Figures | None) -> Diagnosis | None:
        if observed is None:
            return None
        recorded = self.dictionary.fingerprint
        bos = getattr(self.lm.tokenizer, "bos_token_id", None)
        tokens, mask, counted = recorded.tokens, recorded.attention_mask, recorded.counted
        starts = torch.full_like(tokens[:, :1], -1 if bos is None else bos)
        if bos is not None and (tokens[:, :1] == starts).all():
            x = self._activations([self.hookpoint], tokens[:, 1:], mask[:, 1:])
            if self._replays(x[self.hookpoint], counted[:, 1:]):
                return self._found(observed, "BOS", *_BOS_PRESENT)
        elif bos is not None:
            ones = torch.ones_like(mask[:, :1])
            x = self._activations(
                [self.hookpoint], torch.cat([starts, tokens], 1), torch.cat([ones, mask], 1)
            )
            if self._replays(x[self.hookpoint], torch.cat([~ones, counted], 1)):
                return self._found(observed, "BOS", *_BOS_ABSENT)
        return None

    def _replays(self, x: Tensor, counted: Tensor) -> bool:
        if int(counted.sum()) != len(self.dictionary.fingerprint.strongest):
            return False
        return self.expected.matches(self._measure(x[counted]))

    def _base_model(self, observed: Figures | None) -> Diagnosis:
        trained_on = self.dictionary.provenance.model
        if observed is None:
            width = self.lm.hookpoint(self.hookpoint).width
            seen = f"activations have width {width}, not {self.dictionary.d_in}"
        else:
            seen = (
                f"FVU {observed.fvu:.3f} where {self.expected.fvu:.3f} is expected, "
                f"L0 {observed.l0:.1f} where {self.expected.l0:.1f}"
            )
        return self._found(
            observed,
            "base model",
            f"{seen}, and no hook point, scale or BOS mends it: this is another base model, "
            "or other weights of the same",
            f"it was trained on {trained_on}, revision {self.dictionary.provenance.revision}",
        )

    def _found(
        self, observed: Figures | None, cause: Cause, explanation: str, advice: str
    ) -> Diagnosis:
        return Diagnosis(self.expected, observed, self.hookpoint, cause, explanation, advice)


_BOS_ABSENT = (
    "it was trained with BOS before every text, and here BOS is absent",
    "use a tokenizer that has BOS and puts it first",
)
_BOS_PRESENT = (
    "it was trained without BOS, and here BOS is present before every text",
    "use a tokenizer without BOS",
)
