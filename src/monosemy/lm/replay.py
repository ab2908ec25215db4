"""The same text through a model again and again, with edits: what comes before them runs once."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from functools import partial
from typing import Any

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn

from monosemy.lm.hooks import read, replace
from monosemy.lm.lm import LM


class Replay:
    """Logits of the same tokens, time after time, under edits at one hook point.

    `record` runs the whole model and keeps the output of the last block that nothing edited can
    change; `again` begins there. Where a model does something else with its first blocks than to
    pass one's output to the next, that would be wrong: whether the logits without an edit are the
    same, bit for bit, is tried on the first row of text, and if not, all of it runs every time.
    """

    def __init__(self, lm: LM, hookpoint: str) -> None:
        """Find the blocks before a hook point.

        Raises:
            UserError: unknown hook point.
        """
        self.lm = lm
        self._skipped = lm.blocks_before(hookpoint)
        self._kept: Any = None
        self._text: tuple[Tensor, Tensor | None] | None = None
        self._tried = not self._skipped

    def record(
        self,
        tokens: Int[Tensor, "batch time"],
        attention_mask: Bool[Tensor, "batch time"] | None = None,
        *,
        last: int | None = None,
    ) -> Float[Tensor, "batch some_time vocab"]:
        """Return the logits of a whole pass over text, which `again` repeats the end of.

        Edits in force may read, but must not change anything before the hook point. With `last`,
        only those of so many last positions are returned.
        """
        if not self._tried:
            self._try(tokens, attention_mask)
        return self._record(tokens, attention_mask, last)

    def again(
        self,
        rows: Int[Tensor, " rows"] | None = None,
        *,
        gradients: bool = False,
        last: int | None = None,
    ) -> Float[Tensor, "batch some_time vocab"]:
        """Return the logits of the text recorded last, with the edits now in force.

        Args:
            rows: of these rows of the text, each as often as it is named; None: of all.
            gradients: as for `LM.logits`; they reach what an edit at the hook point puts in.
            last: only those of so many last positions.
        """
        assert self._text is not None, "nothing was recorded"
        tokens, mask = self._text
        if rows is not None:
            tokens, mask = tokens[rows], None if mask is None else mask[rows]
        with self._short(rows):
            return self.lm.logits(tokens, attention_mask=mask, gradients=gradients, last=last)

    def _record(self, tokens: Tensor, mask: Tensor | None, last: int | None = None) -> Tensor:
        self._text = tokens, mask
        if not self._skipped:
            return self.lm.logits(tokens, attention_mask=mask, last=last)

        def keep(module: nn.Module, args: tuple, output: Any) -> None:
            activations = read(output)
            assert activations is not None
            self._kept = replace(output, activations.clone())  # later blocks may write into it

        # First in line, so that it is kept as it is before an edit.
        handle = self._skipped[-1].register_forward_hook(keep, prepend=True)
        try:
            return self.lm.logits(tokens, attention_mask=mask, last=last)
        finally:
            handle.remove()

    def _try(self, tokens: Tensor, mask: Tensor | None) -> None:
        self._tried = True
        whole = self._record(tokens[:1], None if mask is None else mask[:1])
        try:
            same = torch.equal(self.again(), whole)
        except Exception:  # whatever it is, the model cannot be cut there
            same = False
        if not same:
            self._skipped = []

    @contextmanager
    def _short(self, rows: Tensor | None) -> Iterator[None]:
        """Let the blocks before the hook point give what the last of them gave."""
        with ExitStack() as stack:
            for block in self._skipped:
                stack.enter_context(_answering(block, partial(self._answer, rows)))
            yield

    def _answer(self, rows: Tensor | None, *args: Any, **kwargs: Any) -> Any:
        kept = read(self._kept)
        assert kept is not None
        return replace(self._kept, kept.clone() if rows is None else kept[rows.to(kept.device)])


@contextmanager
def _answering(module: nn.Module, answer: Any) -> Iterator[None]:
    """Let a module give an answer without computing it; its hooks run as ever."""
    before = vars(module).get("forward")
    module.forward = answer
    try:
        yield
    finally:
        if before is None:
            del module.forward
        else:
            module.forward = before
