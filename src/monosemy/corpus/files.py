"""Documents from a file or a folder of text, JSON lines, CSV and Parquet."""

from __future__ import annotations

import csv
import json
import os
import random
import re
import sys
from collections.abc import Iterator
from dataclasses import dataclass, field
from io import TextIOBase
from pathlib import Path
from typing import Any

from monosemy.corpus.columns import choose_column, column_of_row, spans_of_row, text_of_row
from monosemy.corpus.document import Document
from monosemy.errors import UserError, reason

_TEXT_SUFFIXES = (".txt", ".md", ".py")
SUFFIXES = (*_TEXT_SUFFIXES, ".jsonl", ".csv", ".parquet")

# A text file of a folder is one document, as its author meant it, unless it is so long that it
# must be many.
_LONGEST_WHOLE_FILE = 2**20
_SHORTEST_PIECE, _LONGEST_PIECE = 2048, 8192
_BLANK_LINES = re.compile(r"\n(?:[ \t]*\n)+")


@dataclass(frozen=True)
class FileSource:
    """A file, or every file below a folder with a known suffix; hidden ones are passed over.

    A row of a table is a document, and so is a text file of a folder. A lone text file, or one of
    more than a megabyte, is cut at blank lines into documents of 2 to 8 kB: as one document it
    would leave nothing to hold out.
    """

    path: Path
    column: str | None = None
    skip_bad: bool = False
    """Pass over files that cannot be read, and what follows a bad row in its file; say so."""
    _skipped: set[Path] = field(default_factory=set, repr=False, compare=False)

    def __post_init__(self) -> None:
        if not self.path.exists():
            raise UserError(f"no such file or folder: {self.path}", "check the path")
        self._files()

    @property
    def name(self) -> str:
        return str(self.path)

    def describe(self) -> dict[str, Any]:
        # Named only where it is asked for, so that older descriptions are the same.
        skipping = {"skip_bad": True} if self.skip_bad else {}
        return {"source": self.name, "column": self.column, **skipping}

    def read(self, rng: random.Random | None) -> Iterator[Document]:
        files = self._files()
        if rng is not None:
            rng.shuffle(files)
        for file in files:
            try:
                yield from self._read_file(file)
            except UserError as error:
                if not self.skip_bad:
                    raise
                if file not in self._skipped:
                    self._skipped.add(file)
                    sys.stderr.write(f"skipped: {error.message}\n")

    def rows(self) -> Iterator[tuple[str, dict[str, Any]]]:
        """Yield the rows of all tables, each with the name of its place.

        Raises:
            UserError: a file is no table or cannot be read, or a line is no JSON object.
        """
        for file in self._files():
            for number, row in read_rows(file):
                yield f"{self._name(file)}:{number}", row

    def _files(self) -> list[Path]:
        """List the files to read, in the order of their paths."""
        known = f"files read: {' '.join(SUFFIXES)}"
        if not self.path.is_dir():
            if self.path.suffix.lower() not in SUFFIXES:
                raise UserError(f"{self.path}: unknown kind of file", known)
            return [self.path]
        files = sorted(f for f in _walk(self.path) if f.suffix.lower() in SUFFIXES)
        if not files:
            raise UserError(f"empty corpus: nothing to read in folder {self.path}", known)
        return files

    def _read_file(self, file: Path) -> Iterator[Document]:
        name = self._name(file)
        try:
            match file.suffix.lower():
                case ".jsonl":
                    yield from self._rows(_read_jsonl(file), file, name)
                case ".csv":
                    yield from self._rows(_read_csv(file), file, name)
                case ".parquet":
                    yield from _read_parquet(file, name, self.column)
                case _:
                    yield from _read_text(file, name, whole=file != self.path)
        except UnicodeDecodeError as error:
            raise UserError(
                f"{file} is not UTF-8 text (byte {error.object[error.start]:#04x})",
                "convert it to UTF-8, or take it out of the folder",
            ) from error
        except OSError as error:
            raise UserError(f"cannot read {file}: {error.strerror or reason(error)}") from error

    def _name(self, file: Path) -> str:
        return file.name if file == self.path else file.relative_to(self.path).as_posix()

    def _rows(
        self, rows: Iterator[tuple[int, dict[str, Any]]], file: Path, name: str
    ) -> Iterator[Document]:
        column = None
        for number, row in rows:
            column = column or column_of_row(self.column, row, str(file))
            text = text_of_row(row, column, f"{file}:{number}")
            spans = spans_of_row(row, f"{file}:{number}")
            yield Document(id=f"{name}:{number}", text=text, spans=spans)


def read_rows(file: Path) -> Iterator[tuple[int, dict[str, Any]]]:
    """Yield the numbers (lines of JSON lines) and the rows of a table, with all their columns.

    A `.json` file is read as JSON lines, which many data sets call so.

    Raises:
        UserError: it is no table, cannot be read, or a line is no JSON object.
    """
    try:
        match file.suffix.lower():
            case ".jsonl" | ".json":
                yield from _read_jsonl(file)
            case ".csv":
                yield from _read_csv(file)
            case ".parquet":
                yield from _parquet_rows(file)
            case _:
                raise UserError(f"{file}: not a table", "files read: .jsonl .csv .parquet")
    except (OSError, UnicodeDecodeError) as error:
        what = getattr(error, "strerror", None) or error
        raise UserError(f"cannot read {file}: {what}", "check the path") from error


