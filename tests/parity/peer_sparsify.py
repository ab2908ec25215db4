"""sparsify's own side: coders that it saves, and what it makes of ours.

save FOLDER    runs in FOLDER, each with what its coder gives for x
load FOLDER    what it gives for coders in FOLDER
"""

from __future__ import annotations

import sys
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file
from sparsify import SparseCoder
from sparsify.__main__ import RunConfig
from sparsify.config import SparseCoderConfig

D, WIDTH, K = 12, 40, 5
RUNS = {
    "topk": {"num_latents": WIDTH},
    "groupmax": {"num_latents": WIDTH, "activation": "groupmax"},
    "expansion": {"expansion_factor": 3, "multi_topk": True},
    "transcoder": {"num_latents": WIDTH, "transcode": True},
    "skip": {"num_latents": WIDTH, "transcode": True, "skip_connection": True},
    "sae-skip": {"num_latents": WIDTH, "skip_connection": True},
}


@torch.no_grad()
def results(coder: SparseCoder, x: torch.Tensor) -> dict[str, torch.Tensor]:
    code = coder.encode(x)
    dense = torch.zeros(len(x), coder.num_latents)
    dense.scatter_(1, code.top_indices, code.top_acts)
    out = coder.decode(code.top_acts, code.top_indices)
    if coder.W_skip is not None:
        out = out + x @ coder.W_skip.mT
    if not coder.cfg.multi_topk:  # there `forward` takes 4k features
        torch.testing.assert_close(out, coder(x).sae_out)
    return {"x": x, "features": dense, "out": out}


def save(folder: Path) -> None:
    torch.manual_seed(0)
    x = torch.randn(200, D) * 2 + 0.5
    for run, options in RUNS.items():
        config = SparseCoderConfig(k=K, **options)
        coder = SparseCoder(D, config)
        with torch.no_grad():
            for weights in coder.parameters():
                weights.normal_(std=0.5)
        hookpoint = "layers.3.mlp" if config.transcode else "layers.3"
        coder.save_to_disk(folder / run / hookpoint)
        # As its trainer writes it, beside the folders of hook points.
        settings = RunConfig(
            model="EleutherAI/pythia-70m", ctx_len=256, sae=config, hookpoints=[hookpoint]
        )
        settings.save_json(folder / run / "config.json")
        save_file(results(coder, x), folder / f"{run}.safetensors")


def load(folder: Path) -> None:
    x = load_file(folder / "x.safetensors")["x"]
    for run in sorted(path for path in folder.iterdir() if path.is_dir()):
        for hookpoint, coder in SparseCoder.load_many(str(run), local=True).items():
            save_file(
                results(coder, x),
                folder / f"{run.name}.safetensors",
                metadata={"hookpoint": hookpoint},
            )


{"save": save, "load": load}[sys.argv[1]](Path(sys.argv[2]))
