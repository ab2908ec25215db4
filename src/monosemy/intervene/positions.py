"""Positions of a text at which an edit acts, found anew in every forward call."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from monosemy.coders import Dictionary
from monosemy.errors import UserError
from monosemy.lm import Call


@dataclass(frozen=True)
class Firing:
    """The positions at which a dictionary's feature fires, above an activation."""

    feature: int
    above: float = 0.0


Positions = Literal["all", "prompt", "generated"] | range | Firing
"""Where an edit acts: never on special tokens and padding. A range counts a text's tokens from 0,
BOS among them; `generated` are those that were written, not those that were read."""


def check_positions(positions: Positions, dictionary: Dictionary | None) -> None:
    """Refuse positions that no forward call could find.

    Raises:
        UserError: where a feature fires that does not exist, or is of no known dictionary.
    """
    if not isinstance(positions, Firing):
        return
    if dictionary is None:
        raise UserError(
            f"feature {positions.feature} of which dictionary?",
            "give the dictionary whose feature's firing says where",
        )
    dictionary.check_feature(positions.feature)


def edited_positions(
    positions: Positions,
    x: Float[Tensor, "batch time d"],
    call: Call,
    dictionary: Dictionary | None = None,
) -> Bool[Tensor, "batch time"]:
    """Return where in a forward call an edit acts.

    Args:
        positions: which.
        x: activations of this call; for `Firing`, those that the dictionary encodes.
        call: what the model was given.
        dictionary: whose feature `Firing` means.

    Raises:
        UserError: the prompt's length, or a token's place in its text, is not known.
    """
    text = call.text(x)
    if positions == "all":
        return text
    if isinstance(positions, Firing):
        assert dictionary is not None
        z = dictionary.coder.encode_some(x[text].float(), [positions.feature])[:, 0]
        return text.clone().masked_scatter(text, z > positions.above)
    index = call.index(x)
    if isinstance(positions, range):
        wanted = torch.tensor(list(positions), device=x.device)
        return text & torch.isin(index, wanted)
    generated = index >= call.prompt_length()
    return text & (generated if positions == "generated" else ~generated)
