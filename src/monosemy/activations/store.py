"""Activations on disk: a folder of shards, read by row number without loading them.

A store is an artefact whose manifest is written after every shard, so that what it names is whole;
`docs/format.md` specifies its fields. A shard is a safetensors file with the activations at each
hook point, the tokens they belong to, and, in its metadata, which documents those come from.
"""

from __future__ import annotations

import contextlib
import json
import os
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from filelock import FileLock, Timeout
from jaxtyping import Int
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from monosemy.activations.live import Activations
from monosemy.activations.precision import (
    Precision,
    bytes_per_row,
    check_precision,
    kept_dtype,
    unpack,
)
from monosemy.activations.recipe import Recipe
from monosemy.artefact import (
    FORMAT_VERSION,
    MANIFEST,
    disk_error,
    load_manifest,
    sha256,
    write_text,
)
from monosemy.corpus import Place
from monosemy.errors import UserError

KIND = "activation store"
SHARD_BYTES = 64 * 2**20
"""Size of a shard, about: large enough to be read at the disk's speed, small enough to lose."""
_AHEAD = 3
"""Shards that are read before their rows are asked for, the one in use included."""
_TOKENS, _DOCUMENTS = "token", "documents"


@dataclass(frozen=True, slots=True)
class Shard:
    """One file of a store."""

    name: str
    rows: int
    batches: tuple[int, int]
    """The batches of text it was made from, first and after the last."""
    bytes: int
    sha256: str
    place: Place | None = None
    """Where the text goes on after it; None where that was not kept, and of arrays."""


@dataclass(frozen=True, slots=True)
class Run:
    """Rows in succession that come from one document."""

    row: int
    """The first, counted in the shard."""
    document: str
    """The document's id; empty for tokens of none."""
    start: int
    """The character of the document at which the first row's token begins."""


