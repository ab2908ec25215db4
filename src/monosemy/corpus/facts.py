"""What a model may know: facts about entities, and questions with choices."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from monosemy.corpus.columns import text_of_row
from monosemy.corpus.files import read_rows
from monosemy.errors import UserError

SPLITS = ("train", "held_out")
FEWEST_ENTITIES = 4
"""Two to swap in either part."""


@dataclass(frozen=True, slots=True)
class Fact:
    """A prompt that asks for an attribute of an entity it names, and the answer."""

    entity: str
    attribute: str
    prompt: str
    answer: str
    split: str = ""
    """`train` or `held_out`; "" where that is left to chance."""


@dataclass(frozen=True, slots=True)
class Question:
    """A question, what may be chosen, and which of it is right."""

    question: str
    choices: tuple[str, ...]
    answer: int
    """Of `choices`, from 0."""
    forget: bool
    """It asks about what is to be forgotten."""


def read_facts(file: str | Path) -> list[Fact]:
    """Return the facts of a table (.jsonl, .csv, .parquet), one a row.

    Columns: `entity`, `attribute`, `prompt`, `answer` and, where entities are to be parted in a
    certain way, `split`.

    Raises:
        UserError: the table cannot be read, a row lacks a column or holds nothing there, its prompt
            does not name its entity, an entity is in both parts, or there are fewer than two
            attributes or four entities.
    """
    path = Path(file)
    found = [_fact(row, f"{path}:{number}") for number, row in read_rows(path)]
    splits: dict[str, str] = {}
    for fact in found:
        if splits.setdefault(fact.entity, fact.split) != fact.split:
            raise UserError(
                f"{path}: `{fact.entity}` has split `{splits[fact.entity]}` and `{fact.split}`",
                "an entity belongs to one part, with all its rows",
            )
    attributes = {fact.attribute for fact in found}
    if len(attributes) < 2 or len(splits) < FEWEST_ENTITIES:
        raise UserError(
            f"{path} asks for {len(attributes)} attributes of {len(splits)} entities",
            f"at least two attributes and {FEWEST_ENTITIES} entities are needed: one attribute is "
            "to change and the others are not",
        )
    return found


def _fact(row: Mapping[str, Any], where: str) -> Fact:
    columns = ("entity", "attribute", "prompt", "answer")
    entity, attribute, prompt, answer = (_filled(row, column, where) for column in columns)
    if entity not in prompt:
        raise UserError(
            f"{where}: the prompt `{prompt}` does not name the entity `{entity}`",
            "write it as it stands in the prompt",
        )
    split = row.get("split") or ""
    if split and split not in SPLITS:
        raise UserError(f"{where}: no split `{split}`", f"allowed: {', '.join(SPLITS)}, or none")
    return Fact(entity, attribute, prompt, answer, split)


def _filled(row: Mapping[str, Any], column: str, where: str) -> str:
    text = text_of_row(row, column, where)
    if not text.strip():
        raise UserError(f"{where}: `{column}` is empty", "fill it in, or take the row out")
    return text


def read_questions(file: str | Path) -> list[Question]:
    """Return the questions of a table (.jsonl, .parquet), one a row.

    Columns: `question`; `choices`, a list of texts; `answer`, the number of the right one, from 0,
    or its letter, from A; `forget`, whether it asks about what is to be forgotten.

    Raises:
        UserError: the table cannot be read or is empty, or a row lacks a column or holds something
            else there.
    """
    path = Path(file)
    found = [_question(row, f"{path}:{number}") for number, row in read_rows(path)]
    if not found:
        raise UserError(f"no question in {path}", "one is needed in each row")
    return found


def _question(row: Mapping[str, Any], where: str) -> Question:
    question = _filled(row, "question", where)
    choices: Any = row.get("choices")
    answer: Any = row.get("answer")
    forget: Any = row.get("forget")
    filled = isinstance(choices, list) and all(isinstance(c, str) and c.strip() for c in choices)
    if not filled or len(choices) < 2:
        raise UserError(
            f"{where}: `choices` is {choices!r}", 'it must be a list of texts, such as ["a", "b"]'
        )
    if isinstance(answer, str) and len(answer) == 1:
        answer = ord(answer.upper()) - ord("A")
    if type(answer) is not int or not 0 <= answer < len(choices):
        raise UserError(
            f"{where}: `answer` is {row.get('answer')!r}, of {len(choices)} choices",
            "it must be the number of the right one, from 0, or its letter, from A",
        )
    if not isinstance(forget, bool):
        raise UserError(f"{where}: `forget` is {forget!r}", "it must be true or false")
    return Question(question, tuple(choices), answer, forget)
