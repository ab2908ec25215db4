"""Runs that the app shows, opened when they are first asked for."""

from __future__ import annotations

import json
from collections.abc import Callable, Hashable, Sequence
from functools import cache, cached_property
from pathlib import Path
from threading import Lock
from typing import Any, TypeVar

from monosemy.artefact import MANIFEST
from monosemy.coders import Dictionary, attach
from monosemy.errors import UserError
from monosemy.index import Index
from monosemy.interpret import Features
from monosemy.intervene.record import FOLDER
from monosemy.lm import LM

T = TypeVar("T")

_LOCKS: dict[tuple[str, str | None], Lock] = {}


class OpenRun:
    """A run's folder, and what is in it.

    Attributes:
        name: its part of an address.
        folder: where it lies.
    """

    def __init__(self, name: str, folder: Path) -> None:
        self.name, self.folder = name, folder
        self._opening = Lock()
        self._features: tuple[int, Features] | None = None
        self._kept: dict[str, tuple[Hashable, Any]] = {}

    @cached_property
    def dictionary(self) -> Dictionary:
        """Its dictionary."""
        return Dictionary.from_pretrained(self.folder)

    @cached_property
    def lm(self) -> LM:
        """The model it belongs to, checked to be the right one; loading it takes a while.

        Raises:
            UserError: it is not there, or the dictionary does not fit it.
        """
        lm = _load(*self._model_name)
        attach(self.dictionary.to(lm.device), lm)
        return lm

    @property
    def model(self) -> Lock:
        """A lock held while the language model runs: runs share it, and edits are placed in it."""
        return _LOCKS.setdefault(self._model_name, Lock())

    @property
    def _model_name(self) -> tuple[str, str | None]:
        provenance = self.dictionary.provenance
        return provenance.model, provenance.revision

    @property
    def features(self) -> Features:
        """Its features; read anew when the index was made again.

        Raises:
            UserError: there is no index, or it is another dictionary's.
        """
        manifest = self.folder / "index" / MANIFEST
        with self._opening:
            try:
                made = manifest.stat().st_mtime_ns
            except OSError as error:
                if self._features is not None:  # it is being replaced this moment
                    return self._features[1]
                raise UserError(
                    f"`{self.folder}` has no index", f"make it with: monosemy index {self.folder}"
                ) from error
            if self._features is None or self._features[0] != made:
                index = Index.open(self.folder / "index")
                index.check_dictionary(self.dictionary)
                self._features = made, Features(index)
            return self._features[1]

    def json(self, name: str) -> Any:
        """Return what a JSON file of the run holds, None where there is none that can be read."""
        path = self.folder / name
        try:
            return self.kept(name, path.stat().st_mtime_ns, lambda: json.loads(path.read_bytes()))
        except (OSError, ValueError):
            return None

    def kept(self, name: str, stamp: Hashable, make: Callable[[], T]) -> T:
        """Return what `make` makes, made again only when the stamp is another."""
        if name not in self._kept or self._kept[name][0] != stamp:
            self._kept[name] = stamp, make()
        return self._kept[name][1]


@cache
def _load(model: str, revision: str | None) -> LM:
    """Load a model, once for all runs; call it holding the model's lock."""
    return LM(model, revision=revision)


def open_runs(folders: Sequence[Path]) -> dict[str, OpenRun]:
    """Return runs by the names they have in addresses: their folders' names.

    A sweep's folder stands for the runs in it.

    Raises:
        UserError: a folder is no run.
    """
    found: list[Path] = []
    for folder in folders:
        inside = sorted(p.parent for p in folder.glob("*/dictionary") if p.is_dir())
        if not (folder / "dictionary").is_dir() and not inside:
            raise UserError(
                f"`{folder}` is no run: it has no dictionary",
                "give the folder that `monosemy train` or `monosemy sweep` made",
            )
        found += [folder] if (folder / "dictionary").is_dir() else inside
    runs: dict[str, OpenRun] = {}
    for folder in dict.fromkeys(path.resolve() for path in found):
        name, number = folder.name, 2
        while name in runs or name in ("static", FOLDER, ""):
            name, number = f"{folder.name}-{number}", number + 1
        runs[name] = OpenRun(name, folder)
    return runs
