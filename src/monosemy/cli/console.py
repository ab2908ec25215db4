"""Where commands print, and what several of them need."""

from __future__ import annotations

from pathlib import Path

from rich.console import Console
from transformers.utils import logging

from monosemy.coders import Dictionary, attach
from monosemy.coders.dictionary import folder_of
from monosemy.coders.first import UNKNOWN
from monosemy.corpus import Corpus, open_corpus
from monosemy.errors import UserError
from monosemy.evaluation import open_dictionary_corpus
from monosemy.index import Index
from monosemy.lm import LM

logging.disable_progress_bar()  # loading weights takes a moment; bars are for long work

# Without a terminal, tables keep their columns: a pipe has no width of its own.
console = Console(width=None if Console().is_terminal else 120, highlight=False)


def open_dictionary(run: Path, model: str | None, device: str | None) -> tuple[Dictionary, LM]:
    """Load a dictionary and the model it belongs to, or the one named instead.

    Raises:
        UserError: there is no dictionary or model, or it was fitted to arrays and has no model.
    """
    dictionary = Dictionary.from_pretrained(run)
    if not dictionary.belongs_to_model and model is None:
        raise UserError(
            f"`{run}` was fitted to arrays: it belongs to no model",
            "give the model with --model, if the arrays were its activations",
        )
    lm = open_model(dictionary, model, device)
    if dictionary.fingerprint is None and dictionary.belongs_to_model:
        attach(dictionary, lm)
        dictionary.save_pretrained(folder_of(run))
    return dictionary, lm


def open_model(dictionary: Dictionary, model: str | None, device: str | None) -> LM:
    """Load the model of a dictionary, or the one named instead, and move the dictionary to it.

    Raises:
        UserError: there is no such model, or the dictionary names none.
    """
    its = dictionary.provenance
    if model is None and its.model == UNKNOWN:
        raise UserError("the dictionary's files do not say its model", "give it with --model")
    revision = its.revision if model is None else None
    lm = LM(model or its.model, revision=revision, device=device)
    dictionary.to(lm.device)
    return lm


def open_text(dictionary: Dictionary, data: str | None, column: str | None) -> Corpus:
    """Open the corpus named, or the one a dictionary was trained on."""
    if data is not None:
        return open_corpus(data, column=column)
    return open_dictionary_corpus(dictionary)


def names_of(run: Path) -> dict[int, list[str]]:
    """Return what a run's features are called; nothing where there is no index.

    Raises:
        UserError: the index is another dictionary's.
    """
    return Index.open(run).names if (run / "index").is_dir() else {}
