# Sourced by demo.sh and test.sh: makes .venv inside the clone and installs fastscore into it. Running it again takes a second.
#
#   FASTSCORE_PYTHON   the interpreter; default: the first of python3, python3.13 ... python3.10 that is 3.10 or newer
#   FASTSCORE_TORCH    what pip is asked for; default: torch==2.14.1. It may hold options, for instance
#                      FASTSCORE_TORCH="torch --index-url https://download.pytorch.org/whl/cpu"
#
# Nothing is written outside the clone: no pip cache, and temporary files and compiler caches go into .venv.

ROOT="$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd -P)"
VENV="$ROOT/.venv"
PYTHON="$VENV/bin/python"
LOG="$VENV/install.log"
TORCH="${FASTSCORE_TORCH:-torch==2.14.1}"
# Without a GPU the CUDA kernels are compiled to be checked: for one architecture, in a quarter of the time.
if [ -z "${TORCH_CUDA_ARCH_LIST:-}" ] && ! command -v nvidia-smi >/dev/null; then export TORCH_CUDA_ARCH_LIST="9.0+PTX"; fi
cd "$ROOT"

step() { printf '\n==> %s\n' "$*"; }
die() {
  printf 'error: %s\n' "$*" >&2
  exit 1
}

find_python() {
  local candidate candidates=(python3 python3.13 python3.12 python3.11 python3.10)
  if [ -n "${FASTSCORE_PYTHON:-}" ]; then candidates=("$FASTSCORE_PYTHON"); fi
  for candidate in "${candidates[@]}"; do
    if "$candidate" -c 'import sys; sys.exit(sys.version_info < (3, 10))' 2>/dev/null; then
      command -v "$candidate"
      return
    fi
  done
  die "fastscore needs Python 3.10 or newer. Tried: ${candidates[*]}." \
    "Install one, or name it: FASTSCORE_PYTHON=/path/to/python bash scripts/${0##*/}"
}

check_toolchain() {
  local compiler="${CXX:-c++}"
  command -v "${compiler%% *}" >/dev/null ||
    die "no C++ compiler (looked for '${compiler%% *}'). Debian, Ubuntu: apt-get install g++. Or set CXX."
  "$1" -c 'import ensurepip, venv' 2>/dev/null ||
    die "$1 cannot make virtual environments. Debian, Ubuntu: apt-get install python3-venv"
  "$1" -c 'import os, sys, sysconfig; sys.exit(not os.path.exists(sysconfig.get_path("include") + "/Python.h"))' ||
    die "$1 has no C headers (Python.h). Debian, Ubuntu: apt-get install python3-dev"
}

# Runs a command into the install log; its last lines are shown only when it fails.
logged() {
  printf '\n$ %s\n' "$*" >>"$LOG"
  "$@" >>"$LOG" 2>&1 || {
    tail -n 40 "$LOG" >&2
    die "this failed: $* (the whole log: $LOG)"
  }
}

# What the build depends on: change any of it, and the package is installed anew.
fingerprint() {
  "$PYTHON" - "$TORCH" <<'PY'
import hashlib, os, pathlib, sys

digest = hashlib.sha256(repr((sys.version, sys.argv[1:])).encode())
for name in ("CC", "CXX", "CFLAGS", "CXXFLAGS", "CUDA_HOME", "TORCH_CUDA_ARCH_LIST", "FASTSCORE_BUILD_CUDA", "FASTSCORE_BUILD_EXT"):
    digest.update(f"{name}={os.environ.get(name)}\n".encode())
sources = [pathlib.Path(name) for name in ("pyproject.toml", "setup.py", "MANIFEST.in")]
for path in sources + sorted(p for p in pathlib.Path("csrc").rglob("*") if p.is_file()):
    digest.update(str(path).encode() + b"\0" + path.read_bytes())
print(digest.hexdigest())
PY
}

# The requirements of the extras named in $@, as the installed package states them (so that adding an extra rebuilds nothing).
extra_requirements() {
  "$PYTHON" - "$@" <<'PY'
import importlib.metadata, re, sys

stated = [r.partition(";") for r in importlib.metadata.requires("fastscore")]

def show(extra):
    for name, _, marker in stated:
        if re.search(rf"""extra == ["']{extra}["']""", marker):
            nested = re.fullmatch(r"fastscore\[(.+)\]", name.strip())
            for inner in nested[1].split(",") if nested else ():
                show(inner)
            if not nested:
                print(name.strip())

for extra in sys.argv[1:]:
    show(extra)
PY
}

installed() { [ -f "$VENV/$1" ] && [ "$(cat "$VENV/$1")" = "$2" ]; }

# prepare [EXTRA ...]: a virtual environment with torch, fastscore (editable) and the extras.
prepare() {
  unset PYTHONPATH PYTHONHOME
  export PYTHONNOUSERSITE=1 PIP_NO_CACHE_DIR=1 PIP_DISABLE_PIP_VERSION_CHECK=1 PIP_NO_INPUT=1
  if ! installed .root "$ROOT" || ! "$PYTHON" -c '' 2>/dev/null; then
    local base
    base="$(find_python)"
    check_toolchain "$base"
    step "making a virtual environment in .venv ($("$base" --version), $base)"
    "$base" -m venv --clear "$VENV" || die "$base -m venv failed"
    printf '%s' "$ROOT" >"$VENV/.root"
  fi

  TMPDIR="$(mktemp -d "$VENV/tmp.XXXXXX")"
  trap 'rm -rf "$TMPDIR"' EXIT
  export TMPDIR XDG_CACHE_HOME="$VENV/cache" MPLCONFIGDIR="$VENV/cache/matplotlib" \
    TORCHINDUCTOR_CACHE_DIR="$VENV/cache/inductor" TRITON_CACHE_DIR="$VENV/cache/triton"

  if ! installed .torch "$TORCH"; then
    step "installing $TORCH (on Linux the default build is several GB with its CUDA libraries: some minutes; log: .venv/install.log)"
    # shellcheck disable=SC2086  # FASTSCORE_TORCH may hold options
    logged "$PYTHON" -m pip install $TORCH
    logged "$PYTHON" -m pip install "setuptools>=77" wheel ninja
    printf '%s' "$TORCH" >"$VENV/.torch"
  fi

  local wanted
  wanted="$(fingerprint)"
  if ! installed .built "$wanted" || ! "$PYTHON" -c 'import fastscore' 2>/dev/null; then
    step "building and installing fastscore (a minute or two; log: .venv/install.log)"
    logged "$PYTHON" -m pip install --no-build-isolation -e .
    rm -f "$VENV/.extras"
    printf '%s' "$wanted" >"$VENV/.built"
  fi

  if [ $# -gt 0 ] && ! installed .extras "$*"; then
    step "installing what the extras need: $*"
    extra_requirements "$@" >"$TMPDIR/requirements.txt"
    logged "$PYTHON" -m pip install -r "$TMPDIR/requirements.txt"
    printf '%s' "$*" >"$VENV/.extras"
  fi
}
