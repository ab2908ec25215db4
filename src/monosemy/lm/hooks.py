"""Plain module hooks: read or replace an output or input, stop a forward pass."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from monosemy.errors import UserError

Edit = Callable[[Float[Tensor, "batch time d"], Int[Tensor, "batch time"] | None], Tensor]
"""Activations and the token ids of this very forward call, to new activations of the same shape.

With a key-value cache these are the new tokens only. The ids are None where the model was given
none: images, or embeddings.
"""

INPUT = ".input"
"""Behind a module's path: what the module reads."""
STREAM = ".stream"
"""Behind a module's path: the residual stream, where that module reads it.

An edit of the module's input would change what the module makes of it and leave the stream as it
is; this one is written into the tensor that both are.
"""

PromptLength = int | Int[Tensor, " batch"]
"""How many tokens of every text are its prompt, or of each."""


@dataclass(frozen=True, slots=True)
class Call:
    """What the forward call that is running now was given.

    Attributes:
        tokens: ids; None where the model was given none.
        mask: attention mask of these tokens and those before; None where there is none.
        before: how many tokens the key-value cache holds; None where that is not known.
        prompt: length of the prompt, or of each row's, where that is known: where text is being
            generated, or is said to be; None elsewhere.
        special: ids of special tokens.
    """

    tokens: Int[Tensor, "batch time"] | None = None
    mask: Int[Tensor, "batch all_time"] | None = None
    before: int | None = 0
    prompt: PromptLength | None = None
    special: Int[Tensor, " special"] | None = None

    def text(self, x: Float[Tensor, "batch time d"]) -> Bool[Tensor, "batch time"]:
        """Return where the text is: not special tokens, not padding; all where no ids are known."""
        text = torch.ones(x.shape[:2], dtype=torch.bool, device=x.device)
        if self.tokens is not None and self.special is not None:
            text &= ~torch.isin(self.tokens, self.special.to(self.tokens.device)).to(x.device)
        mask = self._two_dimensional()
        if mask is not None:
            text &= mask[:, -x.shape[1] :].to(x.device).bool()
        return text

    def index(self, x: Float[Tensor, "batch time d"]) -> Int[Tensor, "batch time"]:
        """Return each token's place in its text, from 0; padding on the left does not count.

        Raises:
            UserError: the model's cache does not say how many tokens it holds.
        """
        if self.before is None:
            raise UserError(
                "this model's cache does not say where in the text a token stands",
                "write with use_cache=False, or edit all positions",
            )
        mask = self._two_dimensional()
        if mask is not None and mask.shape[1] == self.before + x.shape[1]:
            return (mask.to(x.device).long().cumsum(1) - 1)[:, self.before :]
        places = torch.arange(self.before, self.before + x.shape[1], device=x.device)
        return places.expand(x.shape[:2])

    def prompt_length(self) -> int | Int[Tensor, "batch 1"]:
        """Return how many tokens were read before the first that was written, all or by row.

        Raises:
            UserError: no text is being generated.
        """
        if self.prompt is None:
            raise UserError(
                "which tokens are the prompt is not known outside generation",
                "say how long it is with lm.prompted(length), or give a range of positions",
            )
        return self.prompt if isinstance(self.prompt, int) else self.prompt[:, None]

    def _two_dimensional(self) -> Tensor | None:
        return self.mask if self.mask is not None and self.mask.ndim == 2 else None


class _EverythingRead(Exception):
    """Ends a forward pass when nothing more is needed of it."""


def read(output: object) -> Tensor | None:
    """Return the activations in a module's output: the tensor, or the first item of a tuple."""
    first = output[0] if isinstance(output, tuple | list) and output else output
    return first if isinstance(first, Tensor) else None


def replace(output: Any, activations: Tensor) -> Any:
    """Return `output` with its activations replaced and its structure kept."""
    if isinstance(output, Tensor):
        return activations
    return type(output)((activations, *output[1:]))


