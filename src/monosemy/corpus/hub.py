"""Documents from a Hugging Face data set, file by file: streamed, or downloaded ahead."""

from __future__ import annotations

import copy
import random
import sys
import threading
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from itertools import chain, islice
from typing import Any

from huggingface_hub.errors import HTTPError

from monosemy.corpus.columns import column_of_row, text_of_row
from monosemy.corpus.document import Document
from monosemy.corpus.download import (
    Downloads,
    is_machine_error,
    is_network_error,
    name_and_path,
    remote_error,
    sizes_of,
)
from monosemy.errors import UserError, nearest, reason

# Formats whose files can be read one by one; others need all of a split's files together.
_FORMATS = ("arrow", "csv", "json", "parquet", "text")

# Documents that are read before anything is downloaded: a look at a corpus needs no more.
_LOOK = 64


@dataclass(frozen=True)
class HubFile:
    """A file of a data set, or all files of a split whose format does not allow to part them."""

    where: str
    """Data set, split and path, of which the ids of documents are made."""
    split: str
    urls: tuple[str, ...]


_Lying = tuple[HubFile, tuple[str, ...]]
"""A file, and where its bytes lie."""


class BadFile(UserError):
    """A file is there, but cannot be read."""


@dataclass(frozen=True)
class HubSource:
    """A data set of the Hugging Face hub, its files in random order where a seed is given.

    Rows are streamed as they are needed. With a disk budget, all files but the first, which is
    streamed so that there is text at once, are downloaded whole before they are read, several at a
    time, and removed after. Documents, ids and order are the same either way. Who reads while
    another reader has the disk gets streamed rows.
    """

    name: str
    config: str | None = None
    split: str = "train"
    column: str | None = None
    skip_bad: bool = False
    """Pass over files that cannot be read, or the rest of them; say so."""
    disk_budget: int | None = None
    """Bytes."""
    _skipped: set[str] = field(default_factory=set, repr=False, compare=False)
    _disk: threading.Lock = field(default_factory=threading.Lock, repr=False, compare=False)

    def describe(self) -> dict[str, Any]:
        # Without the budget, which does not change the text; `skip_bad` only where it is asked for.
        skipping = {"skip_bad": True} if self.skip_bad else {}
        return {
            "source": self.name,
            "config": self.config,
            "split": self.split,
            "column": self.column,
            **skipping,
        }

    def read(self, rng: random.Random | None) -> Iterator[Document]:
        files = list(self.files)
        if rng is not None:
            rng.shuffle(files)
        if self.disk_budget is None or not self._disk.acquire(blocking=False):
            yield from self._documents((file, file.urls) for file in files)
            return
        try:
            yield from self._downloaded(files, self.disk_budget)
        finally:
            self._disk.release()

    def _downloaded(self, files: Sequence[HubFile], budget: int) -> Iterator[Document]:
        streamed, *rest = files
        urls = [file.urls[0] for file in rest]
        with Downloads(urls, [self._sizes[url] for url in urls], budget) as downloads:
            paths = ((str(path),) for path in downloads)
            ready = zip(rest, paths, strict=True)
            documents = self._documents(chain([(streamed, streamed.urls)], ready))
            yield from islice(documents, _LOOK)
            downloads.start()
            yield from documents

    def rows(self) -> Iterator[tuple[str, Mapping[str, Any]]]:
        """Yield the rows, streamed, each with the name of its place."""
        return self._placed_rows((file, file.urls) for file in self.files)

    @property
    def features(self) -> Mapping[str, Any]:
        """The columns' kinds, as far as the data set says them."""
        return self._streamed(self.files[0], self.files[0].urls).features or {}

    def _documents(self, files: Iterator[_Lying]) -> Iterator[Document]:
        """Yield the documents of files, each read from where it lies."""
        column = None
        for where, row in self._placed_rows(files):
            column = column or column_of_row(self.column, row, f"data set `{self.name}`")
            yield Document(id=where, text=text_of_row(row, column, where))

    def _placed_rows(self, files: Iterator[_Lying]) -> Iterator[tuple[str, Mapping[str, Any]]]:
        for file, paths in files:
            try:
                for number, row in enumerate(self._rows(file, paths)):
                    yield f"{file.where}:{number}", row
            except BadFile as error:
                if not self.skip_bad:
                    raise
                if file.where not in self._skipped:
                    self._skipped.add(file.where)
                    sys.stderr.write(f"skipped: {error.message}\n")

    def _rows(self, file: HubFile, paths: tuple[str, ...]) -> Iterator[dict[str, Any]]:
        try:
            yield from self._streamed(file, paths)
        except Exception as error:  # of whichever library reads the format
            if is_network_error(error):
                raise remote_error(file.urls[0], error) from error
            _, path = name_and_path(file.urls[0])
            problem = f"`{path}` of data set `{self.name}` cannot be read: {reason(error)}"
            if is_machine_error(error):
                raise UserError(problem) from error
            raise BadFile(problem, "to pass over such files: --skip-bad") from error

    def _streamed(self, file: HubFile, paths: tuple[str, ...]) -> Any:
        """Return the `datasets.IterableDataset` of a file, read from where it lies."""
        builder = copy.copy(self.builder)
        builder.config, builder.info = copy.copy(builder.config), copy.copy(builder.info)
        builder.config.data_files = {file.split: list(paths)}
        return builder.as_streaming_dataset(file.split)

    def check(self) -> None:
        """Look whether the data set can be had, before any of it is read.

        Raises:
            UserError: `datasets` is not installed, or finds no such data set, config or split;
                with a disk budget, a file is larger, or files cannot be read one by one.
        """
        files = self.files
        if self.disk_budget is None:
            return
        if any(len(file.urls) > 1 for file in files):
            kind = self.builder.name
            raise UserError(
                f"the files of data set `{self.name}` ({kind}) cannot be read one by one",
                "leave out the disk budget: its rows are streamed, and take no disk",
            )
        largest = max(self._sizes, key=lambda url: self._sizes[url])
        size = self._sizes[largest]
        if size > self.disk_budget:
            raise UserError(
                f"`{name_and_path(largest)[1]}` of data set `{self.name}` has {size:,} bytes, the "
                f"disk budget is {self.disk_budget:,}",
                f"allowed: {size:,} and above, better several times that; or leave it out: rows "
                "are streamed then, and take no disk",
            )

    @cached_property
    def builder(self) -> Any:
        """The `datasets.DatasetBuilder`, which has the list of files."""
        try:
            import datasets
        except ImportError as error:
            raise UserError(
                f"`{self.name}` is no file or folder here; to read it from the Hugging Face hub, "
                "the package `datasets` is needed",
                'install it with: pip install "monosemy[data]"',
            ) from error
        try:
            return datasets.load_dataset_builder(self.name, self.config)
        except (OSError, ValueError, RuntimeError, HTTPError) as error:
            raise UserError(
                f"`{self.name}` is no file or folder here, and as a data set of the Hugging Face "
                f"hub it could not be opened: {reason(error)}",
                "check the name and `config`; for a gated or private data set ask for access on "
                "its page, and set HF_TOKEN",
            ) from error

    @cached_property
    def files(self) -> list[HubFile]:
        """The files of the split, in the data set's order."""
        by_split = {str(split): urls for split, urls in self.builder.config.data_files.items()}
        files = []
        for split in self.split.split("+"):
            if split not in by_split:
                splits = ", ".join(f"`{name}`" for name in by_split)
                hint = f"splits: {splits}. {nearest(split, by_split)}".rstrip()
                raise UserError(f"data set `{self.name}` has no split `{split}`", hint)
            where, urls = f"{self.name}:{split}", by_split[split]
            if self.builder.name in _FORMATS:
                files += [HubFile(f"{where}:{name_and_path(u)[1]}", split, (u,)) for u in urls]
            else:
                files.append(HubFile(where, split, tuple(urls)))
        return files

    @cached_property
    def _sizes(self) -> dict[str, int]:
        """Bytes of each file, by its address."""
        urls = [file.urls[0] for file in self.files]
        try:
            return dict(zip(urls, sizes_of(urls), strict=True))
        except (OSError, HTTPError) as error:
            raise remote_error(urls[0], error) from error