class Store:
    """Activations that lie on disk, in the order in which they were made.

    Files are memory-mapped: what is read is what is asked for, and nothing stays in memory that
    the operating system cannot take back.
    """

    def __init__(self, folder: str | Path, *, damaged: bool = False) -> None:
        """Open a store.

        Args:
            folder: where it is.
            damaged: open it although shards are missing or cut short, to mend it.

        Raises:
            UserError: there is none, its manifest is of another version, or a shard is missing or
                of another size than the manifest says.
        """
        self.folder = Path(folder)
        manifest = _read_manifest(self.folder)
        self.recipe, self.widths, self.precision, self.shards, self.text = manifest
        """`text`: the text's `TokenStream.checksum`; None where not kept, and of arrays."""
        for shard in () if damaged else self.shards:
            _check_there(self.folder, shard)
        self._open: dict[int, dict[str, Tensor]] = {}
        self._announced = 0

    def __repr__(self) -> str:
        points = ", ".join(f"{name} ({d})" for name, d in self.widths.items())
        return f"Store({str(self.folder)!r}, {len(self):,} tokens of {points}, {self.precision})"

    def __len__(self) -> int:
        return int(self._ends[-1]) if self.shards else 0

    @property
    def hookpoints(self) -> list[str]:
        """The hook points whose activations it holds."""
        return list(self.widths)

    @property
    def bytes(self) -> int:
        """The size of its shards on disk."""
        return sum(shard.bytes for shard in self.shards)

    def read(
        self, rows: Int[Tensor, " n"] | slice, hookpoints: Sequence[str] | None = None
    ) -> Activations:
        """Return activations of some rows, in the order asked for: bf16 as it is, else fp32.

        Args:
            rows: row numbers, or a slice of them.
            hookpoints: where; None: everywhere.

        Raises:
            UserError: a hook point that it does not hold.
        """
        if isinstance(rows, slice):
            rows = torch.arange(*rows.indices(len(self)))
        names = self.hookpoints if hookpoints is None else list(hookpoints)
        for name in names:
            self.check_held(name)
        dtype = kept_dtype(self.precision)
        out = {name: torch.empty(len(rows), self.widths[name], dtype=dtype) for name in names}
        for number, places, inside in self._by_shard(rows):
            tensors = self._tensors(number)
            for name in names:
                out[name].index_copy_(0, places, unpack(name, tensors, inside))
        return out

    def tokens(self, rows: Int[Tensor, " n"] | slice) -> Int[Tensor, " n"] | None:
        """Return the tokens of some rows; None where the store was made from bare arrays."""
        if isinstance(rows, slice):
            rows = torch.arange(*rows.indices(len(self)))
        out = torch.empty(len(rows), dtype=torch.int64)
        for number, places, inside in self._by_shard(rows):
            tensors = self._tensors(number)
            if _TOKENS not in tensors:
                return None
            out[places] = tensors[_TOKENS][inside].long()
        return out

    def runs(self, shard: int) -> list[Run]:
        """Return which documents a shard's rows come from."""
        with safe_open(self.folder / self.shards[shard].name, framework="pt") as file:
            metadata = file.metadata() or {}
        return [Run(*run) for run in json.loads(metadata.get(_DOCUMENTS, "[]"))]

    def will_need(self, row: int) -> None:
        """Have a row's shard and the next ones read ahead, into the operating system's memory."""
        first = int(torch.searchsorted(self._ends, row, right=True))
        for number in range(max(first, self._announced), min(first + _AHEAD, len(self.shards))):
            path = self.folder / self.shards[number].name
            threading.Thread(target=_read_through, args=(path,), daemon=True).start()
            self._announced = number + 1

    def add(self, shard: Shard) -> None:
        """Take note of a shard that was written."""
        self.shards.append(shard)
        self.__dict__.pop("_ends", None)

    @cached_property
    def _ends(self) -> Int[Tensor, " shards"]:
        return torch.tensor([shard.rows for shard in self.shards], dtype=torch.int64).cumsum(0)

    def check_held(self, name: str) -> None:
        """Refuse a hook point that the store does not hold.

        Raises:
            UserError: names those that it holds.
        """
        if name not in self.widths:
            raise UserError(
                f"`{self.folder}` holds no activations of `{name}`",
                f"it holds: {', '.join(self.widths)}",
            )

    def _by_shard(self, rows: Tensor) -> Iterator[tuple[int, Tensor, Tensor]]:
        """Yield shard, places in the output and rows inside the shard, for all rows asked for."""
        of = torch.searchsorted(self._ends, rows, right=True)
        for number in of.unique().tolist():
            places = (of == number).nonzero()[:, 0]
            first = int(self._ends[number]) - self.shards[number].rows
            yield number, places, rows[places] - first

    def _tensors(self, number: int) -> dict[str, Tensor]:
        if number not in self._open:
            path = self.folder / self.shards[number].name
            try:
                with safe_open(path, framework="pt") as file:
                    names = file.offset_keys()
                    self._open[number] = {name: file.get_tensor(name) for name in names}
            except (OSError, SafetensorError) as error:
                raise _damaged(self.folder, path.name, str(error)) from error
        return self._open[number]


