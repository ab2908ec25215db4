"""`LM`: a Hugging Face model, untouched, with named places to read and write."""

from __future__ import annotations

import copy
import inspect
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn
from transformers import (
    GenerationConfig,
    LogitsProcessorList,
    PreTrainedModel,
    PreTrainedTokenizerBase,
)
from transformers.generation import BaseStreamer

from monosemy.device import choose_device, fork_seed
from monosemy.errors import UserError
from monosemy.lm.hookpoints import HookPoint, find_layout
from monosemy.lm.hooks import (
    Call,
    Edit,
    Editor,
    PromptLength,
    measured_widths,
    run_and_read,
)
from monosemy.lm.load import commit_of, load_tokenizer
from monosemy.lm.many import Draws, padded_left, upto_end
from monosemy.lm.part import last_needed, load_part, loaded_in_part, modules_after
from monosemy.lm.unembedding import Unembedding, measure_norm

Inputs = Tensor | Mapping[str, Tensor]
"""Token ids [batch, time], or a model's named inputs (`pixel_values` for images)."""


@runtime_checkable
class Steerable(Protocol):
    """What `LM.steer` needs of a dictionary."""

    @property
    def hookpoint(self) -> str: ...

    def steer(
        self, x: Tensor, *, feature: int, scale: float, positions: Tensor | None = None
    ) -> Tensor: ...


@runtime_checkable
class Hooking(Protocol):
    """What `LM.edit` needs of an edit that says itself where it acts."""

    def hooks(self, lm: LM) -> Mapping[str, Edit]:
        """Return the functions to put in a model, by hook point."""
        ...


@dataclass(frozen=True, slots=True)
class Continuation:
    """What a model wrote after a prompt.

    Attributes:
        tokens: ids [time], the prompt's in front; an end-of-text token that was written is there.
        start: index of the first that was written.
        text: what was written, without special tokens.
    """

    tokens: Int[Tensor, " time"]
    start: int
    text: str


