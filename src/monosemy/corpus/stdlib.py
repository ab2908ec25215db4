"""The source of Python's standard library: a corpus that is on every machine that has Python."""

from __future__ import annotations

import os
import random
import sysconfig
import tokenize
from collections.abc import Iterator
from pathlib import Path

from monosemy.corpus.document import Document

# Tables written by programs, not code written by people: they would fill a fifth of the corpus.
_GENERATED = ("encodings/", "pydoc_data/", "_sysconfigdata")
_NOT_STDLIB = ("site-packages", "dist-packages", "ensurepip/_bundled", "config-")
_EXCLUDED = (*_GENERATED, *_NOT_STDLIB)
_TESTS = ("test", "tests", "idle_test")


class StdlibSource:
    """The library's own source, without its test-suite."""

    name = "builtin:stdlib"

    def read(self, rng: random.Random | None) -> Iterator[Document]:
        return stdlib_documents(rng=rng)

    def describe(self) -> dict[str, str | None]:
        return {"source": self.name}


def stdlib_documents(
    *, tests: bool = False, rng: random.Random | None = None
) -> Iterator[Document]:
    """Yield the standard library's source files, in the order of their paths.

    Args:
        tests: also yield the library's own test-suite (absent from some Python installations).
        rng: yield them in an order drawn from this generator instead.

    Yields:
        Documents whose `id` is the path below the library's folder, such as `json/decoder.py`.
        The held-out split is a hash of that path, so it is the same for every Python version.
    """
    root = Path(sysconfig.get_paths()["stdlib"])
    names = sorted(_source_names(root, tests=tests), key=lambda name: name.split("/"))
    if rng is not None:
        rng.shuffle(names)
    for name in names:
        text = _read_source(root / name)
        if text:
            yield Document(id=name, text=text, split_key=name)


def _source_names(root: Path, *, tests: bool) -> Iterator[str]:
    """Yield paths below `root`; never enters installed packages, which may be very many."""
    for folder, folders, files in os.walk(root):
        prefix = Path(folder).relative_to(root).as_posix() + "/"
        prefix = prefix.removeprefix("./")
        folders[:] = [name for name in folders if _is_source(f"{prefix}{name}/", name, tests)]
        for name in files:
            if name.endswith(".py") and not (prefix + name).startswith(_EXCLUDED):
                yield prefix + name


def _is_source(path: str, name: str, tests: bool) -> bool:
    if path.startswith(_EXCLUDED) or name == "__pycache__":
        return False
    return tests or name not in _TESTS


def _read_source(path: Path) -> str | None:
    """Return the text of a source file, or None for the test-suite's deliberately broken ones."""
    try:
        with tokenize.open(path) as file:
            return file.read()
    except (SyntaxError, UnicodeDecodeError):
        return None
