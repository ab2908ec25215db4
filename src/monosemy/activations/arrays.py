"""Activations that somebody brings: tensors, arrays, memory-maps, iterators, stores."""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor

from monosemy.activations.live import rows_not_finite
from monosemy.activations.precision import check_precision, pack
from monosemy.activations.store import Store, StoreWriter, rows_per_shard
from monosemy.artefact import MANIFEST
from monosemy.errors import UserError

TOKEN = "token"
"""Among arrays by name: the tokens' ids."""


class Rows:
    """A matrix of activations that is read by row number, wherever it lies.

    Args:
        source: a tensor, array or memory-map [tokens, d], or a store or its folder.
        name: of the hook point, in a store that holds several; and in messages.

    Raises:
        UserError: it is none of these, is not [tokens, d], or holds no row.
    """

    def __init__(self, source: Any, name: str = "x") -> None:
        self.name = name
        self._store = Store(source) if isinstance(source, str | Path) else None
        self._store = source if isinstance(source, Store) else self._store
        if self._store is not None:
            points = self._store.hookpoints
            self.name = name if name in points or len(points) > 1 else points[0]
            self._store.check_held(self.name)
            self.shape = (len(self._store), self._store.widths[self.name])
            return
        if not isinstance(source, Tensor | np.ndarray):
            raise UserError(
                f"{name} is a {type(source).__name__}",
                "allowed: a tensor, an array or memory-map, a store or its folder; an iterator "
                "goes into a store first, with monosemy.store_arrays(folder, x)",
            )
        if source.ndim != 2 or 0 in source.shape:
            raise UserError(
                f"{name} has shape {tuple(source.shape)}", "it must be [tokens, d], none of them 0"
            )
        self._array = source
        self.shape = (int(source.shape[0]), int(source.shape[1]))

    def __len__(self) -> int:
        return self.shape[0]

    def read(self, rows: Int[Tensor, " n"]) -> Float[Tensor, "n d"]:
        """Return some rows in fp32.

        Raises:
            UserError: some are NaN or infinite; names the first.
        """
        if self._store is not None:
            x = self._store.read(rows, [self.name])[self.name].float()
        elif isinstance(self._array, Tensor):
            x = self._array[rows.to(self._array.device)].float()
        else:
            x = torch.from_numpy(np.asarray(self._array[rows.numpy()], dtype=np.float32))
        bad = rows_not_finite(x)
        if bad is not None:
            raise UserError(
                f"{self.name} is NaN or infinite in {int(bad.sum())} of {len(x)} rows read, such "
                f"as row {int(rows[bad][0])}",
                "leave such rows out",
            )
        return x


def store_arrays(
    folder: str | Path,
    source: Any,
    *,
    precision: str = "bf16",
) -> Store:
    """Write activations that somebody brings into a store, so that they need not fit memory.

    Args:
        folder: of the new store.
        source: a tensor, array or memory-map [tokens, d]; a mapping of such by name, with as many
            rows each, and with the tokens' ids [tokens] as `token` where they are known; or an
            iterable of either, chunk after chunk.
        precision: how they are kept: `bf16`, `fp32` or `int8`.

    Raises:
        UserError: the folder is a store already, chunks differ in names or widths, activations are
            NaN or infinite, there are none, or the disk refuses.
    """
    kept, folder = check_precision(precision), Path(folder)
    if (folder / MANIFEST).exists():
        raise UserError(f"`{folder}` is a store already", "choose another folder")
    chunks = iter(_chunks(source))
    first = next(chunks, None)
    if first is None:
        raise UserError("there are no activations to store", "the iterator gave nothing")
    widths = _widths(first)
    with StoreWriter(folder, widths, kept) as writer:
        for shard in _regrouped(itertools.chain([first], chunks), rows_per_shard(widths, kept)):
            packed: dict[str, Tensor] = {}
            for name in widths:
                x = shard[name]
                packed |= pack(name, Rows(x, name).read(torch.arange(len(x))), kept)
            writer.add(packed, tokens=shard.get(TOKEN))
    return Store(folder)


def _regrouped(chunks: Iterable[dict[str, Tensor]], size: int) -> Iterator[dict[str, Tensor]]:
    """Join chunks and cut them to `size` rows; the last holds what is left."""
    waiting: list[dict[str, Tensor]] = []
    count = 0
    for chunk in chunks:
        if waiting and (chunk.keys(), _widths(chunk)) != (waiting[0].keys(), _widths(waiting[0])):
            raise UserError(
                f"a chunk is of {_widths(chunk)}, those before of {_widths(waiting[0])}"
            )
        waiting.append(chunk)
        count += _rows(chunk)
        if count < size:
            continue
        joined, whole = _joined(waiting), count - count % size
        for first in range(0, whole, size):
            yield {name: x[first : first + size] for name, x in joined.items()}
        # Kept even if empty: what comes next must be of the same widths.
        waiting, count = [{name: x[whole:] for name, x in joined.items()}], count - whole
    if count:
        yield _joined(waiting)


def _joined(chunks: list[dict[str, Tensor]]) -> dict[str, Tensor]:
    return {name: torch.cat([chunk[name] for chunk in chunks]) for name in chunks[0]}


def _widths(chunk: dict[str, Tensor]) -> dict[str, int]:
    return {name: int(x.shape[1]) for name, x in chunk.items() if name != TOKEN}


def _rows(chunk: dict[str, Tensor]) -> int:
    return len(next(iter(chunk.values())))


def _chunks(source: Any) -> Iterator[dict[str, Tensor]]:
    if isinstance(source, Tensor | np.ndarray | Mapping):
        named = _named(source)
        n = len(next(iter(named.values())))
        for first in range(0, n, 65_536):
            yield {name: _tensor(x[first : first + 65_536]) for name, x in named.items()}
    elif isinstance(source, Iterable) and not isinstance(source, str):
        for chunk in source:
            yield {name: _tensor(x) for name, x in _named(chunk).items()}
    else:
        raise UserError(
            f"cannot store a {type(source).__name__}",
            "allowed: a tensor, array or memory-map, a mapping of them, an iterable of either",
        )


def _named(chunk: Any) -> Mapping[str, Any]:
    named = chunk if isinstance(chunk, Mapping) else {"x": chunk}
    for name, x in named.items():
        if name != TOKEN:
            Rows(x, name)
        elif x.ndim != 1 or "int" not in str(x.dtype):
            raise UserError(f"`{TOKEN}` is {x.dtype} {tuple(x.shape)}", "it must be ids [tokens]")
    if len({len(x) for x in named.values()}) > 1:
        raise UserError(
            "arrays differ in rows: " + ", ".join(f"{n} has {len(x)}" for n, x in named.items()),
            "row i of each must belong to the same token",
        )
    return named


def _tensor(x: Any) -> Tensor:
    return x.cpu() if isinstance(x, Tensor) else torch.from_numpy(np.ascontiguousarray(x))
