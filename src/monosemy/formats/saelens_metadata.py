"""What SAELens's configuration says beside sizes: model, hook point, tokens; both ways."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from monosemy.coders import Dictionary
from monosemy.corpus import TokenPolicy
from monosemy.errors import UserError
from monosemy.formats.files import needed_count
from monosemy.formats.format import UNKNOWN, Given
from monosemy.formats.names import hub_model, lens_hookpoint, lens_model, our_hookpoint

SETTINGS = "cfg.json"
VERSION = "6.0.0"
"""The first whose `cfg.json` has its metadata apart; below it SAELens reads the flat layout."""
CENTRED = "center_writing_weights"

_RENAMED = {
    "hook_point": "hook_name",
    "hook_point_head_index": "hook_head_index",
    "hook_point_layer": "hook_layer",
    "activation_fn_str": "activation_fn",
}
_SEES = re.compile(r"gemma-3-\d\db|gemma-3-[4-9]b|-vl|vision|gemma-3n|gemma-4")
"""Models that see images too: their blocks are below another module."""
_RESIDUAL = re.compile(r".*hook_(embed|pos_embed|resid_pre|resid_mid|resid_post|attn_out|mlp_out)")
"""Hook points that writing weights write to."""
_RMS_NORMED = ("gemma", "llama", "mistral", "mixtral", "qwen", "phi-3", "olmo", "deepseek")
"""Models whose norms take no mean away: TransformerLens does not centre them when asked to."""
_TEXT, _FIELDS = (str, "text"), (Mapping, "fields by name")
_KINDS: dict[str, tuple[Any, str]] = {
    **dict.fromkeys(("model_name", "hook_name", "hf_hook_name"), _TEXT),
    **dict.fromkeys(("hook_name_out", "hf_hook_name_out", "dataset_path"), _TEXT),
    **dict.fromkeys(("model_from_pretrained_kwargs", "activation_fn_kwargs"), _FIELDS),
    "seqpos_slice": (list, "a list"),
    "context_size": (int, "a whole number"),
}
_HARMLESS = ("device", "n_devices", "device_map", "cache_dir", "token", "move_to_device")


def as_v6(settings: Mapping[str, Any]) -> dict[str, Any]:
    """Return a configuration in version 6's layout; the flat ones before lacked some fields."""
    if isinstance(settings.get("metadata"), Mapping):
        return {**settings, "metadata": _checked(settings["metadata"])}
    flat = {_RENAMED.get(name, name): value for name, value in settings.items()}
    flat = _checked(flat)
    hook = (flat.get("hook_name") or "").replace("{layer}", str(flat.get("hook_layer")))
    flat["hook_name"] = hook or None
    flat.setdefault("reshape_activations", "hook_z" if "hook_z" in hook else "none")
    flat.setdefault("prepend_bos", True)
    if "d_sae" not in flat and "expansion_factor" in flat:
        counts = [needed_count(flat, n, Path(SETTINGS)) for n in ("d_in", "expansion_factor")]
        flat["d_sae"] = counts[0] * counts[1]
    if isinstance(flat.get("normalize_activations"), bool):
        scaled = flat["normalize_activations"]
        flat["normalize_activations"] = "expected_average_only_in" if scaled else "none"
    if flat.get("activation_fn") == "topk":
        flat["architecture"] = "topk"
        flat.setdefault("k", (flat.get("activation_fn_kwargs") or {}).get("k"))
    return {**flat, "metadata": flat}


def _checked(said: Mapping[str, Any]) -> dict[str, Any]:
    """Return metadata whose fields that are read here are of the kinds they should be.

    Raises:
        UserError: one is not.
    """
    for name, (kind, what) in _KINDS.items():
        value = said.get(name)
        if value is not None and not isinstance(value, kind):
            raise UserError(f"`{name}` of `{SETTINGS}` is {value!r}", f"{what} was expected")
    places = said.get("seqpos_slice") or ()
    if (
        len(places) > 3
        or not all(p is None or isinstance(p, int) for p in places)
        or 0 in places[2:]
    ):
        raise UserError(
            f"`seqpos_slice` of `{SETTINGS}` is {places!r}", "start, stop and step were expected"
        )
    if (said.get("context_size") or 1) < 1:
        raise UserError(f"`context_size` of `{SETTINGS}` is {said['context_size']}", "at least 1")
    return dict(said)


