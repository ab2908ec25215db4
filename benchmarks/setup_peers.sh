#!/usr/bin/env bash
# Makes benchmarks/.peers: a Python environment with the libraries that benchmarks/peers.py measures.
# Run it again at any time: when nothing has changed it ends at once.
set -euo pipefail
cd "$(dirname "$0")"

SAE_LENS=6.54.12
SPARSIFY=1.3.3
DICTIONARY_LEARNING=0.1.0
NNSIGHT=0.8.1

# The same torch as ours, so that a difference in speed is not a difference in torch.
TORCH=$(grep '^torch==' ../constraints.txt)

if [ .peers/.ready -nt setup_peers.sh ] && [ .peers/.ready -nt ../constraints.txt ]; then
  exit 0
fi

"${PYTHON:-python3}" -m venv --clear .peers
PIP=".peers/bin/python -m pip --quiet --disable-pip-version-check install"
$PIP "$TORCH" "sae-lens==$SAE_LENS" "eai-sparsify==$SPARSIFY" "nnsight==$NNSIGHT"

# dictionary-learning asks for nnsight<0.4, which predates today's transformers, and for packages
# (umap, circuitsvis, ...) that its training never imports. Its `import` line needs any nnsight.
$PIP --no-deps "dictionary-learning==$DICTIONARY_LEARNING"

touch .peers/.ready
