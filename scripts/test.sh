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
# Files of tests go to processes with one thread each, at most eight; tests of threads ask for two themselves.
workers=$(($(nproc) < 8 ? $(nproc) : 8))
step "running the tests in $workers processes (bash scripts/test.sh -n 0: in one)"
OMP_NUM_THREADS=1 "$PYTHON" -m pytest -n "$workers" --dist loadfile "$@"
