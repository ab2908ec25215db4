"""Edits of features in a running model: which changes, of whose features, at which positions."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from monosemy.coders import Change, Dictionary, ErrorTerm, attach_once, changed
from monosemy.errors import UserError
from monosemy.intervene.positions import Positions, check_positions, edited_positions
from monosemy.lm import LM, Call, Edit


@dataclass(frozen=True)
class FeatureEdit:
    """Changes of a dictionary's features, to be put into a model: `with lm.edit(edit)`.

    A transcoder's features fire on its input, as edits before this one left it, and what their
    changes add up to is added at its target: y + (z' - z) W_dec.

    Attributes:
        dictionary: whose features.
        changes: one after another.
        positions: where.
        error: whether what the dictionary does not explain stays.
    """

    dictionary: Dictionary
    changes: Sequence[Change]
    positions: Positions = "all"
    error: ErrorTerm = "keep"

    def __post_init__(self) -> None:
        """Refuse what cannot be done, before a model runs.

        Raises:
            UserError: a feature that does not exist, or one that never fired and has no strength.
        """
        for change in self.changes:
            for feature in change.features:
                self.dictionary.check_feature(feature)
            self.dictionary.check_scales(change.amounts())
        check_positions(self.positions, self.dictionary)

    def hooks(self, lm: LM) -> Mapping[str, Edit]:
        """Return what `LM.edit` puts where; of a transcoder, its input is read as well.

        Raises:
            UserError: the dictionary does not fit the model (see `attach`); or, in a forward pass,
                a transcoder's input comes after its target.
        """
        attach_once(self.dictionary, lm)
        here, there = self.dictionary.hookpoint, self.dictionary.explains
        strength = {
            feature: float(self.dictionary.strength[feature])
            for change in self.changes
            for feature in change.features
        }
        inputs: list[Tensor] = []

        def read(x: Tensor, tokens: Tensor | None) -> Tensor:
            # In place of that of a pass which ended early; later code may change x (Falcon).
            inputs[:] = [x.clone()]
            return x

        def write(y: Tensor, tokens: Tensor | None) -> Tensor:
            if here != there and not inputs:
                raise UserError(
                    f"`{here}` comes after `{there}` in the model, where its features write",
                    "steer by a transcoder whose input comes before its target",
                )
            x = y if here == there else inputs.pop()
            mask = self.where(x, lm.call)
            if not mask.any():
                return y
            return self._written(x, y, mask, strength)

        return {there: write} if here == there else {here: read, there: write}

    def _written(
        self,
        x: Float[Tensor, "batch time d_in"],
        y: Float[Tensor, "batch time d_out"],
        mask: Bool[Tensor, "batch time"],
        strength: Mapping[int, float],
    ) -> Float[Tensor, "batch time d_out"]:
        whole = bool(mask.all())
        rows, target = (a.flatten(0, 1) if whole else a[mask] for a in (x, y))
        made = changed(
            self.dictionary.coder, rows.float(), target.float(), self.changes, strength, self.error
        ).to(y.dtype)
        if whole:
            return made.reshape(y.shape)
        out = y.clone()
        out[mask] = made
        return out

    def where(self, x: Float[Tensor, "batch time d"], call: Call) -> Bool[Tensor, "batch time"]:
        """Return the positions of a forward call at which the edit acts."""
        if not self.changes and self.error == "keep":
            return torch.zeros(x.shape[:2], dtype=torch.bool, device=x.device)
        return edited_positions(self.positions, x, call, self.dictionary)