def hook_at(
    model: nn.Module,
    path: str,
    act: Callable[[Tensor | None], Tensor | None],
    *,
    first: bool = False,
) -> RemovableHandle:
    """Call `act` with the activations at a place whenever a forward pass comes there.

    Args:
        model: where `path` leads from.
        path: of a module, for its output; with `INPUT` or `STREAM` behind it for what it reads.
        act: given the activations, or None where there are none; what it returns, if anything,
            takes their place.
        first: before other hooks.
    """
    side = _side(model, path)
    module = model.get_submodule(path.removesuffix(side))

    def after(module: nn.Module, args: tuple, output: Any) -> Any:
        made = act(read(output))
        return None if made is None else replace(output, made)

    def before(module: nn.Module, args: tuple, kwargs: dict[str, Any]) -> Any:
        is_first = bool(args) and isinstance(args[0], Tensor)
        name = "" if is_first else _tensor_keyword(kwargs)
        given = args[0] if is_first else kwargs.get(name)
        made = act(given)
        if given is None or made is None or made is given:
            return None
        if side == STREAM:
            given.copy_(made)
            return None
        return ((made, *args[1:]), kwargs) if is_first else (args, {**kwargs, name: made})

    if side:
        return module.register_forward_pre_hook(before, prepend=first, with_kwargs=True)
    return module.register_forward_hook(after, prepend=first)


def _side(model: nn.Module, path: str) -> str:
    """Return `INPUT` or `STREAM` where a path means one, or nothing: a module may be called so."""
    side = next((side for side in (INPUT, STREAM) if path.endswith(side)), "")
    parent, _, name = path.rpartition(".")
    return side if side and name not in model.get_submodule(parent)._modules else ""


def _tensor_keyword(kwargs: Mapping[str, Any]) -> str:
    """Return which keyword a module's activations come under, or nothing."""
    tensors = [name for name, value in kwargs.items() if isinstance(value, Tensor)]
    return "hidden_states" if "hidden_states" in tensors else next(iter(tensors), "")


def run_and_read(
    model: nn.Module, inputs: Mapping[str, Any], paths: Sequence[str]
) -> dict[str, Tensor]:
    """Run `model` until every place in `paths` was passed; return each one's first activations.

    Raises:
        UserError: a module did not run in this forward pass, or has no tensor there.
    """
    found: dict[str, Tensor] = {}

    def reader(path: str) -> Callable[[Tensor | None], None]:
        def act(activations: Tensor | None) -> None:
            if activations is not None and path not in found:
                found[path] = activations.clone()  # later code may change it in place (Falcon)
            if len(found) == len(paths):
                raise _EverythingRead

        return act

    handles = [hook_at(model, path, reader(path)) for path in paths]
    try:
        model(**inputs)
    except _EverythingRead:
        pass
    finally:
        for handle in handles:
            handle.remove()
    missing = [path for path in paths if path not in found]
    if missing:
        raise UserError(
            f"nothing to capture at `{missing[0]}`: the module did not run, or has no tensor there",
            "list what can be captured with lm.hookpoints(all=True)",
        )
    return found


