"""Activations that other tools, or people, wrote to disk: read piece by piece into a store.

Known are SAELens's cache (a Hugging Face data set), the chunks of Language-Model-SAEs
(llamascopium), and `.npy`, `.pt` and `.safetensors` files, in one folder or in a folder for each
hook point. A file's axes but the last are tokens, in order. A first look at all files, which reads
no activations, finds what is truncated, empty or of another width before anything is written.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from monosemy.activations import Store, store_arrays
from monosemy.activations.arrays import TOKEN
from monosemy.activations.live import rows_not_finite
from monosemy.artefact import new_folder
from monosemy.errors import UserError, reason
from monosemy.formats.files import read_pt
from monosemy.formats.names import our_hookpoint
from monosemy.progress import Task

Chunk = dict[str, Tensor]
"""Hook point -> activations [n, d]; under `token`, where known, their tokens [n]."""

_SUFFIXES = (".npy", ".pt", ".safetensors")
_NUMBERED = re.compile(r"(?:shard-(\d+)-)?chunk-(\d+)$")
_VALUES = 2**24
"""Activations read at once, so that memory holds little of a file."""


@dataclass(frozen=True, slots=True)
class _Part:
    """What one file holds, left on the disk."""

    path: Path
    activation: Any
    """Tensor, memory-mapped array, or slice of a safetensors file: [..., d]."""
    shape: tuple[int, ...]
    tokens: Tensor | None = None
    """[...]"""
    mask: Tensor | None = None
    """[...] which tokens count."""

    def rows(self, rows: slice) -> Tensor:
        """Return activations of a stretch of the first axis: [n, d] in fp32."""
        x = self.activation[rows]
        x = x if isinstance(x, Tensor) else torch.from_numpy(np.array(x, np.float32))
        return x.to(torch.float32).reshape(-1, self.shape[-1])


class RawActivations:
    """Activations in another tool's files; iterating reads them, chunk after chunk.

    Attributes:
        title: what they are.
        widths: hook point -> d.
        n_rows: tokens, those that are masked out included.
        notes: what is in the files but not kept.
    """

    def __init__(self, path: str | Path, hookpoint: str | None = None) -> None:
        """Look at all files.

        Args:
            path: a file or folder.
            hookpoint: where activations were taken, where neither folders nor columns say.

        Raises:
            UserError: there are no activations, they are of several kinds at once, or a file is
                truncated, empty, or of another width than the others.
        """
        path = Path(path)
        if not path.exists():
            raise UserError(f"nothing is at `{path}`", "give a file or folder of activations")
        self.path, self.notes = path, list[str]()
        self._data = _data_set(path)
        if self._data is not None:
            self.title = "cache of SAELens (a Hugging Face data set)"
            self._look_at_columns(hookpoint)
            return
        self._files = _files_by_point(path, hookpoint)
        self.title = f"{next(iter(self._files.values()))[0].suffix} files"
        self._look_at_files()

    def __iter__(self) -> Iterator[Chunk]:
        return self._rows_of_data() if self._data is not None else self._rows_of_files()

    # --- files ------------------------------------------------------------------------------

    def _look_at_files(self) -> None:
        counts = {name: len(files) for name, files in self._files.items()}
        if len(set(counts.values())) > 1:
            raise UserError(
                f"hook points differ in files: {counts}", "each must have those of the same tokens"
            )
        self.widths: dict[str, int] = {}
        self.n_rows = 0
        for name, files in self._files.items():
            for number, file in enumerate(files):
                part = _open(file)
                width = self.widths.setdefault(name, part.shape[-1])
                if part.shape[-1] != width:
                    raise UserError(
                        f"`{file}` is {part.shape[-1]} wide, `{files[0]}` {width}",
                        "all files of a hook point must be of one width",
                    )
                self._check_alike(part, number)
        if list(self.path.rglob("*.meta.json")):
            self.notes.append("which texts they come from (`.meta.json`)")

    def _check_alike(self, part: _Part, number: int) -> None:
        """Hold a part against the first hook point's, and count its rows once."""
        first = next(iter(self._files.values()))
        other = _open(first[number])
        if part.shape[:-1] != other.shape[:-1]:
            raise UserError(
                f"`{part.path}` has tokens {list(part.shape[:-1])}, `{other.path}` "
                f"{list(other.shape[:-1])}",
                "hook points must have the same tokens",
            )
        if (part.tokens is None) != (_open(first[0]).tokens is None):
            raise UserError(
                f"one of `{part.path}` and `{first[0]}` has tokens, the other not",
                "leave them out of all, or of none",
            )
        if part.tokens is not None and not torch.equal(part.tokens, _some(other.tokens)):
            raise UserError(
                f"`{part.path}` and `{other.path}` are of different tokens",
                "hook points must have the same tokens",
            )
        if part.path == other.path:
            self.n_rows += math.prod(part.shape[:-1])

    def _rows_of_files(self) -> Iterator[Chunk]:
        for files in zip(*self._files.values(), strict=True):
            parts = [_open(file) for file in files]
            first = parts[0]
            step = max(_VALUES // max(math.prod(part.shape[1:]) for part in parts), 1)
            for start in range(0, first.shape[0], step):
                rows = slice(start, min(start + step, first.shape[0]))
                chunk = {
                    name: _checked(part.rows(rows), part.path, start)
                    for name, part in zip(self._files, parts, strict=True)
                }
                if first.tokens is not None:
                    chunk[TOKEN] = first.tokens[rows].reshape(-1).long()
                if first.mask is not None:
                    keep = first.mask[rows].reshape(-1).bool()
                    chunk = {name: x[keep] for name, x in chunk.items()}
                if len(next(iter(chunk.values()))):
                    yield chunk

    # --- a data set -------------------------------------------------------------------------

    def _look_at_columns(self, hookpoint: str | None) -> None:
        data = self._data
        self._columns: dict[str, str] = {}
        self.widths, self.n_rows = {}, 0
        for column, feature in data.features.items():
            shape = getattr(feature, "shape", None)
            if shape is not None and len(shape) == 2:
                name = our_hookpoint(column)
                self._columns[name], self.widths[name] = column, int(shape[1])
                self.n_rows = len(data) * int(shape[0])
                self._context = int(shape[0])
            elif column != "token_ids":
                self.notes.append(f"the column `{column}`")
        if hookpoint is not None and len(self.widths) == 1:
            (name,) = self.widths
            self._columns, self.widths = (
                {hookpoint: self._columns[name]},
                {hookpoint: self.widths[name]},
            )
        if not self.widths or not self.n_rows:
            raise UserError(
                f"`{self.path}` holds no activations: {len(data)} rows of "
                f"{', '.join(data.column_names) or 'no columns'}",
                "a column of [context, d] arrays for each hook point was expected",
            )

    def _rows_of_data(self) -> Iterator[Chunk]:
        names = list(self._columns.values())
        has_tokens = "token_ids" in self._data.column_names
        data = self._data.select_columns([*names, *["token_ids"] * has_tokens])
        data = data.with_format("numpy")
        step = max(_VALUES // (self._context * max(self.widths.values())), 1)
        for first in range(0, len(data), step):
            rows = data[first : first + step]
            chunk = {
                name: _checked(_flat(rows[column], self.widths[name]), self.path, first)
                for name, column in self._columns.items()
            }
            if has_tokens:
                chunk[TOKEN] = torch.from_numpy(np.array(rows["token_ids"], np.int64)).reshape(-1)
            yield chunk


def store_raw(
    path: str | Path,
    folder: str | Path,
    *,
    hookpoint: str | None = None,
    precision: str = "bf16",
) -> tuple[Store, list[str]]:
    """Turn other tools' activations into a store; memory holds a piece of a file at a time.

    Args:
        path: a file or folder, as `RawActivations` takes it.
        folder: of the new store.
        hookpoint: where activations were taken, where the files do not say.
        precision: how they are kept: `bf16`, `fp32` or `int8`.

    Returns:
        The store, and what is in the files but not in it.

    Raises:
        UserError: as `RawActivations`; some activations are NaN or infinite, all tokens are masked
            out, the folder is not empty, or the disk refuses. Nothing is left of the store then.
    """
    raw = RawActivations(path, hookpoint)
    with new_folder(Path(folder)) as draft, Task("store", raw.n_rows, "rows") as task:

        def counted() -> Iterator[Chunk]:
            for chunk in raw:
                task.advance(len(next(iter(chunk.values()))))
                yield chunk

        store_arrays(draft, counted(), precision=precision)
    return Store(folder), raw.notes


def _files_by_point(path: Path, hookpoint: str | None) -> dict[str, list[Path]]:
    """Return the files of each hook point, in order."""
    if path.is_file():
        return {hookpoint or "x": _ordered([path])}
    here = _in(path)
    if here:
        return {hookpoint or "x": _ordered(here)}
    below = {folder: _in(folder) for folder in sorted(path.iterdir()) if folder.is_dir()}
    found = {our_hookpoint(f.name): _ordered(files) for f, files in below.items() if files}
    if not found:
        there = sorted(p.name for p in path.iterdir())[:12]
        raise UserError(
            f"`{path}` holds no activations",
            f"there: {', '.join(there) or 'nothing'}; known: a data set of SAELens, "
            f"{', '.join(_SUFFIXES)}",
        )
    return {hookpoint: next(iter(found.values()))} if hookpoint and len(found) == 1 else found


def _in(folder: Path) -> list[Path]:
    return [p for p in folder.iterdir() if p.suffix in _SUFFIXES and not p.name.startswith(".")]


def _ordered(files: list[Path]) -> list[Path]:
    """Return files by the numbers in their names, all of one kind, none missing between."""
    suffixes = sorted({file.suffix for file in files})
    if len(suffixes) > 1 or not set(suffixes) <= set(_SUFFIXES):
        raise UserError(
            f"`{files[0].parent}` holds {' and '.join(suffixes)} files",
            f"give files of one kind: {', '.join(_SUFFIXES)}",
        )
    files = sorted(files, key=lambda file: [int(n) for n in re.findall(r"\d+", file.stem)])
    if len({tuple(re.findall(r"\d+", f.stem)) for f in files}) < len(files):
        files = sorted(files, key=lambda file: file.name)
    by_shard: dict[str, list[int]] = {}
    for file in files:
        if found := _NUMBERED.fullmatch(file.stem):
            by_shard.setdefault(found[1] or "", []).append(int(found[2]))
    for numbers in by_shard.values():
        for number, there in enumerate(sorted(numbers)):
            if number != there:
                raise UserError(
                    f"`{files[0].parent}` has no chunk {number} of {len(numbers)}",
                    "copy the folder again; chunks are numbered from 0",
                )
    return files


def _open(path: Path) -> _Part:
    """Return what a file holds, without reading its activations.

    Raises:
        UserError: it cannot be read, or holds something else.
    """
    if path.suffix == ".npy":
        part = _npy(path)
    elif path.suffix == ".pt":
        part = _pt(path)
    else:
        part = _safetensors(path)
    if len(part.shape) < 2 or 0 in part.shape:
        raise UserError(
            f"`{path}` holds activations {list(part.shape)}", "[tokens, d], none of them 0, needed"
        )
    for what, beside in (("tokens", part.tokens), ("mask", part.mask)):
        if beside is not None and tuple(beside.shape) != part.shape[:-1]:
            raise UserError(
                f"`{path}` has {what} {list(beside.shape)} beside activations {list(part.shape)}",
                "one for each row was expected",
            )
    return part


def _npy(path: Path) -> _Part:
    try:
        x = np.load(path, mmap_mode="r", allow_pickle=False)
    except (OSError, ValueError, EOFError) as error:
        raise UserError(
            f"`{path}` cannot be read: {reason(error)}", "it is damaged, not whole, or no array"
        ) from error
    if x.dtype not in (np.float16, np.float32, np.float64):
        raise UserError(f"`{path}` is of {x.dtype}", "allowed: float16, float32, float64")
    return _Part(path, x, x.shape)


def _pt(path: Path) -> _Part:
    found = read_pt(path, mapped=True)
    if isinstance(found, Tensor):
        found = {"activation": found}
    if not isinstance(found, dict) or not isinstance(found.get("activation"), Tensor):
        what = f"`{', '.join(map(str, found))}`" if isinstance(found, dict) else type(found)
        raise UserError(f"`{path}` holds {what}", "a tensor, or one called `activation`, expected")
    x = found["activation"]
    if not x.is_floating_point():
        raise UserError(f"`{path}` is of {x.dtype}", "floating point was expected")
    return _Part(path, x, tuple(x.shape), found.get("tokens"), _mask(found))


def _safetensors(path: Path) -> _Part:
    try:
        with safe_open(path, "pt") as file:
            names = set(file.keys())
            if "activation" not in names:
                raise UserError(
                    f"`{path}` has no tensor `activation`",
                    f"it has: {', '.join(sorted(names)) or 'none'}",
                )
            x = file.get_slice("activation")
            beside = {
                name: file.get_tensor(name)
                for name in ("tokens", "mask", "attention_mask")
                if name in names
            }
            return _Part(path, x, tuple(x.get_shape()), beside.get("tokens"), _mask(beside))
    except (OSError, SafetensorError) as error:
        raise UserError(
            f"`{path}` cannot be read: {reason(error)}", "it is damaged or not whole; copy it again"
        ) from error


def _mask(beside: dict[str, Any]) -> Tensor | None:
    """Return which tokens count: `mask` leaves out special ones, `attention_mask` only padding."""
    mask = beside.get("mask")
    return beside.get("attention_mask") if mask is None else mask


def _flat(values: np.ndarray, width: int) -> Tensor:
    return torch.from_numpy(np.array(values, np.float32)).reshape(-1, width)


def _checked(x: Tensor, path: Path, first: int) -> Tensor:
    bad = rows_not_finite(x)
    if bad is not None:
        raise UserError(
            f"`{path}` holds NaN or infinite activations, {int(bad.sum())} rows from {first} on",
            "leave such rows out, or make them again",
        )
    return x


def _some(tokens: Tensor | None) -> Tensor:
    return torch.empty(0) if tokens is None else tokens


def _data_set(path: Path) -> Any:
    """Return a Hugging Face data set that was saved in a folder; None where there is none."""
    if not (path / "state.json").is_file() or not (path / "dataset_info.json").is_file():
        return None
    try:
        import datasets
    except ModuleNotFoundError as error:
        raise UserError(
            f"`{path}` is a data set", "install what reads it: pip install 'monosemy[data]'"
        ) from error
    try:
        return datasets.load_from_disk(str(path))
    except Exception as error:  # pyarrow's, and whatever a changed file makes it raise
        raise UserError(
            f"`{path}` cannot be read: {reason(error)}", "it is damaged or not whole; copy it again"
        ) from error