class LM:
    """A model and its tokenizer, read and edited at hook points.

    The model stays what it is: plain module hooks are placed for one forward pass (`capture`) or
    one block (`edit`, `steer`) and taken away again. Works for language models, encoders and
    vision models of `transformers`, fine-tuned, quantised or wrapped by PEFT.
    """

    def __init__(
        self,
        model: str | Path | nn.Module,
        tokenizer: PreTrainedTokenizerBase | str | Path | None = None,
        *,
        revision: str | None = None,
        dtype: torch.dtype | None = None,
        device: str | None = None,
        upto: str | Iterable[str] | None = None,
    ) -> None:
        """Load a model, or take one.

        Args:
            model: `builtin:stdlib`, a folder, a Hub id, or a model object, which is put in
                evaluation mode and otherwise left as it is.
            tokenizer: a tokenizer or where to find one. Default: the loaded model's own. A model
                object without one can do all but `encode`, `generate` and know special tokens.
            revision: a Hub branch, tag or commit.
            dtype: of the weights, for a model that is loaded. Default: fp32 on a CPU, the
                checkpoint's own on a GPU.
            device: where to run. Default: the best there is; a model object stays where it is.
            upto: hook points, if no others will be asked for: later blocks are not loaded, nor is
                the head, unless it shares its weights with the embedding. What is there has the
                names and values of the whole model; what is not is refused. Encoder-decoders, and
                models that are read outside their blocks, are loaded whole all the same.

        Raises:
            UserError: no such model, tokenizer, device or hook point; a module that holds no
                `transformers` model; `dtype` or `upto` with a model object.
        """
        self.model: nn.Module
        self._last: HookPoint | None = None
        if isinstance(model, nn.Module):
            if upto is not None:
                raise UserError(
                    "`upto` was given with a model object, which is loaded already",
                    "leave it out, or load the model by name",
                )
            if dtype is not None:
                # `model.to(dtype)` would round what the model keeps in fp32 on purpose (rotary
                # frequencies), and change the object for good.
                raise UserError(
                    "`dtype` was given with a model object, which has one",
                    "leave it out; to change it, load the model by name with that dtype",
                )
            self._core = _transformers_model(model)
            self._layout = find_layout(model, self._core)
            self.model = model.eval()
            if device is not None:
                model.to(choose_device(device))
            self.name = self._core.name_or_path or type(self._core).__name__
        else:
            part = load_part(model, upto, revision=revision, dtype=dtype, device=device)
            self.model = self._core = part.model
            self._layout, self._last = part.layout, part.last
            self.name = str(model)
            revision = commit_of(model, revision)
            if tokenizer is None and self._core.main_input_name == "input_ids":
                tokenizer = model
        if isinstance(tokenizer, str | Path):
            tokenizer = load_tokenizer(tokenizer, revision=revision)
        self.tokenizer = tokenizer
        self.config = self._core.config
        self.revision = getattr(self.config, "_commit_hash", None) or revision
        self._editor = Editor(self.model, self._core)
        self._widths: dict[str, int] = {}
        self.rows_at_once: int | None = None
        """Rows of text that the device's memory holds in one pass; None: more were never asked."""

    def __repr__(self) -> str:
        layers = f"{self.n_layers} layers" + (f", loaded up to {self.upto}" if self.upto else "")
        return f"LM({self.name!r}, {layers}, width {self._layout.width})"

    @property
    def device(self) -> torch.device:
        """Where inputs go."""
        return next(self.model.parameters()).device

    @property
    def n_layers(self) -> int:
        """The number of blocks; of the whole model, also where a part was loaded."""
        return self._layout.n_layers

    @property
    def upto(self) -> str | None:
        """The last hook point of a model that was loaded in part; None for a whole one."""
        return self._last.name if self._last else None

    def require_whole(self, what: str) -> None:
        """Refuse what needs the whole model where only a part was loaded.

        Raises:
            UserError: the model was loaded up to some hook point.
        """
        if self._last is not None:
            raise loaded_in_part(what, self._last.name)

    def count_parameters(self, upto: str | None = None) -> int:
        """Return the number of parameters; of those that loading up to a hook point would hold."""
        last = None if upto is None else last_needed(upto, self._core, self._layout)
        after = modules_after(last, self._core, self._layout) if last is not None else []
        held = {
            parameter: parameter.numel()
            for name, parameter in self.model.named_parameters(remove_duplicate=False)
            if not name.startswith(tuple(f"{path}." for path in after))
        }
        return sum(held.values())

    @property
    def is_causal(self) -> bool:
        """Whether the model predicts the next token: it can generate, and be scored in nats."""
        generates = self._core.can_generate() and hasattr(self.model, "generate")
        return generates and not getattr(self.config, "is_encoder_decoder", False)

    @property
    def special_ids(self) -> frozenset[int]:
        """The ids of the tokenizer's special tokens; empty without a tokenizer."""
        return frozenset(self.tokenizer.all_special_ids if self.tokenizer is not None else ())

    @property
    def context_limit(self) -> int | None:
        """The most tokens the model was made for; None where there is no limit (Mamba)."""
        return getattr(self.config.get_text_config(), "max_position_embeddings", None)

    def reinitialised(self, seed: int = 0) -> LM:
        """Return a model of the same configuration that has learned nothing, and this tokenizer.

        Its weights are drawn as those of a new model of its class are, in fp32; it is whole, also
        where a part was loaded. Its name says that it is random.
        """
        with fork_seed(seed):
            model = type(self._core)(copy.deepcopy(self.config))
        random = LM(model, self.tokenizer, device=str(self.device))
        random.name = f"{self.name}, random weights"
        return random

    # --- hook points ------------------------------------------------------------------------

    def hookpoints(self, all: bool = False) -> list[HookPoint]:
        """Return the hook points: `embed`, and per block `layers.N.attn`, `.mlp` and `layers.N`.

        Those that people read from a module's input are there too, as `layers.N.mlp.input`; behind
        the name of any module, `.input` means what it reads.

        Args:
            all: also return every other module whose output is [batch, time, width], in the order
                in which they run. Costs one small forward pass, once.
        """
        standard = [point for point in self._layout.hookpoints if self._holds(point.path)]
        if not all:
            return standard
        taken = {point.path for point in standard}
        outputs = (path for path in self._measured_widths() if path in self._layout.modules)
        others = (path for path in outputs if path not in taken)
        return [*standard, *(self._module_hookpoint(path) for path in others)]

    def hookpoint(self, name: str) -> HookPoint:
        """Return the hook point that `name` means: a name, an alias or a module path.

        Raises:
            UserError: unknown (the nearest names are suggested), a module whose output, or input,
                is not [batch, time, width], or one after the last that was loaded.
        """
        found = self._layout.resolve(name)
        if not self._holds(found if isinstance(found, str) else found.path):
            raise loaded_in_part(f"no `{name}`", str(self.upto))
        return found if isinstance(found, HookPoint) else self._module_hookpoint(found)

    def blocks_before(self, name: str) -> list[nn.Module]:
        """Return the blocks that an edit at a hook point leaves as they are, in their order.

        Where the hook point is a block's own output, that block is among them. None where it is
        not known when the hook point's module runs.

        Raises:
            UserError: unknown hook point.
        """
        path = self.hookpoint(name).path
        stage, modules = self._layout.stage_of(path), self._layout.modules
        paths = [f"{self._layout.blocks}.{i}" for i in range(stage or 0)]
        if path == f"{self._layout.blocks}.{stage}":
            paths.append(path)
        return [modules[path] for path in paths]

    def _holds(self, path: str) -> bool:
        """Say whether a module is there and runs no later than the last that was loaded."""
        if self._last is None:
            return True
        stage, last = self._layout.stage_of(path), self._layout.stage_of(self._last.path)
        assert last is not None
        return path in self._measured_widths() if stage is None else stage <= last

    def _module_hookpoint(self, path: str) -> HookPoint:
        widths = self._measured_widths()
        if path not in widths:
            raise UserError(
                f"`{path}` is no hook point: it is not [batch, time, width]",
                "list those that are with lm.hookpoints(all=True)",
            )
        name = self._layout.name_of(path)
        return HookPoint(name, path, widths[path], (path,) if path != name else ())

    def _measured_widths(self) -> dict[str, int]:
        if not self._widths:
            batch, size = 2, 3
            if self._takes_images:
                side, channels = self.config.image_size, self.config.num_channels
                inputs: Inputs = {"pixel_values": torch.zeros(batch, channels, side, side)}
            else:
                inputs = torch.zeros(batch, size, dtype=torch.long)
            last = self._last.path if self._last else None
            try:
                self._widths = measured_widths(
                    self.model, self._arguments(inputs, None), batch, last
                )
            except RuntimeError as error:
                if self.device.type != "meta":
                    raise
                raise UserError(
                    f"`{self.name}` takes weights to be run, and has none here",
                    "name one of the hook points that `monosemy hookpoints MODEL` lists",
                ) from error
        return self._widths

    # --- reading ----------------------------------------------------------------------------

    @torch.no_grad()
    def capture(
        self, inputs: Inputs, hookpoints: Iterable[str], *, attention_mask: Tensor | None = None
    ) -> dict[str, Float[Tensor, "batch time d"]]:
        """Return activations at hook points, from one forward pass that stops after the last.

        Args:
            inputs: token ids [batch, time], or a dict of the model's inputs.
            hookpoints: names, aliases or module paths.
            attention_mask: bool or int [batch, time], false on padding.

        Returns:
            Activations [batch, time, width] in the model's dtype, under the names asked for.

        Raises:
            UserError: unknown hook point, or one that this forward pass does not reach.
        """
        names = [hookpoints] if isinstance(hookpoints, str) else list(hookpoints)
        paths = {name: self.hookpoint(name).path for name in names}
        if not paths:
            return {}
        arguments = self._arguments(inputs, attention_mask)
        found = run_and_read(self.model, arguments, list(dict.fromkeys(paths.values())))
        return {name: found[path] for name, path in paths.items()}

    def logits(
        self,
        inputs: Inputs,
        *,
        attention_mask: Tensor | None = None,
        gradients: bool = False,
        last: int | None = None,
    ) -> Float[Tensor, "*batch_time vocab"]:
        """Return the model's logits: [batch, time, vocab], for a classifier [batch, classes].

        With `gradients`, they reach whatever an edit has put in, and no weights. With `last`, only
        those of so many last positions; most models then compute no others.

        Raises:
            UserError: the model has no head, or was loaded in part.
        """
        self.require_whole("no logits")
        arguments = self._arguments(inputs, attention_mask)
        if (
            last is not None
            and "logits_to_keep" in inspect.signature(self._core.forward).parameters
        ):
            arguments["logits_to_keep"] = last
        with self._recording(gradients):
            output = self.model(**arguments)
        if not hasattr(output, "logits"):
            raise UserError(
                f"a {type(self._core).__name__} gives no logits",
                "load the model with its head (for language: a ...ForCausalLM class)",
            )
        return output.logits if last is None else output.logits[:, -last:]

    @contextmanager
    def _recording(self, gradients: bool) -> Iterator[None]:
        """Record for gradients, but of no weights, or record nothing."""
        trained = [p for p in self.model.parameters() if p.requires_grad] if gradients else []
        for parameter in trained:
            parameter.requires_grad_(False)
        try:
            with torch.set_grad_enabled(gradients):
                yield
        finally:
            for parameter in trained:
                parameter.requires_grad_(True)

    @property
    def _takes_images(self) -> bool:
        return self._core.main_input_name == "pixel_values"

    def _arguments(self, inputs: Inputs, attention_mask: Tensor | None) -> dict[str, Any]:
        """Return the arguments of a forward call, on the model's device, without a cache."""
        named: dict[str, Any] = {"input_ids": inputs} if isinstance(inputs, Tensor) else {**inputs}
        if attention_mask is not None:
            named["attention_mask"] = attention_mask
        for name, value in named.items():
            if isinstance(value, Tensor):
                named[name] = value.to(self.device)
        if named.get("input_ids") is not None and named["input_ids"].ndim != 2:
            raise UserError(
                f"token ids have shape {tuple(named['input_ids'].shape)}",
                "they must be [batch, time]; add a batch dimension with tokens[None]",
            )
        accepted = inspect.signature(self._core.forward).parameters
        if "use_cache" in accepted:
            named.setdefault("use_cache", False)
        mask = named.get("attention_mask")
        if mask is not None:
            named["attention_mask"] = mask = mask.long()
            # A model with learned positions would count from the padding.
            if "position_ids" in accepted and self.is_causal and not bool(mask[:, 0].all()):
                named.setdefault("position_ids", (mask.cumsum(-1) - 1).clamp(min=0))
        return named

    # --- writing ----------------------------------------------------------------------------

    @contextmanager
    def edit(self, *edits: Mapping[str, Edit] | Hooking) -> Iterator[None]:
        """Replace activations in every forward pass of the model while the block runs.

        An edit maps hook points to functions `edit(x, tokens) -> x`, with `x` [batch, time, width]
        and `tokens` the ids [batch, time] of that forward call (see `Edit`); or it is an object
        that says so itself, such as a `FeatureEdit`. Of one hook point, edits are applied in their
        order, those of an outer block first. Afterwards nothing stays hooked, whatever happened in
        the block.

        Raises:
            UserError: unknown hook point; an edit that changes the shape.
        """
        maps = [edit if isinstance(edit, Mapping) else edit.hooks(self) for edit in edits]
        resolved = [(self.hookpoint(n).path, edit) for m in maps for n, edit in m.items()]
        special = torch.tensor(sorted(self.special_ids), dtype=torch.long, device=self.device)
        with ExitStack() as stack:
            stack.enter_context(self._editor.seeing_calls(special))
            for path, edit in resolved:
                stack.enter_context(self._editor.editing(path, edit))
            yield

    @contextmanager
    def unedited(self) -> Iterator[None]:
        """Leave out all edits while the block runs: the model as it is."""
        with self._editor.suspended():
            yield

    @property
    def call(self) -> Call:
        """What the forward call that is running now was given, for edits to ask."""
        return self._editor.call

    @contextmanager
    def prompted(self, length: PromptLength) -> Iterator[None]:
        """Say how many tokens of a text are its prompt, as generation does by itself.

        Edits of the prompt, or of what was generated, then act on text that is read again; of
        several texts, each row has its own length, padding not counted.
        """
        if isinstance(length, Tensor):
            length = length.to(self.device)
        with self._editor.prompted(length):
            yield

    @contextmanager
    def steer(self, dictionary: Steerable, *, feature: int, scale: float) -> Iterator[None]:
        """Turn one feature of a dictionary up or down in every forward pass of the block.

        Special tokens are left alone: features mean nothing there, and a changed BOS changes every
        token after it.
        """

        def steered(x: Tensor, tokens: Tensor | None) -> Tensor:
            positions = None if tokens is None else self.call.text(x)
            return dictionary.steer(x, feature=feature, scale=scale, positions=positions)

        with self.edit({dictionary.hookpoint: steered}):
            yield

    # --- text -------------------------------------------------------------------------------

    def encode(self, text: str) -> Int[Tensor, "1 time"]:
        """Return the token ids of a text, with BOS in front if the tokenizer has one.

        Raises:
            UserError: the model has no tokenizer.
        """
        if self.tokenizer is None:
            raise UserError(f"`{self.name}` has no tokenizer", "pass one: LM(model, tokenizer=...)")
        ids = list(self.tokenizer(text)["input_ids"])
        bos = self.tokenizer.bos_token_id
        if bos is not None and ids[:1] != [bos]:
            ids.insert(0, bos)
        return torch.tensor([ids], dtype=torch.long, device=self.device)

    def generate(
        self,
        prompt: str,
        *,
        max_new_tokens: int = 60,
        temperature: float = 0.0,
        seed: int = 0,
        use_cache: bool = True,
    ) -> str:
        """Return the model's continuation of a prompt, without the prompt.

        As `write`, whose arguments these are.

        Raises:
            UserError: as `write`.
        """
        return self.write(
            prompt,
            max_new_tokens=max_new_tokens,
            temperature=temperature,
            seed=seed,
            use_cache=use_cache,
        ).text

    def write(
        self,
        prompt: str,
        *,
        max_new_tokens: int = 60,
        temperature: float = 0.0,
        seed: int = 0,
        use_cache: bool = True,
        heard: Callable[[str], None] | None = None,
    ) -> Continuation:
        """Continue a prompt.

        Stops at the end-of-text token, after `max_new_tokens`, or at the model's context limit.
        The model's own sampling defaults (top-p, repetition penalty) are not used, so that what
        an edit does is not mixed with what they do.

        Args:
            prompt: the text to continue.
            max_new_tokens: the most tokens to write.
            temperature: 0 takes the likeliest token each time; otherwise tokens are drawn.
            seed: of the draw.
            use_cache: keep keys and values; without, the text is the same and takes longer.
            heard: called after every token with all that is written so far; what it raises ends
                the writing. A character whose bytes are not all written yet shows as U+FFFD.

        Raises:
            UserError: not a generating model, one loaded in part, no tokenizer, or a prompt empty
                or too long.
        """
        self._check_writes()
        tokens = self.encode(prompt)
        room = self._room_after(tokens.shape[1])
        settings = self._settings(min(max_new_tokens, room), temperature, use_cache)
        before = tokens[0].tolist()
        streamer = _Streamer(lambda ids: heard(self._continuation(before, ids))) if heard else None
        generate: Any = self.model.generate
        with self._editor.prompted(len(before)), fork_seed(seed):
            output = generate(
                input_ids=tokens,
                attention_mask=torch.ones_like(tokens),
                generation_config=settings,
                streamer=streamer,
            )
        text = self._continuation(before, output[0].tolist())
        return Continuation(output[0], len(before), text)

    def write_many(
        self,
        prompts: Sequence[str],
        *,
        max_new_tokens: int = 60,
        temperature: float = 0.0,
        seeds: int | Sequence[int] = 0,
        use_cache: bool = True,
        rows: int = 64,
    ) -> list[Continuation]:
        """Continue many prompts at once, each as `write` would: several times as fast.

        Prompts are padded on the left, which every model with an attention mask leaves out of
        account. Rounding differs from that of one text alone, so a token may differ where two
        are equally likely. Where a prompt is so long that the model's context limit comes before
        `max_new_tokens`, those in its batch end there too.

        Args:
            prompts: the texts to continue.
            max_new_tokens: the most tokens to write for each.
            temperature: 0 takes the likeliest token each time; otherwise tokens are drawn.
            seeds: of the draws, one for all or one a prompt.
            use_cache: keep keys and values.
            rows: prompts in one batch.

        Raises:
            UserError: as `write`, of any prompt; or as many seeds as prompts are not given.
        """
        self._check_writes()
        each = [seeds] * len(prompts) if isinstance(seeds, int) else list(seeds)
        if len(each) != len(prompts):
            raise UserError(
                f"{len(each)} seeds for {len(prompts)} prompts", "give one for all or one for each"
            )
        encoded = [self.encode(prompt)[0] for prompt in prompts]
        for tokens in encoded:
            self._room_after(len(tokens))
        written: list[Continuation] = []
        for first in range(0, len(encoded), rows):
            batch = encoded[first : first + rows], each[first : first + rows]
            written += self._write_batch(*batch, max_new_tokens, temperature, use_cache)
        return written

    def _write_batch(
        self,
        prompts: Sequence[Tensor],
        seeds: Sequence[int],
        max_new_tokens: int,
        temperature: float,
        use_cache: bool,
    ) -> list[Continuation]:
        tokens, mask = padded_left(prompts, self._pad_id())
        room = self._room_after(tokens.shape[1])
        drawn = [] if temperature <= 0 else [Draws(seeds, temperature, self.device)]
        generate: Any = self.model.generate
        lengths = torch.tensor([len(prompt) for prompt in prompts], device=self.device)
        with self._editor.prompted(lengths):
            output = generate(
                input_ids=tokens,
                attention_mask=mask,
                generation_config=self._settings(min(max_new_tokens, room), 0.0, use_cache),
                logits_processor=LogitsProcessorList(drawn),
            )
        end = self._core.generation_config.eos_token_id
        ends = [end] if isinstance(end, int) else list(end or ())
        written = []
        for prompt, row in zip(prompts, output, strict=True):
            whole = row[tokens.shape[1] - len(prompt) :]
            whole = upto_end(whole, len(prompt), ends)
            text = self._continuation(prompt.tolist(), whole.tolist())
            written.append(Continuation(whole, len(prompt), text))
        return written

    def _check_writes(self) -> None:
        self.require_whole("cannot generate text")
        if not self.is_causal:
            raise UserError(
                f"a {type(self._core).__name__} cannot generate text",
                "that takes a causal language model",
            )

    def _settings(self, tokens: int, temperature: float, use_cache: bool) -> GenerationConfig:
        """Return how to write, the model's own sampling defaults overridden."""
        greedy = temperature <= 0
        return GenerationConfig(
            max_new_tokens=tokens,
            do_sample=not greedy,
            temperature=1.0 if greedy else temperature,
            top_k=50 if greedy else 0,
            top_p=1.0,
            repetition_penalty=1.0,
            num_beams=1,
            use_cache=use_cache,
            pad_token_id=self._pad_id(),
        )

    def _room_after(self, count: int) -> int:
        limit = self.context_limit
        if count == 0:
            raise UserError("the prompt is empty", "write at least one word")
        if limit is not None and count >= limit:
            raise UserError(
                f"the prompt has {count} tokens", f"`{self.name}` takes fewer than {limit}"
            )
        return 10**9 if limit is None else limit - count

    def _pad_id(self) -> int:
        tokenizer = self.tokenizer
        ids = (tokenizer.pad_token_id, tokenizer.eos_token_id) if tokenizer is not None else ()
        return next((id for id in ids if id is not None), 0)

    def _continuation(self, prompt: list[int], whole: list[int]) -> str:
        """Decode what follows the prompt.

        Not the new tokens alone where that can be helped: some tokenizers then drop a space.
        """
        before, text = self._decode(prompt), self._decode(whole)
        if text.startswith(before):
            return text[len(before) :]
        return self._decode(whole[len(prompt) :])

    def _decode(self, ids: list[int]) -> str:
        tokenizer: Any = self.tokenizer
        return tokenizer.decode(ids, skip_special_tokens=True)

    # --- the way in and out -----------------------------------------------------------------

    @property
    def has_head(self) -> bool:
        """Whether `unembedding` has something to return."""
        whole = self._last is None and self.is_causal
        return whole and self._core.get_output_embeddings() is not None

    def token_embedding(self) -> Float[Tensor, "vocab d"] | None:
        """Return the vectors of all tokens as stored, in fp32; None where no tokens are read."""
        embedding = self._layout.modules.get(self._layout.token_embedding)
        if not isinstance(embedding, nn.Embedding):
            return None
        return embedding.weight.detach().float()

    def unembedding(self) -> Unembedding:
        """Return what the logit lens needs: the unembedding matrix and the final norm's gain.

        Raises:
            UserError: not a causal language model, or one loaded in part.
        """
        self.require_whole("no unembedding")
        head = self._core.get_output_embeddings() if self.is_causal else None
        if head is None:
            raise UserError(
                f"a {type(self._core).__name__} has no unembedding",
                "the logit lens takes a causal language model with its head",
            )
        weight = head.weight.detach().float()
        bias = getattr(head, "bias", None)
        norm = next((p for p in self._layout.hookpoints if p.name == "final_norm"), None)
        gain, centres = None, False
        if norm is not None:
            gain, centres = measure_norm(self._layout.modules[norm.path], norm.width)
        return Unembedding(weight, gain, None if bias is None else bias.detach().float(), centres)


class _Streamer(BaseStreamer):
    """Gathers the prompt's ids and those of each new token, and passes all on after each."""

    def __init__(self, heard: Callable[[list[int]], None]) -> None:
        self._ids: list[int] = []
        self._heard = heard

    def put(self, value: Tensor) -> None:
        is_prompt = not self._ids
        self._ids += value.flatten().tolist()
        if not is_prompt:
            self._heard(self._ids)

    def end(self) -> None:
        """All was passed on."""


def _transformers_model(model: nn.Module) -> PreTrainedModel:
    """Return the `transformers` model in a module: itself, or what a wrapper (PEFT) holds.

    Wrappers call it from `generate` without passing by their own forward.
    """
    for module in model.modules():
        if isinstance(module, PreTrainedModel):
            return module
    raise UserError(
        f"a {type(model).__name__} is no `transformers` model",
        "pass a PreTrainedModel, a folder that one was saved in, or a Hub id",
    )
