"""The first meeting of another tool's dictionary with the model it is for.

Its files say nothing by which one could tell that model, hook point and scale are the right ones.
What can be told is whether it explains the activations it is given, and whether it explains others
better, or these on another scale. If not, it is measured: how strongly each feature fires, the mean
activation, and a fingerprint, by which it is known from then on.
"""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from monosemy.activations import LiveActivations, counted_activations
from monosemy.coders.coder import DIVIDING
from monosemy.coders.diagnosis import (
    Cause,
    Diagnosis,
    a_few_at_once,
    likely_hookpoints,
    misfit,
    place_name,
)
from monosemy.coders.dictionary import Dictionary
from monosemy.coders.fingerprint import Figures, Fingerprint, first_texts, measure, tokenise
from monosemy.coders.gain import take_gain_back
from monosemy.coders.provenance import Provenance
from monosemy.corpus import Corpus, open_corpus
from monosemy.errors import UserError
from monosemy.lm import LM
from monosemy.metrics import Activity, Reconstruction
from monosemy.progress import Task

TEXT = "builtin:stdlib"
"""What it is measured on where no text is given: it is always at hand."""
TOKENS = 16_384
"""On which features' strengths are measured."""
UNKNOWN = "unknown"
"""In place of a model or hook point that files do not name."""
_MUCH_BETTER = 0.75
"""FVU elsewhere, or on another scale, in shares of that as given, below which that is not right."""
_EXPLAINS_NOTHING = 0.9
"""FVU from which a dictionary's own L0 says nothing."""
_SCALES = tuple(2.0**power for power in range(-6, 7))


@torch.no_grad()
def meet(
    dictionary: Dictionary,
    lm: LM,
    text: Corpus | None = None,
    hookpoint: str | None = None,
    *,
    insist: bool = False,
) -> Diagnosis:
    """Attach a dictionary to its model for the first time.

    If it fits it is completed in place: names of hook points as they are here, mean, strengths,
    held-out figures, the text they were measured on, and a fingerprint. Text that it was trained
    on by others cannot be told from other text: nothing here is held out by construction.

    Args:
        dictionary: without a fingerprint.
        lm: the model.
        text: what to measure on; its held-out part; default `TEXT`.
        hookpoint: where, if not where its files say.
        insist: complete it even where it does not seem to fit, as long as widths do.

    Raises:
        UserError: no or an unknown hook point, or activations of another width.
    """
    corpus = open_corpus(TEXT) if text is None else text
    if hookpoint is None:
        take_gain_back(dictionary, lm)
    provenance = _resolved(dictionary, lm, corpus, hookpoint)
    meeting = _Meeting(dictionary, lm, provenance, corpus)
    found = meeting.run()
    if found.healthy or (insist and found.observed is not None):
        _complete(dictionary, lm, provenance, corpus)
    return found


def _resolved(dictionary: Dictionary, lm: LM, corpus: Corpus, hookpoint: str | None) -> Provenance:
    """Return the provenance with this model, its own names of hook points, and the text."""
    its = dictionary.provenance
    limit = lm.context_limit
    return replace(
        its,
        model=lm.name if its.model == UNKNOWN else its.model,
        revision=lm.revision if its.model in (UNKNOWN, lm.name) else its.revision,
        hookpoint=_named(lm, hookpoint or its.hookpoint),
        target=None if its.target is None else _named(lm, its.target),
        context=min(its.context, limit or its.context),
        corpus=corpus.describe(),
    )


def _named(lm: LM, name: str) -> str:
    return name if name == UNKNOWN else lm.hookpoint(name).name