def cut_text(file: TextIOBase) -> Iterator[tuple[int, str]]:
    """Cut a text into pieces that join to the whole, at blank lines wherever there are any.

    Reads no further ahead than a piece needs.

    Yields:
        The character where the piece starts, and the piece: 2,048 to 8,192 characters, the last
        possibly fewer.
    """
    start, text = 0, ""
    while block := file.read(2**20):
        text += block
        begin = 0
        while len(text) - begin > _LONGEST_PIECE:
            end = _piece_end(text, begin)
            yield start + begin, text[begin:end]
            begin = end
        start, text = start + begin, text[begin:]
    if text:
        yield start, text


def _piece_end(text: str, begin: int) -> int:
    """Return the first blank line after the shortest piece, else the last line or word."""
    shortest, longest = begin + _SHORTEST_PIECE, begin + _LONGEST_PIECE
    if blank := _BLANK_LINES.search(text, shortest, longest):
        return blank.end()
    for separator in ("\n", " "):
        if (found := text.rfind(separator, shortest, longest)) >= 0:
            return found + 1
    return longest


def _walk(folder: Path) -> Iterator[Path]:
    for root, folders, names in os.walk(folder):
        folders[:] = [name for name in folders if not name.startswith(".")]
        yield from (Path(root, name) for name in names if not name.startswith("."))


def _read_text(file: Path, name: str, *, whole: bool) -> Iterator[Document]:
    with file.open(encoding="utf-8-sig") as opened:
        if whole and file.stat().st_size <= _LONGEST_WHOLE_FILE:
            yield Document(id=name, text=opened.read())
            return
        for start, text in cut_text(opened):
            yield Document(id=f"{name}:chars {start}-{start + len(text)}", text=text)


def _read_jsonl(file: Path) -> Iterator[tuple[int, dict[str, Any]]]:
    """Yield line numbers, from 1, and objects."""
    with file.open(encoding="utf-8-sig") as opened:
        for number, line in enumerate(opened, start=1):
            if not line.strip():
                continue
            try:
                row = json.loads(line)
            except json.JSONDecodeError as error:
                raise UserError(
                    f"{file}:{number} is not JSON: {error.msg}", "each line must be one JSON object"
                ) from error
            if not isinstance(row, dict):
                raise UserError(
                    f"{file}:{number} is a JSON {type(row).__name__}, not an object",
                    'each line must be one JSON object, such as {"text": "..."}',
                )
            yield number, row


def _read_csv(file: Path) -> Iterator[tuple[int, dict[str, Any]]]:
    """Yield row numbers, from 1 below the header, and rows."""
    csv.field_size_limit(max(csv.field_size_limit(), 2**31 - 1))  # 128 kB at first: too few
    with file.open(encoding="utf-8-sig", newline="") as opened:
        try:
            for number, row in enumerate(csv.DictReader(opened), start=1):
                row.pop(None, None)  # fields beyond the header
                yield number, row
        except csv.Error as error:
            raise UserError(f"{file} is not a CSV file: {error}") from error


def _read_parquet(file: Path, name: str, asked: str | None) -> Iterator[Document]:
    with _open_parquet(file) as table:
        texts = [field.name for field in table.schema_arrow if _holds_text(field.type)]
        column = choose_column(asked, table.schema_arrow.names, texts, str(file))
    for number, row in _parquet_rows(file, [column]):
        yield Document(id=f"{name}:{number}", text=text_of_row(row, column, f"{file}:{number}"))


def _parquet_rows(
    file: Path, columns: list[str] | None = None
) -> Iterator[tuple[int, dict[str, Any]]]:
    """Yield row numbers, from 1, and rows; of all columns unless some are named."""
    try:
        with _open_parquet(file) as table:
            batches = table.iter_batches(batch_size=256, columns=columns)
            rows = (row for batch in batches for row in batch.to_pylist())
            yield from enumerate(rows, start=1)
    except ValueError as error:  # such as pyarrow.ArrowInvalid
        raise UserError(f"{file} is damaged: {reason(error)}") from error


def _open_parquet(file: Path) -> Any:
    try:
        import pyarrow as pa
        from pyarrow import parquet
    except ImportError as error:
        raise UserError(
            f"{file} needs pyarrow", 'install it with: pip install "monosemy[data]"'
        ) from error
    try:
        return parquet.ParquetFile(file)
    except pa.ArrowInvalid as error:
        raise UserError(f"{file} is not a Parquet file: {reason(error)}") from error


def _holds_text(kind: Any) -> bool:
    return str(getattr(kind, "value_type", kind)) in ("string", "large_string", "string_view")
