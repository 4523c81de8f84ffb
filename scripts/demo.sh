#!/usr/bin/env bash
# Installs fastscore into .venv and draws 64 digits, with the fused kernels and with the plain PyTorch reference.
# Writes out/demo/digits.png and prints how the two compare. Arguments go to scripts/demo.py (see --help).
set -euo pipefail
source "$(dirname "${BASH_SOURCE[0]}")/_env.sh"
prepare
step "sampling digits, fused and with the reference"
"$PYTHON" scripts/demo.py "$@"
