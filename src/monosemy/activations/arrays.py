"""Activations that somebody brings: tensors, arrays, memory-maps, iterators, stores."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor

from monosemy.activations.precision import check_precision, pack
from monosemy.activations.store import Store, StoreWriter, rows_per_shard
from monosemy.errors import UserError


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
            self.shape = (len(self._store), self._store.widths.get(self.name, 0))
            if self.name not in points:
                raise UserError(
                    f"`{self._store.folder}` holds no activations of `{name}`",
                    f"it holds: {', '.join(points)}",
                )
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
        if not bool(x.sum().isfinite()):
            bad = (~torch.isfinite(x).all(-1)).nonzero()[:, 0].cpu()
            if len(bad):
                raise UserError(
                    f"{self.name} is NaN or infinite in {len(bad)} of {len(x)} rows read, such as "
                    f"row {int(rows[bad[0]])}",
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
            rows each; or an iterable of either, chunk after chunk.
        precision: how they are kept: `bf16`, `fp32` or `int8`.

    Raises:
        UserError: the folder is a store already, chunks differ in names or widths, activations are
            NaN or infinite, there are none, or the disk refuses.
    """
    kept, folder = check_precision(precision), Path(folder)
    if (folder / "manifest.json").exists():
        raise UserError(f"`{folder}` is a store already", "choose another folder")
    chunks = iter(_chunks(source))
    first = next(chunks, None)
    if first is None:
        raise UserError("there are no activations to store", "the iterator gave nothing")
    widths = {name: int(x.shape[1]) for name, x in first.items()}
    size = rows_per_shard(widths, kept)
    waiting, count = [first], len(next(iter(first.values())))
    with StoreWriter(folder, widths, kept) as writer:
        for chunk in chunks:
            found = {name: int(x.shape[1]) for name, x in chunk.items()}
            if found != widths:
                raise UserError(f"a chunk is of {found}, those before of {widths}")
            waiting.append(chunk)
            count += len(next(iter(chunk.values())))
            while count >= size:
                waiting, count = _write(writer, waiting, size), count - size
        while count:
            n = min(count, size)
            waiting, count = _write(writer, waiting, n), count - n
    return Store(folder)


def _write(
    writer: StoreWriter, waiting: list[dict[str, Tensor]], n: int
) -> list[dict[str, Tensor]]:
    joined = {name: torch.cat([chunk[name] for chunk in waiting]) for name in waiting[0]}
    packed: dict[str, Tensor] = {}
    for name, x in joined.items():
        packed |= pack(name, Rows(x[:n], name).read(torch.arange(n)), writer.store.precision)
    writer.add(packed)
    rest = {name: x[n:] for name, x in joined.items()}
    return [rest] if len(next(iter(rest.values()))) else []


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
        Rows(x, name)
    if len({len(x) for x in named.values()}) > 1:
        raise UserError(
            "arrays differ in rows: " + ", ".join(f"{n} has {len(x)}" for n, x in named.items()),
            "row i of each must belong to the same token",
        )
    return named


def _tensor(x: Any) -> Tensor:
    return x.cpu() if isinstance(x, Tensor) else torch.from_numpy(np.ascontiguousarray(x))