class _Meeting:
    """One dictionary on one model, which nothing is known about yet."""

    def __init__(
        self, dictionary: Dictionary, lm: LM, provenance: Provenance, corpus: Corpus
    ) -> None:
        self.dictionary, self.lm = dictionary, lm
        self.hookpoint, self.target = provenance.hookpoint, provenance.explains
        self.batch = tokenise(first_texts(corpus), lm, provenance)

    def run(self) -> Diagnosis:
        """Return what is wrong, if anything."""
        if self.target == UNKNOWN and self.dictionary.is_transcoder:
            return self._found(
                None,
                "hook point",
                "its files do not say what it explains",
                "import it again with --target HOOKPOINT",
            )
        if self.hookpoint == UNKNOWN:
            return self._moved(None, "its files do not say where in the model it belongs")
        seen = misfit(self.dictionary, self.lm, self.hookpoint, self.target)
        if seen is not None:
            return self._moved(None, seen)
        values = self._values([self.hookpoint, self.target])
        x, y = values[self.hookpoint], values[self.target]
        observed, tried = self._figures(x, y), self._tried()
        mended = {**self._scaled(observed, x), **self._moved_to(observed, tried)}
        if mended:
            return mended[min(mended)]
        if observed.fvu >= 1:
            return self._found(
                observed,
                "base model",
                f"it explains less than the mean does (FVU {observed.fvu:.3g}), here and at every "
                "other hook point of its width, at any scale",
                "this is another base model, or text unlike that it was trained on (`--data`), or "
                "what its files do not say is missing: see `monosemy import --help`",
            )
        rival = min(tried, key=lambda name: tried[name].fvu, default=self.hookpoint)
        as_well = rival in tried and tried[rival].fvu < observed.fvu
        than = f", though it explains `{rival}` as well ({tried[rival].fvu:.3f})" if as_well else ""
        return Diagnosis(
            None,
            observed,
            place_name(self.hookpoint, self.target),
            explanation=f"it explains what it is given (FVU {observed.fvu:.3f}, L0 "
            f"{observed.l0:.1f}){than or ', and no other hook point as well'}",
            elsewhere=tried if as_well else {},
        )

    def _moved(self, observed: Figures | None, seen: str) -> Diagnosis:
        """Say where it fits best, where that is not known or cannot be right."""
        tried = self._tried()
        advice = f"it was trained on {self.dictionary.provenance.model}: is this that model?"
        if tried:
            best = min(tried, key=lambda name: tried[name].fvu)
            if tried[best].fvu < 1:
                seen += f"; it fits best at `{best}`, with FVU {tried[best].fvu:.3f}"
                advice = f"import it again with --hookpoint {best}"
        return self._found(observed, "hook point", seen, advice, tried)

    def _scaled(self, observed: Figures, x: Tensor) -> dict[float, Diagnosis]:
        """Return, by FVU, what fits far better of activations on other scales, and centred.

        What divides each token by its own size has no scale, and a linear path is not centred.
        """
        coder = self.dictionary.coder
        if self.dictionary.is_transcoder or coder.normalise in DIVIDING:
            return {}
        usual = math.sqrt(self.dictionary.d_in) / max(observed.norm, 1e-12)
        scaled = {scale: self._figures(x * scale, x * scale) for scale in (*_SCALES, usual)}
        # Above a threshold larger activations are always explained better: by more features.
        most = math.inf if observed.fvu > _EXPLAINS_NOTHING else 1.5 * observed.l0 + 1
        allowed = {scale: f.fvu for scale, f in scaled.items() if f.l0 <= most} or {1.0: math.inf}
        best = min(allowed, key=lambda scale: allowed[scale])
        if allowed.get(usual, math.inf) <= 1.5 * allowed[best]:
            best = usual
        to = f", to mean norm sqrt({self.dictionary.d_in})" if best == usual else ""
        flat = x - x.mean(1, keepdim=True)
        may_be_centred = not coder.normalise and coder.W_skip is None
        centred = self._figures(flat, flat).fvu if may_be_centred else math.inf
        tried = {
            allowed[best]: (
                f"with activations multiplied by {best:.4g}{to}",
                "a scale was never folded into its weights",
                f"import it again with --scale {best:.4g}, or what its training says",
            ),
            centred: (
                "with each token's mean taken away",
                "its model's writing weights were centred",
                "import it again with --centred True",
            ),
        }
        return {
            fvu: self._found(
                observed,
                "scale",
                f"{how} its FVU is {fvu:.3f} in place of {observed.fvu:.3g}: {why}",
                advice,
            )
            for fvu, (how, why, advice) in tried.items()
            if self._is_far_better(fvu, observed)
        }

    def _moved_to(self, observed: Figures, tried: dict[str, Figures]) -> dict[float, Diagnosis]:
        """Return, by FVU, the other hook point that fits far better, if one does."""
        best = min(tried, key=lambda name: tried[name].fvu, default=None)
        if best is None or not self._is_far_better(tried[best].fvu, observed):
            return {}
        found = self._found(
            observed,
            "hook point",
            f"it explains `{best}` far better (FVU {tried[best].fvu:.3f}) than "
            f"`{place_name(self.hookpoint, self.target)}` (FVU {observed.fvu:.3g})",
            f"import it again with --hookpoint {best}",
            tried,
        )
        return {tried[best].fvu: found}

    def _tried(self) -> dict[str, Figures]:
        """Return figures at other hook points that may be its input."""
        names = likely_hookpoints(self.dictionary, self.lm, self.dictionary.d_in)
        names = [name for name in names if name != self.hookpoint]
        target = None if self.target == self.hookpoint else self.target
        y = None if target is None else self._values([target])[target]
        each = a_few_at_once(names, self._values)
        return {name: self._figures(x, x if y is None else y) for name, x in each}

    def _figures(self, x: Tensor, y: Tensor) -> Figures:
        weights, nobody = self.dictionary.coder.W_enc, torch.full((len(x),), -1)
        return measure(self.dictionary.coder, x.to(weights), y.to(weights), nobody)

    def _values(self, names: list[str]) -> dict[str, Tensor]:
        return counted_activations(self.lm, self.batch, list(dict.fromkeys(names)))

    def _is_far_better(self, fvu: float, observed: Figures) -> bool:
        return fvu < min(_MUCH_BETTER * observed.fvu, 1.0)

    def _found(
        self,
        observed: Figures | None,
        cause: Cause,
        explanation: str,
        advice: str,
        elsewhere: dict[str, Figures] | None = None,
    ) -> Diagnosis:
        tried = place_name(self.hookpoint, self.target)
        return Diagnosis(None, observed, tried, cause, explanation, advice, elsewhere or {})


