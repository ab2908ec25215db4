"""Activations whose features are known, to test methods on: sparse sums of unit directions."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor
from torch.nn.functional import embedding_bag, normalize

from monosemy.errors import UserError

BLOCK = 1024
"""Tokens made at a time. A stream is defined in whole blocks, so that how it is cut into batches
changes nothing; another value gives other data."""

GROUP_SIZE = 16
"""Features in a correlated group (the last group may be smaller)."""

# What random numbers are for: each use has a stream of its own, so that changing one argument
# does not redraw what the others decide.
_DIRECTIONS, _PARENTS, _GROUPS, _TOKENS, _NOISE, _SCALE = range(6)


@dataclass(frozen=True, kw_only=True)
class SyntheticFeatures:
    """Tokens' activations x = z @ directions + noise, with sparse z >= 0 that is known.

    Features are numbered by how often they fire: feature 0 is the most frequent. Where one fires,
    its magnitude z is drawn, independently of all else, from a normal distribution with mean 1 and
    standard deviation 0.25, raised to 0.05 where it is lower; elsewhere z is 0. Tokens are
    independent. x is not centred: it has a mean, as real activations do. All tensors are on the
    CPU; the same arguments and seeds give the same data on the same PyTorch and kind of machine.

        data = SyntheticFeatures(d_in=64, n_features=512, l0=5, zipf=1.0)
        for x in data.batches(4096, seed=0): ...   # train, as long as you like
        x, z = data.sample(20_000, seed=1)         # test on tokens that no batch held

    Args:
        d_in: dimensions of x.
        n_features: number of directions; more than `d_in` puts them in superposition.
        l0: mean number of features that fire on a token. Exact in expectation, whatever
            `correlation` and `hierarchy` are.
        zipf: feature of rank r = 1, 2, ... fires with a probability proportional to r^-zipf;
            0 makes all equally frequent. No probability exceeds 1, which bounds `l0` by the sum
            of r^-zipf over the features: 6.8 for 512 of them at zipf 1, 44 at 0.5.
        correlation: correlation, 0 to below 1, of the latent Gaussians behind features of one
            group (`groups`). A feature fires where its latent exceeds a threshold (a Gaussian
            copula), so features of a group fire together more often than by chance while each
            keeps its frequency; features of different groups stay independent.
        hierarchy: share of features, 0 to below 1, that are children, chosen at random. A child
            fires only where its parent does, with probability f_child / f_parent, so that it
            keeps its frequency. Parents are no children and at least twice as frequent as their
            children: otherwise the two could not be told apart. Hence it takes zipf > 0.
        noise: standard deviation, in every dimension, of Gaussian noise added to x, as a share
            of `rms`. Changing it changes neither z nor what is without noise.
        seed: decides directions, parents and groups.

    Raises:
        UserError: a value is impossible; names it and the limit.
    """

    d_in: int
    n_features: int
    l0: float
    zipf: float = 0.0
    correlation: float = 0.0
    hierarchy: float = 0.0
    noise: float = 0.0
    seed: int = 0

    def __post_init__(self) -> None:
        _at_least(self.d_in, 1, "d_in")
        _at_least(self.n_features, 1, "n_features")
        _at_least(self.seed, 0, "seed")
        for name, value in (("zipf", self.zipf), ("noise", self.noise)):
            if not 0 <= value < math.inf:
                raise UserError(f"{name} is {value}", "allowed: 0 and above")
        for name, value in (("correlation", self.correlation), ("hierarchy", self.hierarchy)):
            if not 0 <= value < 1:
                raise UserError(f"{name} is {value}", "allowed: 0 to below 1")
        self._check_l0()
        self._check_hierarchy()

    def _check_l0(self) -> None:
        limit = float(self._zipf_weights.sum())
        if not 0 < self.l0 <= limit:
            raise UserError(
                f"l0 is {self.l0}: the most frequent of {self.n_features} features would fire "
                f"with probability {self.l0 / limit:.4g}",
                f"allowed: above 0, up to {limit:.6g} for {self.n_features} features at zipf "
                f"{self.zipf} (a lower zipf or more features allow more)",
            )

    def _check_hierarchy(self) -> None:
        if self._n_children > len(self._possible_children):
            raise UserError(
                f"hierarchy is {self.hierarchy}: {self._n_children} children, but only "
                f"{len(self._possible_children)} of {self.n_features} features are at most half "
                "as frequent as the most frequent one",
                f"allowed: up to {len(self._possible_children) / self.n_features:.4g} at zipf "
                f"{self.zipf} (a higher zipf allows more)",
            )

    @cached_property
    def directions(self) -> Float[Tensor, "n_features d_in"]:
        """Unit rows, spread evenly over the sphere: cosines between them are about d_in^-1/2."""
        generator = _generator(self.seed, _DIRECTIONS)
        return normalize(torch.randn(self.n_features, self.d_in, generator=generator), dim=1)

    @cached_property
    def frequencies(self) -> Float[Tensor, " n_features"]:
        """Probability that each feature fires on a token; falls, and sums to `l0`."""
        weights = self._zipf_weights
        return weights * (self.l0 / weights.sum())

    @cached_property
    def parents(self) -> Int[Tensor, " n_features"]:
        """Parent of each feature, drawn among those frequent enough; -1 where it has none."""
        generator = _generator(self.seed, _PARENTS)
        possible = self._possible_children
        order = torch.randperm(len(possible), generator=generator)
        children = possible[order[: self._n_children]]
        is_root = torch.ones(self.n_features, dtype=torch.bool)
        is_root[children] = False
        roots = is_root.nonzero()[:, 0]
        # Roots are in falling order: the first `count` of them may be the child's parent.
        f = self.frequencies
        count = torch.searchsorted(-f[roots], -2 * f[children], right=True)
        chosen = torch.rand(len(children), generator=generator, dtype=torch.float64) * count
        parents = torch.full((self.n_features,), -1)
        parents[children] = roots[chosen.long()]
        return parents

    @cached_property
    def groups(self) -> Int[Tensor, " n_features"]:
        """Number of each feature's group; `correlation` acts within groups of `GROUP_SIZE`.

        A group holds only children or only features without a parent, so that a child's latent is
        independent of its parent's: frequencies would not be as asked otherwise.
        """
        order = torch.randperm(self.n_features, generator=_generator(self.seed, _GROUPS))
        child = self.parents[order] >= 0
        groups = torch.empty(self.n_features, dtype=torch.int64)
        first = 0
        for members in (order[~child], order[child]):
            groups[members] = first + torch.arange(len(members)) // GROUP_SIZE
            first += math.ceil(len(members) / GROUP_SIZE)
        return groups

    @cached_property
    def rms(self) -> float:
        """Root mean square of x without noise over tokens and dimensions, about 0, not the mean.

        Measured on 4 blocks of tokens of their own.
        """
        blocks = self._clean_blocks(_generator(self.seed, _SCALE))
        squares = [next(blocks)[0].double().square().mean() for _ in range(4)]
        return float(torch.stack(squares).mean().sqrt())

    def sample(
        self, n_tokens: int, seed: int
    ) -> tuple[Float[Tensor, "n_tokens d_in"], Float[Tensor, "n_tokens n_features"]]:
        """Return the first tokens of the stream of this seed: x and z, fp32.

        A longer sample of the same seed begins with a shorter one, and x is what `batches` of the
        same seed serves: take another seed to test than to train.

        Raises:
            UserError: `n_tokens` is below 1 or `seed` below 0.
        """
        _at_least(n_tokens, 1, "n_tokens")
        _at_least(seed, 0, "seed")
        x = torch.empty(n_tokens, self.d_in)
        z = torch.empty(n_tokens, self.n_features)
        starts = range(0, n_tokens, BLOCK)
        for start, (x_block, z_block) in zip(starts, self._blocks(seed), strict=False):
            x[start : start + BLOCK] = x_block[: n_tokens - start]
            z[start : start + BLOCK] = z_block[: n_tokens - start]
        return x, z

    def batches(self, batch_size: int, seed: int) -> Iterator[Float[Tensor, "batch_size d_in"]]:
        """Iterate for ever over x, fp32; how it is cut into batches changes nothing.

        Raises:
            UserError: `batch_size` is below 1 or `seed` below 0.
        """
        _at_least(batch_size, 1, "batch_size")
        _at_least(seed, 0, "seed")
        return _cut((x for x, _ in self._blocks(seed)), batch_size)

    def _blocks(self, seed: int) -> Iterator[tuple[Tensor, Tensor]]:
        """Yield x and z of one block of tokens after the other."""
        generator = _generator(self.seed, _NOISE, seed)
        for x, z in self._clean_blocks(_generator(self.seed, _TOKENS, seed)):
            if self.noise:
                x += self.noise * self.rms * torch.randn(x.shape, generator=generator)
            yield x, z

    def _clean_blocks(self, generator: torch.Generator) -> Iterator[tuple[Tensor, Tensor]]:
        """Yield x without noise, and z."""
        children = (self.parents >= 0).nonzero()[:, 0]
        thresholds = self._thresholds
        while True:
            fired = self._latents(generator) > thresholds
            fired[:, children] &= fired[:, self.parents[children]]
            tokens, features = fired.nonzero(as_tuple=True)
            magnitudes = torch.empty(len(features)).normal_(1, 0.25, generator=generator)
            magnitudes.clamp_(min=0.05)
            z = torch.zeros(BLOCK, self.n_features)
            z[tokens, features] = magnitudes
            # Few features fire: adding up their directions is cheaper than z @ directions.
            counts = torch.bincount(tokens, minlength=BLOCK)
            starts = counts.cumsum(0) - counts
            x = embedding_bag(
                features, self.directions, starts, mode="sum", per_sample_weights=magnitudes
            )
            yield x, z

    def _latents(self, generator: torch.Generator) -> Float[Tensor, "block n_features"]:
        """Return standard normal latents of one block, correlated within groups."""
        latents = torch.randn(BLOCK, self.n_features, generator=generator)
        if not self.correlation:
            return latents
        shared = torch.randn(BLOCK, int(self.groups.max()) + 1, generator=generator)
        latents *= math.sqrt(1 - self.correlation)
        return latents.add_(shared[:, self.groups], alpha=math.sqrt(self.correlation))

    @cached_property
    def _thresholds(self) -> Float[Tensor, " n_features"]:
        """What a latent must exceed; a child's is set for where its parent fires."""
        f = self.frequencies
        probability = torch.where(self.parents >= 0, f / f[self.parents], f)
        return -torch.special.ndtri(probability).float()

    @cached_property
    def _zipf_weights(self) -> Float[Tensor, " n_features"]:
        return torch.arange(1, self.n_features + 1, dtype=torch.float64) ** -self.zipf

    @property
    def _n_children(self) -> int:
        return round(self.hierarchy * self.n_features)

    @property
    def _possible_children(self) -> Int[Tensor, " possible"]:
        """Return the features for which feature 0, never a child, would do as the parent."""
        f = self.frequencies
        return (2 * f <= f[0]).nonzero()[:, 0]


def _cut(blocks: Iterator[Tensor], size: int) -> Iterator[Tensor]:
    """Cut and join endless blocks of rows into batches of `size` rows."""
    left = next(blocks)
    while True:
        parts = [left]
        n_rows = len(left)
        while n_rows < size:
            parts.append(next(blocks))
            n_rows += BLOCK
        joined = torch.cat(parts) if len(parts) > 1 else left
        yield joined[:size]
        left = joined[size:]


def _generator(seed: int, purpose: int, stream: int = 0) -> torch.Generator:
    """Return random numbers for one purpose, unrelated to those for any other.

    The key is hashed: with the seeds as they are, tokens of seed 0 would be made of the very
    numbers that directions of seed 0 are made of.
    """
    state = np.random.SeedSequence([seed, purpose, stream]).generate_state(1)
    return torch.Generator().manual_seed(int(state[0]))


def _at_least(value: int, least: int, name: str) -> None:
    if value < least:
        raise UserError(f"{name} is {value}", f"allowed: {least} and above")