class StoreWriter:
    """Adds shards to a store, new or begun; holds it so that nobody else does.

    Use as a context manager.
    """

    def __init__(
        self,
        folder: str | Path,
        widths: Mapping[str, int],
        precision: str | None = None,
        recipe: Recipe | None = None,
        *,
        damaged: bool = False,
    ) -> None:
        """Begin a store, or go on with one; `damaged`: to mend it.

        A new store is in bf16 unless another precision is asked for; one begun stays as it is.

        Raises:
            UserError: somebody else writes there; the folder holds something else, or activations
                of another recipe or precision.
        """
        self.folder = Path(folder)
        asked = None if precision is None else check_precision(precision)
        if self.folder.exists() and not self.folder.is_dir():
            raise UserError(f"`{self.folder}` is a file", "give a folder")
        if self.folder.is_dir() and not (self.folder / MANIFEST).is_file():
            strangers = [p.name for p in self.folder.iterdir() if not p.name.startswith(".")]
            if any(not name.startswith("shard-") for name in strangers):
                raise UserError(
                    f"`{self.folder}` holds something else: {', '.join(sorted(strangers)[:3])}",
                    "choose another folder",
                )
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            self._lock = FileLock(self.folder / ".lock")
            self._lock.acquire(timeout=0)
        except Timeout as error:
            raise UserError(
                f"`{self.folder}` is being written by another process",
                "wait until it is done, or choose another folder",
            ) from error
        except OSError as error:
            raise disk_error(self.folder, error) from error
        try:
            self._begin(dict(widths), asked, recipe, damaged)
        except BaseException:
            self._lock.release()
            raise
        self._clock = time.monotonic()

    def _begin(
        self,
        widths: dict[str, int],
        precision: Precision | None,
        recipe: Recipe | None,
        damaged: bool,
    ) -> None:
        if not (self.folder / MANIFEST).is_file():
            self.seconds = 0.0
            self._write_manifest(widths, precision or "bf16", recipe, [], None)
        self.store = Store(self.folder, damaged=damaged)
        self.seconds = float(load_manifest(self.folder, KIND).get("seconds", 0.0))
        there = self.store.recipe
        if (there is None) != (recipe is None):
            made = "arrays" if there is None else f"the model `{there.model}`"
            raise UserError(
                f"`{self.folder}` holds activations made from {made}", "choose another folder"
            )
        if there is not None and recipe is not None:
            there.require(recipe, str(self.folder))
        require_precision(self.store, precision)
        if not widths.items() <= self.store.widths.items():
            raise UserError(
                f"`{self.folder}` holds {self.store.widths}, asked for is {widths}",
                "ask for what it holds, or choose another folder",
            )

    def __enter__(self) -> StoreWriter:
        return self

    def __exit__(self, *error: object) -> None:
        self.close()

    def close(self) -> None:
        """Let others write there; nothing remains of a store without a shard."""
        self._lock.release()
        if not self.store.shards:
            with contextlib.suppress(OSError):
                (self.folder / MANIFEST).unlink()
                (self.folder / ".lock").unlink(missing_ok=True)
                self.folder.rmdir()

    @property
    def n_batches(self) -> int:
        """How many batches of text have been taken up."""
        return self.store.shards[-1].batches[1] if self.store.shards else 0

    def add(
        self,
        packed: Mapping[str, Tensor],
        batches: tuple[int, int] = (0, 0),
        tokens: Int[Tensor, " rows"] | None = None,
        runs: Sequence[Run] = (),
        place: Place | None = None,
    ) -> Shard:
        """Write one shard, whole or not at all.

        Args:
            packed: what `pack` made of activations at every hook point.
            batches: the batches of text they come from, first and after the last.
            tokens: their tokens.
            runs: which documents they come from.
            place: where the text goes on after them.

        Raises:
            UserError: the disk refuses; what was written before stays.
        """
        shard = write_shard(
            self.folder,
            f"shard-{len(self.store.shards):05}.safetensors",
            packed,
            batches,
            tokens,
            runs,
            place,
        )
        self.store.add(shard)
        self._keep()
        return shard

    def mend(self, number: int, shard: Shard) -> None:
        """Take note of a shard that was made again."""
        self.store.shards[number] = shard
        self._keep()

    def _keep(self) -> None:
        now = time.monotonic()
        self.seconds, self._clock = self.seconds + now - self._clock, now
        s = self.store
        self._write_manifest(s.widths, s.precision, s.recipe, s.shards, s.text)

    def _write_manifest(
        self,
        widths: dict[str, int],
        precision: Precision,
        recipe: Recipe | None,
        shards: Sequence[Shard],
        text: int | None,
    ) -> None:
        fields = {
            "kind": KIND,
            "format_version": FORMAT_VERSION,
            "precision": precision,
            "widths": widths,
            "rows": sum(shard.rows for shard in shards),
            "recipe": recipe.to_dict() if recipe else None,
            "text": text,
            "seconds": round(self.seconds, 1),
            "written": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
            "shards": [asdict(shard) for shard in shards],
        }
        write_text(self.folder / MANIFEST, json.dumps(fields, indent=2) + "\n")


def require_precision(store: Store, asked: str | None) -> None:
    """Refuse another precision than a store has.

    Raises:
        UserError: names both.
    """
    if asked is not None and asked != store.precision:
        raise UserError(
            f"`{store.folder}` holds activations in {store.precision}, asked for is {asked}",
            f"leave out the precision to read {store.precision}, or choose another folder",
        )


