"""Show a few rows of text as the model reads them, with the tokens that count marked."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Annotated

import torch
import tyro
from rich.text import Text as Line
from transformers import PreTrainedTokenizerBase

from monosemy.cli.console import console
from monosemy.cli.text import Text
from monosemy.corpus import Part, TokenBatch, TokenPolicy, TokenStream
from monosemy.errors import UserError
from monosemy.lm.load import load_tokenizer
from monosemy.report.tokens import visible

_COUNTED, _OTHER, _EDGE = ("#1a1a1a on #e2a55c", "#1a1a1a on #f3c78e"), "dim", "bold"


@dataclass(frozen=True)
class Command:
    """Options of `monosemy tokens`."""

    model: Annotated[tyro.conf.Positional[str], tyro.conf.arg(metavar="MODEL")]
    """The model whose tokenizer reads: `builtin:stdlib`, a folder, or a Hugging Face id."""
    text: Annotated[Text, tyro.conf.arg(name="")] = field(default_factory=Text)
    part: Part = "train"
    """`train`, `held_out` or `all` documents."""
    rows: int = 3
    """Rows to show."""
    context: int = 64
    """Tokens in a row."""
    packed: bool = True
    """Join documents to fill rows; otherwise one document a row, cut or padded."""
    seed: int = 0
    """Of the order of text."""

    def run(self) -> None:
        """Print the rows, and how many tokens count."""
        if self.rows < 1:
            raise UserError(f"rows is {self.rows}", "allowed: 1 and above")
        tokenizer = load_tokenizer(self.model)
        corpus = self.text.open()
        stream = TokenStream(
            corpus,
            tokenizer,
            part=self.part,
            context=self.context,
            rows=self.rows,
            packed=self.packed,
            policy=TokenPolicy(),
            seed=self.seed,
        )
        batch = next(iter(stream))
        for row in range(len(batch.tokens)):
            console.print(row_line(batch, row, tokenizer))
            console.print()
        counted, padding = int(batch.counted.sum()), int((~batch.attention_mask).sum())
        is_special = torch.isin(batch.tokens, torch.tensor(tokenizer.all_special_ids))
        special = int((is_special & batch.attention_mask & ~batch.counted).sum())
        rest = batch.tokens.numel() - counted - padding - special
        console.print(
            f"{counted} of {batch.tokens.numel()} tokens count (on a ground of colour, two shades "
            f"in turn); not {special} special ones, {padding} of padding, {rest} outside the "
            "spans of their document"
        )


def row_line(batch: TokenBatch, row: int, tokenizer: PreTrainedTokenizerBase) -> Line:
    """Return a row as coloured text, with the documents it comes from."""
    line, shade, special = Line(), 0, frozenset(tokenizer.all_special_ids)
    documents = [document.id for document in batch.documents]
    before = None
    for place, token in enumerate(batch.tokens[row].tolist()):
        number = int(batch.document[row, place])
        if number >= 0 and number != before:
            line.append(f"[{documents[number]}] ", _EDGE)
            before = number
        if not bool(batch.attention_mask[row, place]):
            line.append("·", _OTHER)
        elif bool(batch.counted[row, place]):
            shade = 1 - shade
            line.append(visible(str(tokenizer.decode([token]))), _COUNTED[shade])
        else:
            named = tokenizer.convert_ids_to_tokens if token in special else tokenizer.decode
            line.append(visible(str(named(token))), _OTHER)
    return line