def _complete(dictionary: Dictionary, lm: LM, provenance: Provenance, corpus: Corpus) -> None:
    """Measure what training would have left, and record the fingerprint."""
    coder = dictionary.coder
    activity, means, sums = Activity(coder.width), [], None
    names = [provenance.hookpoint, provenance.explains]
    with Task("meeting the model", TOKENS, "tokens") as task:
        for values in LiveActivations(lm, provenance.stream(lm, corpus, "held_out"), names):
            x, y = values[names[0]].to(coder.W_enc), values[names[1]].to(coder.W_enc)
            out, code = coder.reconstruct(x)
            activity.update(code.values, code.indices, len(x))
            sums = sums or Reconstruction(y.mean(0))
            sums.update(y, out, code.l0)
            means.append((len(x), x.mean(0).cpu(), y.mean(0).cpu()))
            task.advance(len(x))
            if activity.n_tokens >= TOKENS:
                break
    if sums is None:
        raise UserError("the text has no held-out part to measure on", "give longer text")
    share = torch.tensor([count for count, _, _ in means]) / activity.n_tokens
    figures = sums.compute()
    held_out = {
        "fvu": figures["fvu"],
        "l0": activity.l0,
        "dead_share": activity.dead_share,
        "tokens": activity.n_tokens,
    }
    training: dict[str, Any] = {**provenance.training, "held_out": held_out}
    trained_on = dictionary.provenance.corpus
    if trained_on:
        training["imported"] = {**training["imported"], "trained_on": trained_on}
    dictionary.strength = activity.max
    dictionary.mean = (torch.stack([x for _, x, _ in means]) * share[:, None]).sum(0)
    if dictionary.is_transcoder:
        dictionary.target_mean = (torch.stack([y for _, _, y in means]) * share[:, None]).sum(0)
    dictionary.provenance = replace(provenance, training=training)
    dictionary.fingerprint = Fingerprint.record(lm, coder, dictionary.provenance, corpus)
