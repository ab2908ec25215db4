"""Gemma Scope 2 (of Gemma 3): `params.safetensors` and, in most folders, `config.json`.

Without a configuration, the names of folders and repository say the same
(`google/gemma-scope-2-1b-pt/resid_post/layer_13_width_16k_l0_medium`).
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

from monosemy.errors import UserError
from monosemy.formats.files import read_json, read_safetensors, tensor_shapes, text
from monosemy.formats.format import UNKNOWN, Content, Format, Given, coder_from, log_threshold
from monosemy.formats.names import our_hookpoint, spelled_path

WEIGHTS, SETTINGS, CONTEXT = "params.safetensors", "config.json", 1024
_NAMES = {"w_enc", "w_dec", "b_enc", "b_dec", "threshold"}
_BEFORE, _AFTER = "pre_feedforward_layernorm", "post_feedforward_layernorm"
_SITES = {
    "resid_post": ("", None),
    "attn_out": ("self_attn.o_proj.input", None),
    "mlp_out": (_AFTER, None),
    "transcoder": (_BEFORE, _AFTER),
}
"""How a folder's name begins -> the modules, below a block, that are encoded and explained."""


def recognises(path: Path) -> bool:
    """Say whether there is a `params.safetensors`, or a file such as one."""
    file = _file(path)
    return file.suffix == ".safetensors" and tensor_shapes(file).keys() >= _NAMES


def read(path: Path, given: Given) -> Content:
    """Read a dictionary or transcoder.

    Raises:
        UserError: a tensor is missing or misshapen, or it is a cross-layer transcoder.
    """
    path = _file(path)
    settings = read_json(path.parent / SETTINGS) if (path.parent / SETTINGS).is_file() else {}
    if settings.get("architecture", "jump_relu") != "jump_relu":
        raise UserError(
            f"`{path.parent / SETTINGS}` has architecture `{settings['architecture']}`",
            "allowed: jump_relu",
        )
    if len(tensor_shapes(path).get("w_dec", ())) == 3:
        raise UserError(
            f"`{path}` is a layer of a cross-layer transcoder: each feature writes to several "
            "layers",
            "a dictionary explains one place; take a transcoder of one layer",
        )
    file = read_safetensors(path)
    d_in, width = file.size("w_enc", 0), file.size("w_enc", 1)
    tensors = {
        "W_enc": file.take("w_enc", (d_in, width)).T,
        "b_enc": file.take("b_enc", (width,)),
        "W_dec": file.take("w_dec", (width, None)),
        "log_threshold": log_threshold(file.take("threshold", (width,))),
    }
    d_out = tensors["W_dec"].shape[1]
    tensors["b_dec"] = file.take("b_dec", (d_out,))
    if "affine_skip_connection" in file:
        tensors["W_skip"] = file.take("affine_skip_connection", (d_in, d_out)).T
    elif settings.get("affine_connection"):
        file.take("affine_skip_connection", (d_in, d_out))  # says what there is instead
    file.done()
    hookpoint, target = _places(settings, path)
    if "W_skip" in tensors:
        target = target or UNKNOWN
    model = _model(settings, path)
    return Content(
        coder=coder_from("jumprelu", tensors, given.scale),
        model=model,
        hookpoint=hookpoint,
        target=target if target != hookpoint else None,
        context=CONTEXT,
        settings=settings,
        notes=[] if model and hookpoint else [f"no `{SETTINGS}`, and folders do not say it all"],
    )


def _model(settings: dict[str, Any], path: Path) -> str | None:
    """Return the Hub id of a model that files call `gemma-v3-1b-pt`."""
    name = text(settings, "model_name", path.parent / SETTINGS)
    if not name:
        found = re.search(r".*gemma-scope-2-(\w+-(?:pt|it))", spelled_path(path))
        name = f"gemma-3-{found[1]}" if found else None
    if not name:
        return None
    name = name.rpartition("/")[2].replace("-v3", "-3")
    # The smallest has no `-pt` in its id.
    return "google/" + (name.removesuffix("-pt") if "270m" in name else name)


def _places(settings: dict[str, Any], path: Path) -> tuple[str | None, str | None]:
    file = path.parent / SETTINGS
    names = [text(settings, f"hf_hook_point_{side}", file) for side in ("in", "out")]
    if names[0]:
        found = [our_hookpoint(n.removesuffix(".output")) if n else None for n in names]
        return found[0], found[1]
    spelled = spelled_path(path)
    layer = re.search(r".*layer_(\d+)", spelled)
    site = re.search(f".*/({'|'.join(_SITES)})", spelled)
    if layer is None or site is None:
        return None, None
    inside = [
        f"layers.{layer[1]}.{part}".rstrip(".") for part in _SITES[site[1]] if part is not None
    ]
    return inside[0], inside[1] if len(inside) == 2 else None


def _file(path: Path) -> Path:
    return path / WEIGHTS if path.is_dir() else path


FORMAT = Format(name="gemma_scope_2", title="Gemma Scope 2", recognises=recognises, read=read)
