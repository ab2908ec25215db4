"""Beginnings of text for a model to continue."""

from __future__ import annotations

import ast
import random
import warnings

from monosemy.corpus import Corpus, Document, Part
from monosemy.errors import UserError

_LONGEST = 200
"""Characters of a line that is still an opening."""


def openings(
    corpus: Corpus,
    count: int,
    *,
    part: Part = "held_out",
    per_document: int = 2,
    seed: int = 0,
) -> list[Document]:
    """Return beginnings for a model to continue, no two alike.

    Of Python source the headers of functions of the module, `def f(x):` and a line break, behind
    which nearly everything may come; of other text the first line.

    Args:
        corpus: the text.
        count: how many at most.
        part: of the corpus.
        per_document: how many at most are of one document.
        seed: of the order of documents, and of which functions.

    Raises:
        UserError: there are none.
    """
    rng = random.Random(seed)
    found: dict[str, str] = {}
    for document in corpus.documents(part, seed=seed):
        headers = _headers(document.text)
        texts = _first_line(document.text) if headers is None else headers
        new = [text for text in texts if text not in found]
        for text in rng.sample(new, min(per_document, len(new))):
            found[text] = document.id
        if len(found) >= count:
            break
    if not found:
        raise UserError(
            f"nothing in the {part.replace('_', '-')} part of {corpus.name} begins a text",
            "give prompts of your own",
        )
    return [Document(id, text) for text, id in list(found.items())[:count]]


def _headers(text: str) -> list[str] | None:
    """Return the headers of functions that take one line; None for text that does not parse."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            tree = ast.parse(text)
    except (SyntaxError, ValueError, RecursionError, MemoryError):
        return None
    lines = text.split("\n")
    found = []
    for node in tree.body:
        if isinstance(node, ast.FunctionDef) and node.lineno <= len(lines):
            line = lines[node.lineno - 1].rstrip()
            if line.startswith("def ") and line.endswith(":") and node.body[0].lineno > node.lineno:
                found.append(line + "\n")
    return list(dict.fromkeys(found))


def _first_line(text: str) -> list[str]:
    lines = (line.strip() for line in text.splitlines())
    return [line[:_LONGEST] for line in lines if line][:1]
