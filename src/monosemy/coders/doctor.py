"""Replay a dictionary's fingerprint, and find out what is wired wrongly when it is off.

The usual mistakes are tried one after another: another hook point, a scale that was left out,
BOS present or absent, another base model. What makes the figures right again is the cause.
"""

from __future__ import annotations

from collections.abc import Iterator
from functools import cached_property
from weakref import WeakKeyDictionary, WeakSet

import torch
from torch import Tensor, nn

from monosemy.coders.diagnosis import (
    Cause,
    Diagnosis,
    a_few_at_once,
    likely_hookpoints,
    misfit,
    place_name,
)
from monosemy.coders.dictionary import Dictionary
from monosemy.coders.fingerprint import Change, Figures, Fingerprint, measure, tokenise
from monosemy.coders.first import meet
from monosemy.errors import UserError
from monosemy.lm import LM

_ATTACHED: WeakKeyDictionary[nn.Module, WeakSet[nn.Module]] = WeakKeyDictionary()
"""Coder -> the models that its dictionary was seen to fit."""


def attach_once(dictionary: Dictionary, lm: LM) -> None:
    """Do as `attach`, where it was not done for this dictionary and model before.

    What either becomes later, as by training, is not looked at again; nor is a dictionary that was
    fitted to arrays. Edits that are in force are left out meanwhile.

    Raises:
        UserError: as `attach`.
    """
    seen = lm.model in _ATTACHED.get(dictionary.coder, ())
    if dictionary.belongs_to_model and not seen:
        with lm.unedited():
            attach(dictionary, lm)


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
    if hookpoint is None:
        _ATTACHED.setdefault(dictionary.coder, WeakSet()).add(lm.model)


def diagnose(dictionary: Dictionary, lm: LM, hookpoint: str | None = None) -> Diagnosis:
    """Replay the fingerprint at a hook point (default: the dictionary's own).

    A dictionary of another tool has none yet: it gets one, if it fits (`meet`).

    Raises:
        UserError: unknown hook point, or a dictionary that was fitted to bare arrays.
    """
    if dictionary.fingerprint is None and dictionary.belongs_to_model:
        return meet(dictionary, lm, hookpoint=hookpoint)
    if dictionary.fingerprint is None:
        raise UserError(
            "this dictionary was fitted to arrays: it belongs to no model, and has no fingerprint "
            "to replay",
            "train on a model's activations, with `monosemy.train` or `monosemy train --store`",
        )
    name = lm.hookpoint(hookpoint or dictionary.hookpoint).name
    return _Examination(dictionary, dictionary.fingerprint, lm, name).run()


