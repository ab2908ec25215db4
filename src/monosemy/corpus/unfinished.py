"""Python source that breaks off: the beginning of it that parses."""

from __future__ import annotations

import ast
import warnings
from collections.abc import Iterator


def parsable_part(text: str) -> tuple[str, int]:
    """Find the longest beginning of Python source that parses, once what is open is closed.

    The whole text is tried, then one line less each time. An open docstring gets its quotes, a
    block without a body a `pass`, and a `try` without handlers a `finally`.

    Returns:
        The beginning with what closes it, and how many characters of `text` it holds; ("", 0)
        where not even the first line parses.
    """
    lines = text.split("\n")
    for count in range(len(lines), 0, -1):
        kept = "\n".join(lines[:count])
        for closed in _closed(kept):
            if _parses(closed):
                return closed, len(kept)
    return "", 0


def _closed(text: str) -> Iterator[str]:
    for quotes in ("", '"""', "'''"):
        lines = (text + quotes).rstrip().split("\n")
        last = lines[-1]
        if last.endswith(":"):
            lines.append(f"{_indentation(last)} pass")
        for indentation in _open_tries(lines):
            lines += [f"{indentation}finally:", f"{indentation} pass"]
        ending = "\n".join(lines)[len((text + quotes).rstrip()) :]
        yield text + quotes + ending


def _open_tries(lines: list[str]) -> list[str]:
    """Return the indentation of each `try` of which no handler has come, innermost first."""
    found: list[str] = []
    for line in lines:
        if line.strip():
            found = [before for before in found if len(before) < len(_indentation(line))]
            if line.strip() == "try:":
                found.append(_indentation(line))
    return found[::-1]


def _indentation(line: str) -> str:
    return line[: len(line) - len(line.lstrip())]


def _parses(text: str) -> bool:
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            ast.parse(text)
    except (SyntaxError, ValueError, RecursionError, MemoryError):
        return False
    return True
