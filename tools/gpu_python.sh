#!/usr/bin/env bash
# Print the interpreter with which to run the benchmarks on this machine's GPU: one that has torch for it, Triton and
# pytest, as it is (nothing is installed, no network needed), else that of VENV, set up for it.
#
#   tools/gpu_python.sh VENV
#
# PYTHON=… is looked at first.
set -euo pipefail
cd "$(dirname "$0")/.."
venv=$1

ready() {
    "$1" - >/dev/null 2>&1 <<'PY'
import numpy, pytest, torch, triton

raise SystemExit(not torch.cuda.is_available())
PY
}

for python in ${PYTHON:+"$PYTHON"} "$venv/bin/python" python3 python; do
    if ready "$python"; then
        command -v "$python"
        exit
    fi
done
PYTHON="${PYTHON:-}" bash tools/setup.sh "$venv" train,bench >&2
echo "$venv/bin/python"