class _Examination:
    """One dictionary on one model: the replays tried so far."""

    def __init__(
        self, dictionary: Dictionary, recorded: Fingerprint, lm: LM, hookpoint: str
    ) -> None:
        self.dictionary, self.recorded = dictionary, recorded
        self.lm, self.hookpoint = lm, hookpoint
        target = dictionary.provenance.target
        self.target = hookpoint if target is None else lm.hookpoint(target).name
        self.tried = place_name(hookpoint, self.target)
        self.expected = recorded.expected

    def run(self) -> Diagnosis:
        observed = self._replay() if self._misfit() is None else None
        if observed is not None and self.expected.matches(observed):
            return self._check_tokenizer(observed)
        for attempt in (self._try_hookpoints, self._try_folding, self._try_scale, self._try_bos):
            found = attempt(observed)
            if found is not None:
                return found
        return self._base_model(observed)

    def _misfit(self) -> str | None:
        return misfit(self.dictionary, self.lm, self.hookpoint, self.target)

    def _replay(self, before: Change = lambda x: x, after: Change = lambda y: y) -> Figures:
        return self._measure(*self._recorded, before, after)

    @cached_property
    def _recorded(self) -> tuple[Tensor, Tensor]:
        """Activations of the fingerprint's counted tokens: those encoded, those explained."""
        values = self._counted([self.hookpoint, self.target])
        return values[self.hookpoint], values[self.target]

    def _counted(self, names: list[str]) -> dict[str, Tensor]:
        f = self.recorded
        values = self._activations(names, f.tokens, f.attention_mask)
        return {name: x[f.counted] for name, x in values.items()}

    def _activations(self, names: list[str], tokens: Tensor, mask: Tensor) -> dict[str, Tensor]:
        captured = self.lm.capture(tokens, names, attention_mask=mask)
        return {name: x.float().cpu() for name, x in captured.items()}

    def _measure(
        self, x: Tensor, y: Tensor, before: Change = lambda x: x, after: Change = lambda y: y
    ) -> Figures:
        coder, strongest = self.dictionary.coder, self.recorded.strongest
        device = coder.W_enc.device
        return measure(coder, x.to(device), y.to(device), strongest, before, after)

    def _check_tokenizer(self, observed: Figures) -> Diagnosis:
        """The stored tokens replay; see whether this tokenizer makes the same ones."""
        recorded, provenance = self.recorded, self.dictionary.provenance
        healthy = Diagnosis(self.expected, observed, self.tried)
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
        elsewhere = self._elsewhere()
        right = [places for places, figures in elsewhere.items() if self.expected.matches(figures)]
        if not right:
            return None
        best = min(right, key=lambda places: (places[1] != self.target, elsewhere[places].fvu))
        name = place_name(*best)
        explanation = f"it belongs to `{name}`, where its figures are as expected"
        advice = f"attach it at `{name}`"
        if self.dictionary.is_transcoder:
            advice = f"it encodes `{best[0]}` and explains `{best[1]}`: correct its provenance"
            if best == (self.target, self.hookpoint):
                explanation = f"its input and target are swapped: {explanation}"
        return Diagnosis(
            self.expected,
            observed,
            self.tried,
            "hook point",
            explanation,
            advice,
            {place_name(*places): figures for places, figures in elsewhere.items()},
        )

    def _elsewhere(self) -> dict[tuple[str, str], Figures]:
        """Return figures at other hook points: what is encoded there, what is explained.

        Of a transcoder all inputs are tried with one target. A code does not depend on the
        target, so it tells the input, whatever the target; all targets are tried with that input.
        """
        own = self.dictionary
        inputs = likely_hookpoints(own, self.lm, own.d_in)
        if not own.is_transcoder:
            inputs = [name for name in inputs if name != self.hookpoint]
            return {(name, name): self._measure(x, x) for name, x in self._each(inputs)}
        targets = likely_hookpoints(own, self.lm, own.d_out)
        if not inputs or not targets:
            return {}
        first = self.target if self.target in targets else targets[0]
        y = self._counted([first])[first]
        found = {(name, first): self._measure(x, y) for name, x in self._each(inputs)}
        (best, _), figures = max(found.items(), key=lambda item: item[1].agreement)
        if self.expected.has_code_of(figures):
            x = self._counted([best])[best]
            found |= {(best, name): self._measure(x, y) for name, y in self._each(targets)}
        return found

    def _each(self, names: list[str]) -> Iterator[tuple[str, Tensor]]:
        return a_few_at_once(names, self._counted)

    def _try_folding(self, observed: Figures | None) -> Diagnosis | None:
        if observed is None:
            return None
        own = self.dictionary
        mean, scale, given = own.mean, own.scale, "mean, scale"
        target_mean, target_scale = mean, scale
        if own.target_mean is not None and own.target_scale is not None:
            target_mean, target_scale = own.target_mean, own.target_scale
            given += ", target_mean, target_scale"
        centred = self._replay(
            lambda x: (x - mean.to(x)) * scale, lambda y: y / target_scale + target_mean.to(y)
        )
        if not self.expected.matches(centred):
            return None
        return self._found(
            observed,
            "scale",
            "its weights expect centred and scaled activations: the scale is missing, "
            "normalisation was never folded into them",
            f"fold it: `coder.fold({given})` with those saved; its scale is {scale:.4g}",
        )

    def _try_scale(self, observed: Figures | None) -> Diagnosis | None:
        if observed is None:
            return None
        factor = self.expected.norm / max(observed.norm, 1e-12)
        gain = self._best_gain(factor) if self.dictionary.is_transcoder else 1 / factor
        if abs(factor - 1) < 0.02 and abs(gain - 1) < 0.02:
            return None
        scaled = self._replay(lambda x: x * factor, lambda y: y * gain)
        if not self.expected.matches(scaled):
            return None
        there = f", at `{self.target}` {gain:.3g} times" if self.dictionary.is_transcoder else ""
        return self._found(
            observed,
            "scale",
            f"activations here are {1 / factor:.3g} times those in training{there}: "
            "a scale is missing",
            f"multiply activations by {factor:.4g} before encoding, and what comes out by "
            f"{gain:.4g} after decoding",
        )

    @torch.no_grad()
    def _best_gain(self, factor: float) -> float:
        """Return what a transcoder's output, its input times `factor`, is best multiplied by."""
        coder = self.dictionary.coder
        x, y = (values.to(coder.W_enc) for values in self._recorded)
        out = coder(x * factor)
        return float((out * y).sum() / out.square().sum().clamp_min(1e-12))

    def _try_bos(self, observed: Figures | None) -> Diagnosis | None:
        if observed is None:
            return None
        recorded = self.recorded
        bos = getattr(self.lm.tokenizer, "bos_token_id", None)
        tokens, mask, counted = recorded.tokens, recorded.attention_mask, recorded.counted
        starts = torch.full_like(tokens[:, :1], -1 if bos is None else bos)
        if bos is not None and (tokens[:, :1] == starts).all():
            if self._replays(tokens[:, 1:], mask[:, 1:], counted[:, 1:]):
                return self._found(observed, "BOS", *_BOS_PRESENT)
        elif bos is not None:
            ones = torch.ones_like(mask[:, :1])
            tokens, mask = torch.cat([starts, tokens], 1), torch.cat([ones, mask], 1)
            if self._replays(tokens, mask, torch.cat([~ones, counted], 1)):
                return self._found(observed, "BOS", *_BOS_ABSENT)
        return None

    def _replays(self, tokens: Tensor, mask: Tensor, counted: Tensor) -> bool:
        if int(counted.sum()) != len(self.recorded.strongest):
            return False
        values = self._activations([self.hookpoint, self.target], tokens, mask)
        x, y = values[self.hookpoint][counted], values[self.target][counted]
        return self.expected.matches(self._measure(x, y))

    def _base_model(self, observed: Figures | None) -> Diagnosis:
        trained_on = self.dictionary.provenance.model
        if observed is None:
            seen = self._misfit()
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
        return Diagnosis(self.expected, observed, self.tried, cause, explanation, advice)


_BOS_ABSENT = (
    "it was trained with BOS before every text, and here BOS is absent",
    "use a tokenizer that has BOS and puts it first",
)
_BOS_PRESENT = (
    "it was trained without BOS, and here BOS is present before every text",
    "use a tokenizer without BOS",
)
