"""Write what SAELens's registry says of each id: repository, path, model, hook points, facts.

Usage: peer_releases.py OUT. Nothing is fetched: where SAELens tells models and hook points from
names alone, its own functions are asked.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path

from sae_lens.loading import pretrained_sae_loaders as loaders
from sae_lens.loading.pretrained_saes_directory import get_pretrained_saes_directory

BY_NAME = {
    "gemma_2": loaders.get_gemma_2_config_from_hf,
    "gemma_2_transcoder": loaders.get_gemma_2_transcoder_config_from_hf,
    "qwen_scope": loaders.get_qwen_scope_config_from_hf,
    "goodfire": loaders.get_goodfire_config_from_hf,
}


def facts(release, id: str) -> dict:
    repo, path = release.repo_id, release.saes_map[id]
    overrides = release.config_overrides or {}
    found = {
        "repo": repo,
        "path": str(path),
        "model": release.model,
        "scale": release.norm_scaling_factor.get(id),
        "centred": overrides.get("model_from_pretrained_kwargs", {}).get("center_writing_weights"),
        "normalise": overrides.get("normalize_activations"),
    }
    if release.conversion_func in BY_NAME:
        config = BY_NAME[release.conversion_func](repo, path, "cpu")
        found["hook"], found["hook_out"] = config["hook_name"], config.get("hook_name_out")
        found["model"] = config["model_name"]
        found["k"] = config.get("activation_fn_kwargs", {}).get("k")
        found["width"] = config["d_sae"]
    elif release.conversion_func == "gemma_3":
        config = loaders._infer_gemma_3_raw_cfg_dict(repo, path)
        found["hook"], found["hook_out"] = (
            config["hf_hook_point_in"],
            config.get("hf_hook_point_out"),
        )
    elif release.conversion_func is None and id.startswith("blocks."):
        found["hook"] = id
    return found


registry = get_pretrained_saes_directory()
rows = {
    name: {
        "kind": release.conversion_func,
        "ids": {id: facts(release, id) for id in release.saes_map},
    }
    for name, release in registry.items()
}
Path(sys.argv[1]).write_text(json.dumps(rows))
