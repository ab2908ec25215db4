"""Side effects of steering, on held-out text that it is not about."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from monosemy.corpus import TokenBatch
from monosemy.errors import UserError
from monosemy.lm import LM, Edit, Hooking, Replay
from monosemy.metrics import GroupSums, bootstrap_weights, interval
from monosemy.metrics.side_effects import EFFECTS, side_effects
from monosemy.metrics.table import MetricValue

Steering = Mapping[str, Edit] | Hooking
"""What `LM.edit` takes."""


class Neutral:
    """Rows of text, and what edits do to the predictions on them.

    Every figure is a mean over tokens with one to follow them in the same document; its interval
    is over documents.
    """

    def __init__(
        self, lm: LM, stream: Iterable[TokenBatch], *, tokens: int = 4096, draws: int = 1000
    ) -> None:
        """Take the first rows of a stream, such as `Provenance.stream` gives of held-out text.

        Args:
            lm: the model.
            stream: of text; it is read from the beginning.
            tokens: about how many to predict.
            draws: of the bootstrap.

        Raises:
            UserError: no token of the stream has another to follow it.
        """
        self.lm = lm
        self._batches: list[TokenBatch] = []
        self._groups: list[Tensor] = []
        known: dict[str, int] = {}
        left = tokens
        for batch in stream:
            per_row = batch.next_tokens()[1].sum(1).cumsum(0)
            batch = _first_rows(batch, int((per_row < left).sum()) + 1)
            self._batches.append(batch)
            counted = batch.next_tokens()[1]
            self._groups.append(_numbers(batch, counted, known))
            left -= int(counted.sum())
            if left <= 0:
                break
        self.documents = len(known)
        if not known:
            raise UserError("there is no text to measure side effects on", "give held-out text")
        self.tokens = tokens - left
        self._replays: dict[str, Replay] = {}
        self._last: tuple[tuple[int, str], Replay, Tensor] | None = None
        self._weights = bootstrap_weights(self.documents, draws)

    def measure(self, hookpoint: str, edits: Sequence[Steering]) -> list[dict[str, MetricValue]]:
        """Return `ce`, `kl` and `top1` (see `side_effects`) under each of some edits.

        Args:
            hookpoint: no edit reads or changes anything before it; blocks before it run once.
            edits: as `LM.edit` takes them.
        """
        sums = [GroupSums(1 + len(EFFECTS)) for _ in edits]
        for number, (batch, groups) in enumerate(zip(self._batches, self._groups, strict=True)):
            targets, counted = batch.next_tokens()
            target = targets[counted].to(self.lm.device)
            where = counted.to(self.lm.device)
            replay, original = self._recorded(number, hookpoint)
            for edit, its in zip(edits, sums, strict=True):
                with self.lm.edit(edit):
                    steered = replay.again()[where]
                _add(its, side_effects(original[where], steered, target), groups[counted])
        return [self._figures(its) for its in sums]

    def _recorded(self, number: int, hookpoint: str) -> tuple[Replay, Tensor]:
        """Return a batch's logits, and what repeats the end of the pass; the last ones are kept."""
        if self._last is None or self._last[0] != (number, hookpoint):
            batch = self._batches[number]
            replay = self._replays.setdefault(hookpoint, Replay(self.lm, hookpoint))
            original = replay.record(batch.tokens, batch.attention_mask)
            self._last = (number, hookpoint), replay, original
        return self._last[1:]

    def measure_prefix(self, prefix: str) -> dict[str, MetricValue]:
        """Return the same of a text put in front of every row.

        Raises:
            UserError: both together are longer than the model takes.
        """
        sums = GroupSums(1 + len(EFFECTS))
        ids = self.lm.encode(prefix)[0].cpu()
        special = int(ids[0]) in self.lm.special_ids
        for batch, groups in zip(self._batches, self._groups, strict=True):
            targets, counted = batch.next_tokens()
            target = targets[counted].to(self.lm.device)
            where = counted.to(self.lm.device)
            rows = batch.tokens.shape[0], len(ids)
            begins = special and bool((batch.tokens[:, 0] == ids[0]).all())
            rest = batch.tokens[:, 1:] if begins else batch.tokens
            mask = batch.attention_mask[:, -rest.shape[1] :]
            longer = torch.cat([ids.expand(rows), rest], 1)
            if longer.shape[1] > (self.lm.context_limit or longer.shape[1]):
                raise UserError(
                    f"a prefix of {len(ids)} tokens leaves no room for rows of {rest.shape[1]}",
                    f"`{self.lm.name}` takes {self.lm.context_limit} tokens; write a shorter one",
                )
            its = torch.cat([torch.ones(rows, dtype=torch.bool), mask], 1)
            original = self.lm.logits(batch.tokens, attention_mask=batch.attention_mask)[where]
            logits = self.lm.logits(longer, attention_mask=its)[:, -batch.tokens.shape[1] :]
            _add(sums, side_effects(original, logits[where], target), groups[counted])
        return self._figures(sums)

    def _figures(self, sums: GroupSums) -> dict[str, MetricValue]:
        own, drawn = sums.total(), sums.weighted(self._weights)
        means = own[0, 1:] / own[0, 0]
        with np.errstate(invalid="ignore"):
            resampled = drawn[:, 1:] / drawn[:, :1]
        ends = interval(dict(zip(EFFECTS, np.nan_to_num(resampled).T, strict=True)))
        return {
            name: MetricValue(float(mean), *ends[name])
            for name, mean in zip(EFFECTS, means, strict=True)
        }


def _add(sums: GroupSums, rows: Float[np.ndarray, "tokens effects"], groups: Tensor) -> None:
    sums.add(np.concatenate([np.ones((len(rows), 1)), rows], 1), groups.cpu().numpy())


def _numbers(batch: TokenBatch, counted: Tensor, known: dict[str, int]) -> Tensor:
    """Return the number of each token's document, of those with counted tokens alone."""
    numbers = torch.zeros(len(batch.documents) + 1, dtype=torch.long)
    for index in batch.document[counted].unique().tolist():
        numbers[index] = known.setdefault(batch.documents[index].id, len(known))
    return numbers[batch.document]  # -1 is the last


def _first_rows(batch: TokenBatch, rows: int) -> TokenBatch:
    return TokenBatch(
        tokens=batch.tokens[:rows],
        attention_mask=batch.attention_mask[:rows],
        counted=batch.counted[:rows],
        document=batch.document[:rows],
        start=batch.start[:rows],
        end=batch.end[:rows],
        documents=batch.documents,
        place=batch.place,
    )
