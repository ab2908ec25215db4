"""Find a model and its tokenizer: shipped with the package, in a folder, or on the Hub."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import torch
import transformers
from huggingface_hub import try_to_load_from_cache
from huggingface_hub.errors import HFValidationError, HTTPError
from safetensors import SafetensorError
from transformers import (
    AutoConfig,
    AutoModel,
    AutoModelForCausalLM,
    AutoModelForMaskedLM,
    AutoTokenizer,
    PreTrainedModel,
    PreTrainedTokenizerBase,
)

from monosemy.device import choose_device
from monosemy.errors import UserError, nearest, reason

BUILTIN = Path(__file__).parent / "builtin"
_LOADING_ERRORS = (OSError, ValueError, KeyError, HTTPError, HFValidationError)


def load_model(
    name: str | Path,
    *,
    revision: str | None = None,
    dtype: torch.dtype | None = None,
    device: str | None = None,
    kind: type[PreTrainedModel] | None = None,
) -> PreTrainedModel:
    """Load a model in evaluation mode; code that comes with a model is never run.

    Args:
        name: `builtin:stdlib`, a folder, or a Hub id.
        revision: a Hub branch, tag or commit.
        dtype: default: fp32 on a CPU (and for `builtin:`), the checkpoint's own elsewhere.
        device: default: the best there is.
        kind: the class to load it as; default what `model_class` says.

    Raises:
        UserError: no such model, it cannot be read, or weights are missing from it.
    """
    where = choose_device(device)
    source = locate(name)
    config = _from_hub(AutoConfig, source, revision)
    in_full = where.type != "cuda" or str(name).startswith("builtin:")
    settings: dict[str, Any] = {"dtype": dtype or (torch.float32 if in_full else "auto")}
    if getattr(config, "quantization_config", None) is not None:
        settings["device_map"] = {"": where}  # quantised weights cannot be moved once loaded
    loader = kind or model_class(config)
    model, report = _from_hub(loader, source, revision, output_loading_info=True, **settings)
    missing = [key for key in report["missing_keys"] if "pooler" not in key]
    if missing:
        raise UserError(
            f"`{name}` lacks {len(missing)} weights of a {type(model).__name__}: {missing[0]} ...",
            "they would be random; is the checkpoint whole, and its config.json the right one?",
        )
    return model.eval() if "device_map" in settings else model.to(where).eval()


def empty_model(name: str | Path, *, revision: str | None = None) -> PreTrainedModel:
    """Build a model from its configuration alone, without weights, on the device `meta`.

    Args:
        name: a config.json, or what `load_model` takes.
        revision: a Hub branch, tag or commit.

    Raises:
        UserError: there is no such file or model, or `transformers` makes no model of it.
    """
    path = Path(name).expanduser()
    if path.suffix == ".json" and not path.is_file():
        raise UserError(f"no file `{name}`", "give a model's config.json")
    try:
        # `local_files_only`: a file is enough; code that comes with a model is never run.
        if path.is_file():
            config = AutoConfig.from_pretrained(str(path), local_files_only=True)
        else:
            config = _from_hub(AutoConfig, locate(name), revision)
        kind = model_class(config)
        build = kind._from_config if issubclass(kind, PreTrainedModel) else kind.from_config
        with torch.device("meta"):
            model = build(config)
    except (*_LOADING_ERRORS, TypeError, AttributeError, RuntimeError) as error:
        raise UserError(
            f"`{name}` makes no model: {reason(error)}",
            "give the config.json of a Hugging Face model",
        ) from error
    return model.eval()


def load_tokenizer(name: str | Path, *, revision: str | None = None) -> PreTrainedTokenizerBase:
    """Load a tokenizer by the name of a model, or of a folder that holds one.

    Raises:
        UserError: there is none.
    """
    try:
        return _from_hub(AutoTokenizer, locate(name), revision)
    except UserError as error:
        raise UserError(
            f"no tokenizer found for `{name}`",
            "pass one, or the folder or Hub id that has it: LM(model, tokenizer=...)",
        ) from error


def locate(name: str | Path) -> str:
    """Return the folder or Hub id that `name` means.

    Raises:
        UserError: it names a built-in model or a folder that does not exist.
    """
    text = str(name)
    if text.startswith("builtin:"):
        return str(_builtin(text.removeprefix("builtin:")))
    path = Path(name).expanduser()
    if path.is_dir():
        if not (path / "config.json").exists() and not (path / "tokenizer.json").exists():
            raise UserError(
                f"`{name}` is a folder without a model: it has no config.json",
                "give the folder that `model.save_pretrained(folder)` wrote",
            )
        return str(path)
    if isinstance(name, Path) or text.startswith((".", "~", os.sep)) or text.count("/") > 1:
        raise UserError(
            f"no such model folder: `{name}`",
            "give a folder with config.json, a Hub id such as `gpt2`, or `builtin:stdlib`",
        )
    return text


def commit_of(name: str | Path, revision: str | None = None) -> str | None:
    """Return the commit of a model that was loaded from the Hub; what was asked for elsewhere."""
    where = locate(name)
    if Path(where).is_dir():
        return revision
    found = try_to_load_from_cache(where, "config.json", revision=revision)
    return Path(found).parent.name if isinstance(found, str) else revision


def model_class(config: Any) -> Any:
    """Return the class to load a checkpoint with: its own, or the fullest that fits its config."""
    named = [getattr(transformers, name, None) for name in config.architectures or []]
    kind = next((c for c in named if isinstance(c, type) and issubclass(c, PreTrainedModel)), None)
    if kind is not None and not kind.__name__.endswith("ForPreTraining"):
        return kind
    auto = AutoModelForCausalLM if kind is None else AutoModelForMaskedLM
    return auto if type(config) in auto._model_mapping else AutoModel


def _builtin(name: str) -> Path:
    folder = BUILTIN / name
    if (folder / "config.json").exists():
        return folder
    there = sorted(p.parent.name for p in BUILTIN.glob("*/config.json"))
    raise UserError(
        f"no built-in model `{name}`",
        "\n".join(filter(None, [nearest(name, there), f"there is: {', '.join(there) or 'none'}"])),
    )


def _from_hub(kind: Any, source: str, revision: str | None, **settings: Any) -> Any:
    options = {"revision": revision} if revision else {}
    try:
        return kind.from_pretrained(source, **options, **settings)
    except SafetensorError as error:
        raise UserError(
            f"the weights of `{source}` cannot be read: {error}",
            "the file is cut short or damaged: copy or download it again",
        ) from error
    except _LOADING_ERRORS as error:
        at = f" at revision `{revision}`" if revision else ""
        if Path(source).is_dir():
            raise UserError(f"cannot load the model in `{source}`: {reason(error)}") from error
        raise UserError(
            f"cannot load `{source}`{at}: there is no such folder here, and from the Hub: "
            f"{reason(error)}",
            "check the spelling (Hub ids look like `gpt2` or `google/gemma-2-2b`); for a gated or "
            "private model set HF_TOKEN; without a network use a local folder or `builtin:stdlib`",
        ) from error