def write_shard(
    folder: Path,
    name: str,
    packed: Mapping[str, Tensor],
    batches: tuple[int, int],
    tokens: Int[Tensor, " rows"] | None,
    runs: Sequence[Run],
    place: Place | None = None,
) -> Shard:
    """Write a shard's file, whole or not at all.

    Raises:
        UserError: the disk refuses.
    """
    tensors = dict(packed)
    if tokens is not None:
        small = len(tokens) == 0 or int(tokens.max()) < 2**16
        tensors[_TOKENS] = tokens.to(torch.uint16 if small else torch.int32)
    metadata = {_DOCUMENTS: json.dumps([[r.row, r.document, r.start] for r in runs])}
    draft = folder / f".{name}.draft"
    try:
        save_file({n: t.contiguous() for n, t in tensors.items()}, draft, metadata)
        draft.chmod(0o644)
        shard = Shard(
            name=name,
            rows=len(next(iter(packed.values()))),
            batches=batches,
            bytes=draft.stat().st_size,
            sha256=sha256(draft),
            place=place,
        )
        draft.replace(folder / name)
    except (OSError, SafetensorError) as error:
        with contextlib.suppress(OSError):
            draft.unlink()
        hint = "make room and give the same command again: it goes on with this shard"
        raise disk_error(folder / name, error, hint) from error
    return shard


def rows_per_shard(widths: dict[str, int], precision: Precision, size: int = SHARD_BYTES) -> int:
    """Return how many tokens fill a shard."""
    return max(size // bytes_per_row(widths, precision), 1)


@dataclass(frozen=True, slots=True)
class Damage:
    """A shard that is not what was written."""

    number: int
    shard: Shard
    what: str


def verify(folder: str | Path) -> Iterator[Damage | Shard]:
    """Hold every shard against its checksum; yield each, as damage where it is damaged.

    Raises:
        UserError: there is no store.
    """
    folder = Path(folder)
    shards = _read_manifest(folder)[3]
    for number, shard in enumerate(shards):
        path = folder / shard.name
        if not path.is_file():
            yield Damage(number, shard, "is missing")
        elif path.stat().st_size != shard.bytes:
            yield Damage(number, shard, f"has {path.stat().st_size} bytes, not {shard.bytes}")
        elif sha256(path) != shard.sha256:
            yield Damage(number, shard, "is altered: its checksum differs")
        else:
            yield shard


def _read_manifest(
    folder: Path,
) -> tuple[Recipe | None, dict[str, int], Precision, list[Shard], int | None]:
    manifest: dict[str, Any] = load_manifest(folder, KIND)
    try:
        recipe = Recipe.from_dict(manifest["recipe"]) if manifest["recipe"] else None
        shards = [_shard(values) for values in manifest["shards"]]
        if any("/" in s.name or os.sep in s.name or s.name.startswith(".") for s in shards):
            raise ValueError("a shard's name leads out of the folder")
        widths, precision = dict(manifest["widths"]), check_precision(manifest["precision"])
        return recipe, widths, precision, shards, manifest.get("text")
    except (KeyError, TypeError, ValueError) as error:
        raise UserError(
            f"`{folder / MANIFEST}` cannot be read: {error}",
            "it was edited or made by a different version; make the store again",
        ) from error


def _shard(values: Mapping[str, Any]) -> Shard:
    first, last = values["batches"]
    place = Place.from_dict(values["place"]) if values.get("place") else None
    return Shard(**{**values, "batches": (first, last), "place": place})


def _read_through(path: Path) -> None:
    buffer = bytearray(2**20)
    with contextlib.suppress(OSError), path.open("rb", buffering=0) as file:
        while file.readinto(buffer):
            pass


def _check_there(folder: Path, shard: Shard) -> None:
    path = folder / shard.name
    if not path.is_file():
        raise _damaged(folder, shard.name, "it is missing")
    if path.stat().st_size != shard.bytes:
        raise _damaged(folder, shard.name, f"{path.stat().st_size} bytes, not {shard.bytes}")


def _damaged(folder: Path, name: str, why: str) -> UserError:
    return UserError(
        f"`{folder / name}` is damaged: {why}",
        f"make it again with: monosemy store verify {folder} --repair",
    )
