"""Steering vectors: differences of activations between what is wanted and what is not.

Contrastive activation addition takes the mean over pairs at the answer's token (Rimsky et al. 2024,
arXiv 2312.06681), difference of means that over all tokens of two sets of texts. To steer is to add
a multiple: x + m v.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from monosemy.artefact import load_manifest, load_tensors, save_artefact
from monosemy.coders import Dictionary
from monosemy.corpus import Choice, Corpus, Document, open_corpus
from monosemy.errors import UserError, nearest
from monosemy.intervene.positions import Positions, check_positions, edited_positions
from monosemy.intervene.sides import PairSides, Sides, TextSides
from monosemy.lm import LM, Edit

KIND = "steering vector"
VECTORS = "vectors.safetensors"

Texts = Corpus | str | Path | Iterable[str | Document | Mapping[str, Any]]
"""Whatever `open_corpus` takes."""


@dataclass(frozen=True)
class VectorEdit:
    """A multiple of a vector, to be added in a model: `with lm.edit(edit)`.

    Attributes:
        hookpoint: where.
        vector: what.
        strength: how many times.
        positions: at which tokens; elsewhere activations stay bit for bit.
        dictionary: whose feature `Firing` positions mean; of the same hook point.
    """

    hookpoint: str
    vector: Float[Tensor, " d"]
    strength: float = 1.0
    positions: Positions = "all"
    dictionary: Dictionary | None = None

    def __post_init__(self) -> None:
        """Refuse what cannot be done, before a model runs.

        Raises:
            UserError: positions where a feature fires, of no dictionary, of one of another hook
                point, or that does not exist.
        """
        check_positions(self.positions, self.dictionary)
        if self.dictionary is not None and self.dictionary.hookpoint != self.hookpoint:
            raise UserError(
                f"the dictionary is of `{self.dictionary.hookpoint}`, the edit at "
                f"`{self.hookpoint}`",
                "steer where the dictionary reads",
            )

    def hooks(self, lm: LM) -> Mapping[str, Edit]:
        """Return what `LM.edit` puts where.

        Raises:
            UserError: the model has no such hook point, or one of another width.
        """
        point = lm.hookpoint(self.hookpoint)
        if point.width != len(self.vector):
            raise UserError(
                f"the vector has {len(self.vector)} numbers, `{point.name}` of {lm.name} has "
                f"{point.width}",
                "steer the model that the vector was made with",
            )
        added = self.strength * self.vector.to(lm.device)

        def write(x: Tensor, tokens: Tensor | None) -> Tensor:
            mask = edited_positions(self.positions, x, lm.call, self.dictionary)
            moved = (x.float() + added.to(x.device)).to(x.dtype)
            return torch.where(mask[..., None], moved, x)

        return {self.hookpoint: write}


@dataclass(frozen=True, slots=True, eq=False)
class SteeringVector:
    """A vector for each of some hook points, made from the same texts in one pass.

    Attributes:
        vectors: hook point -> [d], fp32, not normalised: what wanted texts have more.
        model: name of the model it was made with.
        norms: hook point -> mean norm of the activations it was made of.
        made: how: the sides' own description, counts among it.
    """

    vectors: dict[str, Tensor]
    model: str
    norms: dict[str, float]
    made: dict[str, Any] = field(default_factory=dict)

    @classmethod
    def from_sides(cls, sides: Sides, hookpoints: Sequence[str]) -> SteeringVector:
        """Make a vector from a contrast that is read already.

        Raises:
            UserError: unknown hook point, none at all, or a side without a token that counts.
        """
        lm = sides.lm
        names = [lm.hookpoint(name).name for name in hookpoints]
        if not names:
            raise UserError("no hook point", "name one, such as `layers.2`")
        means = {name: _Means() for name in names}
        for activations, weights in sides.activations(names):
            for name, x in activations.items():
                means[name].add(x, weights)
        vectors = {name: mean.difference().float() for name, mean in means.items()}
        norms = {name: mean.norm for name, mean in means.items()}
        first = means[names[0]]
        made = {**sides.describe(), "tokens": first.tokens}
        return cls(vectors, lm.name, norms, made)

    @classmethod
    def from_pairs(
        cls, lm: LM, choices: Sequence[Choice], hookpoints: Sequence[str]
    ) -> SteeringVector:
        """Make a vector from prompts with two answers: mean difference where the answers differ.

        Raises:
            UserError: as `PairSides` and `from_sides`.
        """
        return cls.from_sides(PairSides(lm, choices), hookpoints)

    @classmethod
    def from_texts(
        cls, lm: LM, positive: Texts, negative: Texts, hookpoints: Sequence[str]
    ) -> SteeringVector:
        """Make a vector from two sets of texts: difference of the means over counted tokens.

        Raises:
            UserError: as `open_corpus`, `TextSides` and `from_sides`.
        """
        sides = TextSides(lm, open_corpus(positive), open_corpus(negative))
        return cls.from_sides(sides, hookpoints)

    def at(
        self,
        hookpoint: str,
        strength: float = 1.0,
        *,
        positions: Positions = "all",
        dictionary: Dictionary | None = None,
    ) -> VectorEdit:
        """Return the edit that adds `strength` times the vector of a hook point.

        Raises:
            UserError: there is no vector for it, or as `VectorEdit`.
        """
        if hookpoint not in self.vectors:
            raise UserError(
                f"no vector for `{hookpoint}`",
                f"{nearest(hookpoint, self.vectors)} made for: {', '.join(self.vectors)}".strip(),
            )
        return VectorEdit(hookpoint, self.vectors[hookpoint], strength, positions, dictionary)

    def size(self, hookpoint: str, strength: float = 1.0) -> float:
        """Return |strength * v| over the mean norm of activations."""
        return abs(strength) * float(self.vectors[hookpoint].norm()) / self.norms[hookpoint]

    def random(self, seed: int = 0) -> SteeringVector:
        """Return random directions of the same norms: what any push as hard does."""
        generator = torch.Generator().manual_seed(seed)
        drawn = {n: torch.randn(len(v), generator=generator) for n, v in self.vectors.items()}
        vectors = {
            n: drawn[n] * (v.norm().cpu() / drawn[n].norm()) for n, v in self.vectors.items()
        }
        return replace(self, vectors=vectors, made={"kind": "random", "seed": seed})

    def save(self, folder: str | Path) -> Path:
        """Write it as an artefact of kind `steering vector`.

        Raises:
            UserError: the folder holds something else, or the disk refuses.
        """
        manifest = {"model": self.model, "norms": self.norms, "made": self.made}
        return save_artefact(folder, KIND, manifest, {VECTORS: self.vectors})

    @classmethod
    def load(cls, folder: str | Path) -> SteeringVector:
        """Read what `save` wrote.

        Raises:
            UserError: it is not there, damaged, or not as its manifest says.
        """
        manifest = load_manifest(folder, KIND)
        vectors = load_tensors(folder, VECTORS, manifest)
        try:
            model, made = str(manifest["model"]), dict(manifest["made"])
            norms = {name: float(norm) for name, norm in manifest["norms"].items()}
            right = {*norms} == {*vectors} and all(
                v.ndim == 1 and v.dtype == torch.float32 for v in vectors.values()
            )
        except (KeyError, TypeError, ValueError, AttributeError) as error:
            raise _not_as_said(folder, f"{type(error).__name__} {error}") from error
        if not right:
            raise _not_as_said(folder, f"it holds {', '.join(vectors)} of {', '.join(norms)}")
        return cls({name: vectors[name] for name in norms}, model, norms, made)


def code_difference(sides: Sides, dictionary: Dictionary) -> Float[Tensor, " width"]:
    """Return the mean code of the wanted side less that of the other, token by token as a vector.

    Activations are encoded as they occur, so nothing is out of distribution; entries are of either
    sign.

    Raises:
        UserError: a transcoder, or a dictionary of another width.
    """
    dictionary.check_one_place()
    means = _Means()
    name = dictionary.hookpoint
    for activations, weights in sides.activations([name]):
        means.add(dictionary.encode(activations[name]), weights)
    return means.difference().float()


class _Means:
    """Weighted means of rows on either side, in double precision."""

    def __init__(self) -> None:
        self.tokens: dict[str, int] = {"wanted": 0, "other": 0}
        self._sums: dict[str, Tensor] = {}
        self._weights = {"wanted": 0.0, "other": 0.0}
        self._norms = 0.0

    def add(self, x: Float[Tensor, "tokens d"], weights: Float[Tensor, " tokens"]) -> None:
        for side, mine in (("wanted", weights > 0), ("other", weights < 0)):
            rows, weight = x[mine.to(x.device)].double(), weights[mine].double().abs()
            now = weight.to(x.device) @ rows
            self._sums[side] = self._sums[side] + now if side in self._sums else now
            self._weights[side] += float(weight.sum())
            self._norms += float(rows.norm(dim=1).sum())
            self.tokens[side] += len(rows)

    def difference(self) -> Float[Tensor, " d"]:
        """Return the mean of the wanted side less that of the other."""
        empty = [side for side, weight in self._weights.items() if not weight]
        if empty:
            raise UserError(f"no token counts on the {empty[0]} side", "give texts that have some")
        wanted, other = (self._sums[side].cpu() / w for side, w in self._weights.items())
        return wanted - other

    @property
    def norm(self) -> float:
        """Mean norm of a row, of both sides."""
        return self._norms / max(sum(self.tokens.values()), 1)


def _not_as_said(folder: str | Path, why: str) -> UserError:
    return UserError(
        f"the steering vector in `{folder}` is not as its manifest says: {why}",
        "it was edited or made by a different version; copy or make it again",
    )
