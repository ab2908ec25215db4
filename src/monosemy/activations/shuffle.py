"""A pool that mixes activations of many documents into each batch."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Any

import torch
from jaxtyping import Int
from torch import Tensor

from monosemy.activations.live import Activations
from monosemy.errors import UserError


class ShufflePool:
    """Serve batches drawn at random from a pool that is refilled as it is drawn from.

    The pool is filled first; every batch then takes `batch_size` random rows, without
    replacement, and their places go to the rows that come next from `source`. When the source
    ends the pool is emptied in random order; every row is served once, but for a last remainder
    smaller than a batch. An iterator: it can be left and gone on with, in another process too.

    Args:
        source: activations of any number of rows at a time.
        size: rows in the pool; several documents' worth at least, better a hundred batches.
        batch_size: rows in each batch.
        seed: the same seed and source give the same batches.
    """

    def __init__(
        self, source: Iterable[Activations], *, size: int, batch_size: int, seed: int = 0
    ) -> None:
        self.size, self.batch_size = max(size // batch_size, 1) * batch_size, batch_size
        self.taken = 0
        """Items taken from the source so far."""
        self.rows: Activations = {}
        self.filled = 0
        self._source = iter(source)
        self._waiting: Activations = {}
        self._generator = torch.Generator().manual_seed(seed)
        self._last: Int[Tensor, " n"] | None = None  # the pool's rows to serve when all has come

    def __iter__(self) -> Iterator[Activations]:
        return self

    def __next__(self) -> Activations:
        """Return the next batch.

        Raises:
            UserError: the source has not one batch to give.
        """
        self.fill()
        incoming = None if self._last is not None else self._next_rows()
        if incoming is None:
            return self._serve_last()
        # A random set of places, in random order: the batch is as shuffled as the pool.
        places = torch.randperm(self.size, generator=self._generator)[: self.batch_size]
        batch = {name: x[places] for name, x in self.rows.items()}
        for name, x in incoming.items():
            self.rows[name][places] = x
        return batch

    def fill(self) -> None:
        """Fill the pool, so that what it holds can be looked at before the first batch."""
        while self.filled < self.size and self._last is None:
            incoming = self._next_rows()
            if incoming is None:
                break
            if not self.rows:
                self.rows = {
                    name: x.new_empty(self.size, *x.shape[1:]) for name, x in incoming.items()
                }
            for name, x in incoming.items():
                self.rows[name][self.filled : self.filled + self.batch_size] = x
            self.filled += self.batch_size
        if not self.filled:
            raise UserError(
                f"the text gives fewer than {self.batch_size} tokens, one batch",
                "give more text or a smaller batch",
            )

    def state_dict(self) -> dict[str, Any]:
        """Return what is needed to go on, but for the source."""
        return {
            "taken": self.taken,
            "filled": self.filled,
            "rows": self.rows,
            "waiting": self._waiting,
            "generator": self._generator.get_state(),
            "last": self._last,
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on from a saved state; the source must begin after the `taken` items."""
        self.taken, self.filled = state["taken"], state["filled"]
        self.rows, self._waiting = state["rows"], state["waiting"]
        self._generator.set_state(state["generator"])
        self._last = state["last"]

    def _serve_last(self) -> Activations:
        if self._last is None:
            self._last = torch.randperm(self.filled, generator=self._generator)
        if not len(self._last):
            raise StopIteration
        places, self._last = self._last[: self.batch_size], self._last[self.batch_size :]
        return {name: x[places] for name, x in self.rows.items()}

    def _next_rows(self) -> Activations | None:
        """Return the next `batch_size` rows; None at the end, where a remainder is lost."""
        pieces = [self._waiting] if self._waiting else []
        count = len(_first(self._waiting)) if self._waiting else 0
        while count < self.batch_size:
            item = next(self._source, None)
            if item is None:
                self._waiting = {}
                return None
            self.taken += 1
            pieces.append(item)
            count += len(_first(item))
        joined = pieces[0]
        if len(pieces) > 1:
            joined = {name: torch.cat([p[name] for p in pieces]) for name in pieces[0]}
        self._waiting = {name: x[self.batch_size :] for name, x in joined.items()}
        if count == self.batch_size:
            self._waiting = {}
        return {name: x[: self.batch_size] for name, x in joined.items()}


def _first(values: Activations) -> Tensor:
    return next(iter(values.values()))