@dataclass(frozen=True, slots=True, kw_only=True)
class Told:
    """What a configuration tells about what a dictionary was trained on."""

    model: str | None
    hookpoint: str | None
    target: str | None
    context: int | None
    policy: TokenPolicy
    corpus: dict[str, Any]
    centred: bool
    """Activations are those of a model whose writing weights were centred, and centring matters."""
    notes: list[str]


def told(settings: Mapping[str, Any], given: Given, *, is_transcoder: bool) -> Told:
    """Return what the metadata says, in our terms, and notes on what has none."""
    said: Mapping[str, Any] = settings["metadata"]
    model = given.model or hub_model(said["model_name"]) if said.get("model_name") else given.model
    hook, notes = said.get("hook_name"), []
    hookpoint = _hookpoint(hook, said.get("hf_hook_name"), model or "")
    target = None
    if is_transcoder:
        out = said.get("hook_name_out")
        target = _hookpoint(out, said.get("hf_hook_name_out"), model or "") or given.target
        if target is None:
            target = UNKNOWN
            notes.append("a transcoder, but it does not say what it explains: give --target")
    if said.get("hook_head_index") is not None:
        notes.append(
            f"it reads head {said['hook_head_index']} of `{hook}` alone, which is no hook point"
        )
    if settings.get("reshape_activations") == "hook_z" or "hook_z" in str(hook):
        notes.append("heads' outputs are joined into one vector, as the output projection has them")
    centred = _centred(said, given, model, is_transcoder, notes)
    policy = _policy(said, notes)
    source = said.get("dataset_path")
    return Told(
        model=model,
        hookpoint=hookpoint,
        target=target,
        context=said.get("context_size"),
        policy=policy,
        corpus={"source": source} if source else {},
        centred=centred,
        notes=notes,
    )


def _hookpoint(name: str | None, theirs: str | None, model: str) -> str | None:
    """Return our name, by TransformerLens's, or by that of `transformers` where there is one."""
    ours = our_hookpoint(name, model) if name else None
    if theirs and (ours is None or ours.startswith("blocks.")):
        return our_hookpoint(theirs, model)
    return ours


def _centred(
    said: Mapping[str, Any],
    given: Given,
    model: str | None,
    is_transcoder: bool,
    notes: list[str],
) -> bool:
    """Say whether activations are to be centred; note whatever else the model was loaded with."""
    arguments = said.get("model_from_pretrained_kwargs")
    for name, value in (arguments or {}).items():
        if name not in (CENTRED, *_HARMLESS) and value not in (None, False):
            notes.append(
                f"its model was loaded with {name}={value}: activations may differ from the "
                "plain model's"
            )
    hook = str(said.get("hook_name"))
    if given.centred is not None or _RESIDUAL.fullmatch(hook) is None:
        return bool(given.centred)
    if _is_rms_normed(model or ""):
        return False
    if arguments is None:
        notes.append(
            "it does not say whether the model's writing weights were centred; if they were, "
            "give --centred True"
        )
        return False
    if not arguments.get(CENTRED):
        return False
    if is_transcoder:
        notes.append("its model's writing weights were centred: what it explains has mean 0")
        return False
    notes.append("its model's writing weights were centred: activations' mean is taken away first")
    return True


