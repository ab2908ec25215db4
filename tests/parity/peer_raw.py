"""Write activations as SAELens's cache runner does: shards, then one data set of their files."""

import sys
from pathlib import Path
from types import SimpleNamespace

import torch
from datasets import Array2D, Features, Sequence, Value
from sae_lens.cache_activations_runner import CacheActivationsRunner

folder = Path(sys.argv[1])
context, d, rows = 5, 8, 4
name = "blocks.1.hook_resid_post"
features = Features(
    {
        name: Array2D(shape=(context, d), dtype="float32"),
        "token_ids": Sequence(Value("int32"), length=context),
    }
)
cfg = SimpleNamespace(hook_name=name, n_seq_in_buffer=rows, d_in=d)
runner = SimpleNamespace(cfg=cfg, context_size=context, features=features)
x = torch.randn(3, rows * context, d, generator=torch.Generator().manual_seed(0))
tokens = torch.arange(3 * rows * context).reshape(3, -1)
cache = folder / "cache"
shards = cache / ".tmp_shards"
shards.mkdir(parents=True)
for i in range(3):
    shard = CacheActivationsRunner._create_shard(runner, (x[i], tokens[i]))
    shard.save_to_disk(str(shards / f"shard_{i:05d}"), num_shards=1)
CacheActivationsRunner._consolidate_shards(shards, cache, copy_files=False)
torch.save({"x": x.reshape(-1, d), "tokens": tokens.reshape(-1)}, folder / "expected.pt")
