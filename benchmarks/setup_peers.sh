#!/usr/bin/env bash
# Makes benchmarks/.peers: a Python environment with the libraries that benchmarks/peers.py measures
# and that tests/parity holds our reading and writing of their files against.
# Run it again at any time: when nothing has changed it ends at once.
set -euo pipefail
cd "$(dirname "$0")"

SAE_LENS=6.54.12
SPARSIFY=1.3.3
DICTIONARY_LEARNING=0.1.0
NNSIGHT=0.8.1

if [ .peers/.ready -nt setup_peers.sh ] && [ .peers/.ready -nt ../constraints.txt ]; then
  exit 0
fi

make --no-print-directory -C .. setup

# It sees what .venv has, so that a difference is not one of torch; what .venv lacks comes on top.
../.venv/bin/python -m venv --clear .peers
../.venv/bin/python -c 'import sysconfig; print(sysconfig.get_path("purelib"))' \
  > "$(.peers/bin/python -c 'import sysconfig; print(sysconfig.get_path("purelib"))')/base.pth"
PIP=".peers/bin/python -m pip --quiet --disable-pip-version-check install"
$PIP --constraint ../constraints.txt "sae-lens==$SAE_LENS" "eai-sparsify==$SPARSIFY" "nnsight==$NNSIGHT"

# dictionary-learning asks for nnsight<0.4, which predates today's transformers, and for packages
# (umap, circuitsvis, ...) that its training never imports. Its `import` line needs any nnsight.
$PIP --no-deps "dictionary-learning==$DICTIONARY_LEARNING"

touch .peers/.ready