def _policy(said: Mapping[str, Any], notes: list[str]) -> TokenPolicy:
    """Return which tokens were trained on; SAELens leaves special ones in unless told not to."""
    excluded = said.get("exclude_special_tokens") or False
    if isinstance(excluded, list):
        notes.append(f"tokens {excluded} were left out of training; here special ones are")
    if said.get("prepend_bos") is False:
        notes.append("rows of text did not begin with BOS")
    if said.get("disable_concat_sequences"):
        notes.append("documents were not joined to fill rows")
    start, stop, step = [*(said.get("seqpos_slice") or ()), None, None, None][:3]
    context = said.get("context_size")
    if context is not None:
        start, stop, step = slice(start, stop, step).indices(context)
        stop = None if stop == context else stop
    elif start or stop:
        notes.append(f"positions {start} to {stop} of a row were trained on, of unknown length")
        start, stop = 0, None
    if step not in (None, 1):
        notes.append(f"only every {step}th position of a row was trained on")
    first = None if stop is None else max(stop - (start or 0), 1)
    return TokenPolicy(special=not excluded, start=start or 0, first=first)


def metadata(dictionary: Dictionary, lost: list[str]) -> dict[str, Any]:
    """Return what a dictionary was trained on, in SAELens's terms; `lost` gets what has none."""
    provenance, policy = dictionary.provenance, dictionary.provenance.policy
    model = provenance.model
    hook = lens_hookpoint(provenance.hookpoint, model)
    if hook is None:
        lost.append(
            f"a name of TransformerLens for `{provenance.hookpoint}`: ours stands in its place"
        )
    stop = None if policy.first is None else policy.start + policy.first
    if policy.choose != "all" or policy.padding:
        lost.append(f"which tokens count: {policy.to_dict()}")
    centred = dictionary.coder.normalise == "centre"
    can_say = hook is not None and _RESIDUAL.fullmatch(hook) and not _is_rms_normed(model)
    if centred and not can_say:
        centred = False
        lost.append(
            "that activations' mean is taken away first: nothing there does so at this hook point, "
            "and features are others without"
        )
    if centred:
        lost.append(
            f"that activations' mean is taken away: load the model with {CENTRED}=True, as "
            "`model_from_pretrained_kwargs` asks"
        )
    said = {
        "sae_lens_version": VERSION,
        "sae_lens_training_version": None,
        "model_name": lens_model(model),
        "hf_model_name": model,
        "model_class_name": "HookedTransformer" if hook else "AutoModelForCausalLM",
        "hook_name": hook or provenance.hookpoint,
        "hf_hook_name": _module(provenance.hookpoint, model),
        "hook_head_index": None,
        "context_size": provenance.context,
        "prepend_bos": True,
        "exclude_special_tokens": not policy.special,
        "seqpos_slice": [policy.start, stop] if policy.start or stop else [None],
        "disable_concat_sequences": not provenance.packed,
        "model_from_pretrained_kwargs": {CENTRED: centred} if hook else {},
        "dataset_path": provenance.corpus.get("source"),
    }
    if dictionary.coder.W_skip is not None or dictionary.is_transcoder:
        said["hook_name_out"] = lens_hookpoint(provenance.explains, model) or provenance.explains
        said["hf_hook_name_out"] = _module(provenance.explains, model)
    return said


def _is_rms_normed(model: str) -> bool:
    return any(family in model.lower() for family in _RMS_NORMED)


def _module(hookpoint: str, model: str) -> str | None:
    """Return the path of a hook point's module in `transformers`, where a model's name tells it."""
    name = model.lower()
    found = re.fullmatch(r"layers\.(\d+)(?:\.(attn|mlp))?", hookpoint)
    if found is None:
        return None
    if "gpt2" in name:
        stem, attention = "transformer.h", "attn"
    elif "pythia" in name or "neox" in name:
        stem, attention = "gpt_neox.layers", "attention"
    elif _is_rms_normed(name) and not _SEES.search(name):
        stem, attention = "model.layers", "self_attn"
    else:
        return None
    part = {None: "", "attn": f".{attention}", "mlp": ".mlp"}[found[2]]
    return f"{stem}.{found[1]}{part}"
