#!/usr/bin/env bash
# Makes benchmarks/.dashboard: a Python environment with SAEDashboard, which benchmarks/index.py measures.
# It pins older versions of what the other libraries use, so it has its own.
# Run it again at any time: when nothing has changed it ends at once.
set -euo pipefail
cd "$(dirname "$0")"

SAE_DASHBOARD=0.8.0

# The same torch as ours, so that a difference in speed is not a difference in torch.
TORCH=$(grep '^torch==' ../constraints.txt)

if [ .dashboard/.ready -nt setup_dashboard.sh ] && [ .dashboard/.ready -nt ../constraints.txt ]; then
  exit 0
fi

"${PYTHON:-python3}" -m venv --clear .dashboard
PIP=".dashboard/bin/python -m pip --quiet --disable-pip-version-check install"
$PIP "$TORCH"
# The newest pyarrow asks for a NumPy that SAEDashboard does not take.
$PIP "$TORCH" "sae-dashboard==$SAE_DASHBOARD" "pyarrow<21"
# Made for another torch; nothing here needs it.
.dashboard/bin/python -m pip --quiet uninstall --yes torchvision torchaudio

touch .dashboard/.ready
