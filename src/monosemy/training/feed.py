"""Where a training step's batch comes from, and how that place is found again."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import islice
from typing import Any, Protocol, runtime_checkable

import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn import functional as F

from monosemy.activations import (
    Activations,
    LiveActivations,
    ShufflePool,
    Store,
    counted_activations,
)
from monosemy.corpus import Place, TokenBatch, TokenStream
from monosemy.errors import UserError
from monosemy.lm import LM
from monosemy.progress import Stages


@dataclass(frozen=True, slots=True)
class Batch:
    """Activations of one step's tokens, and the text where the loss asks the model."""

    activations: Activations
    text: TokenBatch | None = None


@runtime_checkable
class Feed(Protocol):
    """An endless source of batches that can be left and gone on with."""

    def sample(self, tokens: int) -> Activations:
        """Return activations that come first, up to so many, without using them up."""
        ...

    def __next__(self) -> Batch: ...

    def state_dict(self) -> dict[str, Any]: ...


class PoolFeed:
    """Shuffled activations of counted tokens."""

    def __init__(
        self,
        lm: LM,
        text: TokenStream,
        hookpoints: Sequence[str],
        *,
        size: int,
        batch: int,
        seed: int,
        autocast: bool = False,
        stages: Stages | None = None,
        state: Mapping[str, Any] | None = None,
    ) -> None:
        place = _place(text, state)
        self._source = LiveActivations(
            lm, text, hookpoints, place=place, autocast=autocast, stages=stages
        )
        self.pool = ShufflePool(self._source, size=size, batch_size=batch, seed=seed)
        if state:
            rows = {name: x.to(lm.device) for name, x in state["rows"].items()}
            waiting = {name: x.to(lm.device) for name, x in state["waiting"].items()}
            self.pool.load_state_dict({**state, "rows": rows, "waiting": waiting})

    def sample(self, tokens: int) -> Activations:
        """Return what fills the pool before the first batch."""
        self.pool.fill()
        return {name: x[: min(tokens, self.pool.filled)] for name, x in self.pool.rows.items()}

    def __next__(self) -> Batch:
        return Batch(next(self.pool))

    def state_dict(self) -> dict[str, Any]:
        """Return the pool and the place in the text."""
        return {**self.pool.state_dict(), "place": self._source.place.to_dict()}


class StoreFeed:
    """The same batches as `PoolFeed`'s, from disk: its pool holds row numbers only.

    Args:
        store: where activations lie.
        grow: makes the store hold so many tokens, where a model is there to do so.
        hookpoints: where activations are wanted.
        device: where they go.
        size: tokens in the pool.
        batch: tokens in a batch.
        seed: of the order.
        stages: counts the time of reading and of harvesting.
        state: of a feed to go on from.
    """

    def __init__(
        self,
        store: Store,
        grow: Callable[[int], None] | None,
        hookpoints: Sequence[str],
        *,
        device: torch.device,
        size: int,
        batch: int,
        seed: int,
        stages: Stages | None = None,
        state: Mapping[str, Any] | None = None,
    ) -> None:
        self.stages = stages or Stages()
        self.store, self.grow, self.hookpoints = store, grow, list(hookpoints)
        self.device, self.batch = device, batch
        numbers = self._numbers(state["taken"] if state else 0)
        self.pool = ShufflePool(numbers, size=size, batch_size=batch, seed=seed)
        if state:
            self.pool.load_state_dict(dict(state))

    def sample(self, tokens: int) -> Activations:
        """Return what fills the pool before the first batch."""
        self.pool.fill()
        return self._read(self.pool.rows["row"][: min(tokens, self.pool.filled)])

    def __next__(self) -> Batch:
        return Batch(self._read(next(self.pool)["row"]))

    def state_dict(self) -> dict[str, Any]:
        """Return the pool and the place in the store."""
        return self.pool.state_dict()

    def _read(self, rows: Tensor) -> Activations:
        with self.stages("disk"):
            values = self.store.read(rows, self.hookpoints)
            return {name: x.to(self.device) for name, x in values.items()}

    def _numbers(self, taken: int) -> Iterator[Activations]:
        for first in itertools.count(taken * self.batch, self.batch):
            last = first + self.batch
            if last > len(self.store):
                if self.grow is None:
                    return
                with self.stages("harvest"):
                    self.grow(last)
            self.store.will_need(first)
            yield {"row": torch.arange(first, last)}


class TextFeed:
    """Activations in the order of the text, with the text: for losses that ask the model."""

    def __init__(
        self,
        lm: LM,
        text: TokenStream,
        hookpoints: Sequence[str],
        *,
        state: Mapping[str, Any] | None = None,
    ) -> None:
        self.lm, self.hookpoints, self.place = lm, list(hookpoints), _place(text, state)
        self._text = text
        self._batches = text.read(self.place)

    def sample(self, tokens: int) -> Activations:
        """Return the activations of the first batches of text."""
        first = [
            counted_activations(self.lm, batch, self.hookpoints) for batch in islice(self._text, 8)
        ]
        return {name: torch.cat([x[name] for x in first])[:tokens] for name in self.hookpoints}

    def __next__(self) -> Batch:
        batch = next(self._batches)
        self.place = batch.place
        return Batch(counted_activations(self.lm, batch, self.hookpoints), batch)

    def state_dict(self) -> dict[str, Any]:
        """Return the place in the text."""
        return {"place": self.place.to_dict()}


def _place(text: TokenStream, state: Mapping[str, Any] | None) -> Place:
    """Return where a feed goes on; states of before there were places count batches."""
    if not state:
        return Place()
    return Place.from_dict(state["place"]) if "place" in state else text.place_after(state["taken"])


class ModelJudge:
    """The loss of a model that computes with a reconstruction in place of its activations.

    `kl`: divergence of its next-token predictions from its own, KL(own || with it), as Braun et
    al. 2024 (arXiv 2405.12241); `ce`: its loss on the next token. A mean over counted positions
    whose next token is of the same document, nats. Model weights get no gradient.
    """

    def __init__(self, lm: LM, hookpoint: str, kind: str, text: TokenBatch) -> None:
        self.lm, self.hookpoint, self.kind, self.text = lm, hookpoint, kind, text
        same = text.document.roll(-1, dims=1) == text.document
        same[:, -1] = False
        self._judged = (text.counted & same).to(lm.device)
        self._own = self._logits() if kind == "kl" else None

    def __call__(self, output: Float[Tensor, "counted d"]) -> Float[Tensor, ""]:
        """Return the loss with `output`, in the model's own scale, at the counted positions."""
        counted = self.text.counted.to(self.lm.device)

        def put(x: Tensor, tokens: Tensor | None) -> Tensor:
            return x.clone().masked_scatter(counted[..., None], output.to(x.dtype))

        with self.lm.edit({self.hookpoint: put}):
            logits = self._logits(gradients=True)
        if self._own is not None:
            own = self._own.log_softmax(-1)
            return F.kl_div(logits.log_softmax(-1), own, reduction="batchmean", log_target=True)
        targets = self.text.tokens.roll(-1, dims=1).to(self.lm.device)[self._judged]
        return F.cross_entropy(logits, targets)

    def _logits(self, gradients: bool = False) -> Float[Tensor, "judged vocab"]:
        if not bool(self._judged.any()):
            raise UserError(
                "no token of this batch is followed by another of its document",
                "give longer documents, or train with objective `mse`",
            )
        logits = self.lm.logits(
            self.text.tokens, attention_mask=self.text.attention_mask, gradients=gradients
        )
        return logits[self._judged].float()
