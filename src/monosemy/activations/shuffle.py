"""A pool that mixes activations of many documents into each batch."""

from __future__ import annotations

from collections.abc import Iterable, Iterator

import torch

from monosemy.activations.live import Activations
from monosemy.errors import UserError


class ShufflePool:
    """Serve batches drawn at random from a pool that is refilled as it is drawn from.

    The pool is filled first; every batch then takes `batch_size` random rows, without
    replacement, and their places go to the rows that come next from `source`. When the source
    ends the pool is emptied in random order; every row is served once, but for a last remainder
    smaller than a batch.

    Args:
        source: activations of any number of rows at a time.
        size: rows in the pool; several documents' worth at least, better a hundred batches.
        batch_size: rows in each batch.
        seed: the same seed and source give the same batches.
    """

    def __init__(
        self, source: Iterable[Activations], *, size: int, batch_size: int, seed: int = 0
    ) -> None:
        self.source, self.size, self.batch_size, self.seed = source, size, batch_size, seed

    def __iter__(self) -> Iterator[Activations]:
        generator = torch.Generator().manual_seed(self.seed)
        rows = _exact_rows(self.source, self.batch_size)
        pool: Activations = {}
        filled = 0
        for incoming in rows:
            if not pool:
                size = max(self.size // self.batch_size, 1) * self.batch_size
                pool = {name: x.new_empty(size, *x.shape[1:]) for name, x in incoming.items()}
            if filled < size:
                for name, x in incoming.items():
                    pool[name][filled : filled + self.batch_size] = x
                filled += self.batch_size
                continue
            # A random set of places, in random order: the batch is as shuffled as the pool.
            places = torch.randperm(size, generator=generator)[: self.batch_size]
            yield {name: x[places] for name, x in pool.items()}
            for name, x in incoming.items():
                pool[name][places] = x
        if not filled:
            raise UserError(
                f"the text gives fewer than {self.batch_size} tokens, one batch",
                "give more text or a smaller batch",
            )
        order = torch.randperm(filled, generator=generator)
        for places in order.split(self.batch_size):
            yield {name: x[:filled][places] for name, x in pool.items()}


def _exact_rows(source: Iterable[Activations], count: int) -> Iterator[Activations]:
    """Cut or join what `source` yields into pieces of exactly `count` rows; drop the remainder."""
    waiting: list[Activations] = []
    n_waiting = 0
    for values in source:
        waiting.append(values)
        n_waiting += len(next(iter(values.values())))
        if n_waiting < count:
            continue
        joined = {name: torch.cat([w[name] for w in waiting]) for name in values}
        whole = n_waiting // count * count
        for start in range(0, whole, count):
            yield {name: x[start : start + count] for name, x in joined.items()}
        waiting = [{name: x[whole:] for name, x in joined.items()}]
        n_waiting -= whole
