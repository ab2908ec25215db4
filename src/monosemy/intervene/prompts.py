"""Minimal pairs as a model reads them: tokens, answers that are one token, batches."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Literal, NamedTuple

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from monosemy.corpus.minimal_pairs import MinimalPair
from monosemy.errors import UserError
from monosemy.lm import LM

Unequal = Literal["refuse", "align"]
"""What becomes of pairs whose prompts have different numbers of tokens: the set is refused, or
tokens are matched from the end, and what the longer prompt has more is left as it is."""


@dataclass(frozen=True)
class Prompts:
    """Minimal pairs as tokens.

    Attributes:
        pairs: as text.
        clean: each pair's ids, BOS in front.
        corrupted: likewise; None where pairs have one side.
        answer: each pair's token.
        wrong: likewise; None where pairs have none.
    """

    pairs: tuple[MinimalPair, ...]
    clean: list[list[int]]
    corrupted: list[list[int]] | None
    answer: Int[Tensor, " pairs"]
    wrong: Int[Tensor, " pairs"] | None

    def __len__(self) -> int:
        return len(self.pairs)

    def batches(self, lm: LM, size: int) -> Iterator[Batch]:
        """Yield batches of pairs alike in length; prompts stand so that they end together."""
        order = sorted(range(len(self)), key=lambda i: len(self.clean[i]))
        for first in range(0, len(order), size):
            chosen = torch.tensor(order[first : first + size])
            sides = [self.clean] if self.corrupted is None else [self.clean, self.corrupted]
            longest = max(len(side[i]) for side in sides for i in chosen.tolist())
            read = [_read([side[i] for i in chosen.tolist()], longest, lm) for side in sides]
            text = torch.stack([_text(side, lm) for side in read]).all(0)
            answer, wrong = (
                None if ids is None else ids[chosen].to(lm.device)
                for ids in (self.answer, self.wrong)
            )
            assert answer is not None
            yield Batch(chosen, read[0], read[1] if len(read) > 1 else None, text, answer, wrong)


class Read(NamedTuple):
    """One side of a batch, padded on the left."""

    tokens: Int[Tensor, "batch time"]
    mask: Bool[Tensor, "batch time"]


class Batch(NamedTuple):
    """Some pairs, and where nodes are: at text tokens that both sides have."""

    pairs: Int[Tensor, " batch"]
    clean: Read
    corrupted: Read | None
    text: Bool[Tensor, "batch time"]
    answer: Int[Tensor, " batch"]
    wrong: Int[Tensor, " batch"] | None


def _read(rows: Sequence[list[int]], longest: int, lm: LM) -> Read:
    pad = min(lm.special_ids, default=0)
    tokens = [[pad] * (longest - len(row)) + row for row in rows]
    mask = [[False] * (longest - len(row)) + [True] * len(row) for row in rows]
    return Read(torch.tensor(tokens, device=lm.device), torch.tensor(mask, device=lm.device))


def _text(side: Read, lm: LM) -> Bool[Tensor, "batch time"]:
    """Return where the text is: not special tokens, not padding."""
    special = torch.tensor(sorted(lm.special_ids), dtype=torch.long, device=side.tokens.device)
    return side.mask & ~torch.isin(side.tokens, special)


def tokenise(lm: LM, pairs: Iterable[MinimalPair], unequal: Unequal = "refuse") -> Prompts:
    """Return pairs as tokens.

    Args:
        lm: whose tokenizer reads them.
        pairs: all with a corrupted side, or none; likewise for wrong answers.
        unequal: what to do with prompts of different length.

    Raises:
        UserError: there are none; some have a side that others lack; prompts differ in length and
            that is to be refused; an answer is several tokens, or both answers are one token.
    """
    given = tuple(pairs)
    if not given:
        raise UserError("there are no pairs", "give at least one")
    for what in ("corrupted", "wrong"):
        lacking = [getattr(pair, what) is None for pair in given]
        if any(lacking) and not all(lacking):
            raise UserError(
                f"pair {lacking.index(True)} has no `{what}` and others have",
                "give it to all of them or to none",
            )
    read = [_tokenised(lm, pair, unequal) for pair in given]
    clean, corrupted, answer, wrong = zip(*read, strict=True)
    return Prompts(
        given,
        list(clean),
        None if given[0].corrupted is None else list(corrupted),
        torch.tensor(answer),
        None if given[0].wrong is None else torch.tensor(wrong),
    )


def _tokenised(
    lm: LM, pair: MinimalPair, unequal: Unequal
) -> tuple[list[int], list[int] | None, int, int | None]:
    clean = lm.encode(pair.clean)[0].tolist()
    corrupted = None if pair.corrupted is None else lm.encode(pair.corrupted)[0].tolist()
    if corrupted is not None and len(corrupted) != len(clean) and unequal == "refuse":
        raise UserError(
            f"{pair.clean!r} has {len(clean)} tokens and {pair.corrupted!r} {len(corrupted)}",
            "give prompts of as many tokens, or have them aligned from the end "
            '(unequal="align", --unequal align)',
        )
    answer = _answer(lm, pair.clean, clean, pair.answer)
    wrong = None if pair.wrong is None else _answer(lm, pair.clean, clean, pair.wrong)
    if answer == wrong:
        raise UserError(
            f"the answers {pair.answer!r} and {pair.wrong!r} are one token", "give different ones"
        )
    return clean, corrupted, answer, wrong


def _answer(lm: LM, prompt: str, ids: list[int], answer: str) -> int:
    """Return the token of an answer: as it is read after the prompt, if that stays as it was."""
    after = lm.encode(prompt + answer)[0].tolist()
    if after[: len(ids)] != ids:
        tokenizer = lm.tokenizer
        assert tokenizer is not None
        after = ids + list(tokenizer(answer, add_special_tokens=False)["input_ids"])
    new = after[len(ids) :]
    if len(new) != 1:
        assert lm.tokenizer is not None
        seen = ", ".join(repr(lm.tokenizer.decode([token])) for token in new)
        raise UserError(
            f"the answer {answer!r} to {prompt!r} is {len(new)} tokens: {seen}",
            "an answer must be one token",
        )
    return new[0]


class Fitting(NamedTuple):
    """Which pairs of a set a model can be asked."""

    pairs: list[MinimalPair]
    refused: dict[str, str]
    """Prompt -> why its pair is not among them."""
    preferred: float
    """Share of pairs, mistaken ones counted, whose right answer the model prefers."""


def fitting(lm: LM, pairs: Iterable[MinimalPair], *, mistaken: bool = True) -> Fitting:
    """Return the pairs that `tokenise` takes, and the share of those that the model gets right.

    Args:
        lm: the model.
        pairs: any.
        mistaken: whether to keep those of which the model prefers the wrong answer, or, without
            one, any other token.

    Raises:
        UserError: none is left.
    """
    taken, refused = [], {}
    for pair in pairs:
        try:
            tokenise(lm, [pair])
            taken.append(pair)
        except UserError as error:
            refused[pair.clean] = error.message
    if not taken:
        why = next(iter(refused.values()), "there are none")
        raise UserError(f"no pair fits {lm.name}", f"the first: {why}")
    right = margins(lm, tokenise(lm, taken)) > 0
    kept = taken
    if not mistaken:
        kept = [pair for pair, good in zip(taken, right.tolist(), strict=True) if good]
        wrongly = (pair for pair, good in zip(taken, right.tolist(), strict=True) if not good)
        refused |= {pair.clean: "the model prefers the wrong answer" for pair in wrongly}
    if not kept:
        raise UserError(f"{lm.name} prefers the wrong answer in every pair", "keep them, or others")
    return Fitting(kept, refused, float(right.float().mean()))


def margins(lm: LM, prompts: Prompts, batch: int = 64) -> Float[Tensor, " pairs"]:
    """Return the logit of each clean prompt's answer less that of the wrong one, or of the best."""
    found = torch.zeros(len(prompts))
    for some in prompts.batches(lm, batch):
        logits = lm.logits(some.clean.tokens, attention_mask=some.clean.mask, last=1)[:, -1].float()
        mine = logits.gather(1, some.answer[:, None])[:, 0]
        if some.wrong is not None:
            other = logits.gather(1, some.wrong[:, None])[:, 0]
        else:
            other = logits.scatter(1, some.answer[:, None], -torch.inf).amax(1)
        found[some.pairs] = (mine - other).cpu()
    return found
