#!/usr/bin/env bash
# Installs fastscore into .venv with what its tests and linters need, and runs the tests. Arguments go to pytest:
#   bash scripts/test.sh                   everything but the slow tests
#   bash scripts/test.sh -m slow           the slow ones
#   bash scripts/test.sh tests/ops -k "linear and not vmap"
set -euo pipefail
source "$(dirname "${BASH_SOURCE[0]}")/_env.sh"
prepare test lint
# Its samplers are compared with; what else it depends on is not needed for that.
"$PYTHON" -c 'import importlib.util, sys; sys.exit(importlib.util.find_spec("k_diffusion") is None)' ||
  logged "$PYTHON" -m pip install --no-deps k-diffusion
step "running the tests"
"$PYTHON" -m pytest "$@"