class Editor:
    """The edits in force on one model: at most one hook a place, none when there is no edit."""

    def __init__(self, model: nn.Module, outermost: nn.Module) -> None:
        """Edit modules of `model`; `outermost` is the part whose forward call takes the tokens."""
        self._model = model
        self._outermost = outermost
        self.call = Call()
        self.prompt: PromptLength | None = None
        self._edits: dict[str, list[Edit]] = {}
        self._suspended = False

    @contextmanager
    def editing(self, path: str, edit: Edit) -> Iterator[None]:
        """Apply `edit` at `path`, as `hook_at` takes it, after the edits in force there."""
        edits = self._edits.setdefault(path, [])
        edits.append(edit)
        handle = None
        if len(edits) == 1:
            # First in line, so that whatever else reads this output (`output_hidden_states`,
            # a capture) reads it edited.
            handle = hook_at(self._model, path, self._all_edits(path), first=True)
        try:
            yield
        finally:
            edits.pop()
            if handle is not None:
                handle.remove()

    @contextmanager
    def suspended(self) -> Iterator[None]:
        """Apply no edit while the block runs."""
        before, self._suspended = self._suspended, True
        try:
            yield
        finally:
            self._suspended = before

    @contextmanager
    def seeing_calls(self, special: Int[Tensor, " special"]) -> Iterator[None]:
        """Know what each forward call is given while the block runs."""

        def before(module: nn.Module, args: tuple, kwargs: dict[str, Any]) -> None:
            tokens = kwargs.get("input_ids", args[0] if args else None)
            is_ids = isinstance(tokens, Tensor) and not tokens.is_floating_point()
            mask = kwargs.get("attention_mask")
            self.call = Call(
                tokens if is_ids else None,
                mask if isinstance(mask, Tensor) else None,
                _held(kwargs),
                self.prompt,
                special,
            )

        def after(module: nn.Module, args: tuple, output: object) -> None:
            self.call = Call()

        handles = [
            self._outermost.register_forward_pre_hook(before, with_kwargs=True),
            self._outermost.register_forward_hook(after, always_call=True),
        ]
        try:
            yield
        finally:
            for handle in handles:
                handle.remove()

    @contextmanager
    def prompted(self, length: PromptLength | None) -> Iterator[None]:
        """Say how many tokens of a text are its prompt while the block runs."""
        known, self.prompt = self.prompt, length
        try:
            yield
        finally:
            self.prompt = known

    def _all_edits(self, path: str) -> Callable[[Tensor | None], Tensor | None]:
        def act(activations: Tensor | None) -> Tensor | None:
            if self._suspended:
                return None
            if activations is None:
                raise UserError(f"nothing to edit at `{path}`: the module has no tensor there")
            for edit in self._edits[path]:
                edited = edit(activations, self.call.tokens)
                _check_shape(path, activations, edited)
                activations = edited.to(activations.dtype)
            return activations

        return act


def _held(kwargs: Mapping[str, Any]) -> int | None:
    """Return how many tokens the cache holds that a forward call is given; None: not known."""
    cache = kwargs.get("past_key_values")
    if cache is not None:
        length = getattr(cache, "get_seq_length", None)
        return int(length()) if length is not None else None
    return 0 if kwargs.get("cache_params") is None else None


def _check_shape(path: str, before: Tensor, after: object) -> None:
    if not isinstance(after, Tensor) or after.shape != before.shape:
        seen = tuple(after.shape) if isinstance(after, Tensor) else type(after).__name__
        raise UserError(
            f"the edit at `{path}` returned {seen}",
            f"it must return a tensor of the shape it was given, {tuple(before.shape)}",
        )


@torch.no_grad()
def measured_widths(
    model: nn.Module, inputs: Mapping[str, Any], batch: int, last: str | None = None
) -> dict[str, int]:
    """Run `model` once; return the width of every place with activations [batch, time, width].

    These are outputs, and under paths with `INPUT` behind them inputs, in the order in which they
    are there; with `last`, up to that module's output.
    """
    widths: dict[str, int] = {}

    def recorder(path: str) -> Callable[[Tensor | None], None]:
        def act(activations: Tensor | None) -> None:
            if activations is not None and activations.ndim == 3 and len(activations) == batch:
                widths.setdefault(path, activations.shape[-1])

        return act

    def stop(activations: Tensor | None) -> None:
        raise _EverythingRead

    modules = [path for path, _ in model.named_modules() if path]
    paths = [place for path in modules for place in (path, f"{path}{INPUT}")]
    handles = [hook_at(model, path, recorder(path)) for path in paths]
    if last is not None:
        handles.append(hook_at(model, last, stop))
    try:
        model(**inputs)
    except _EverythingRead:
        pass
    finally:
        for handle in handles:
            handle.remove()
    return widths
