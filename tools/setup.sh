#!/usr/bin/env bash
# Prepare a virtual environment for this repository: torch first, then fastclip (editable) with the extras named.
#
#   tools/setup.sh VENV EXTRA[,EXTRA…]
#
# PYTHON=… names the interpreter; without it the newest supported one that runs is taken.
set -euo pipefail
cd "$(dirname "$0")/.."
venv=$1
extras=$2
python=$venv/bin/python
export PIP_DISABLE_PIP_VERSION_CHECK=1 PIP_NO_INPUT=1

say() { printf '== %s\n' "$*" >&2; }
pip() { "$python" -m pip "$@"; }

# Runs, has a version that pyproject.toml admits, and can make virtual environments. (A pyenv shim may not run at all.)
usable() { "$1" -c 'import sys, ensurepip, venv; sys.exit(not (3, 11) <= sys.version_info < (3, 14))' 2>/dev/null; }

find_python() {
    local candidates=(python3.13 python3.12 python3.11 python3 python) candidate
    [[ -z ${PYTHON:-} ]] || candidates=("$PYTHON")
    for candidate in "${candidates[@]}"; do
        if usable "$candidate"; then
            command -v "$candidate"
            return
        fi
    done
    say "no usable Python among: ${candidates[*]}. fastclip needs Python 3.11 to 3.13 with the venv module" \
        "(Debian, Ubuntu: apt install python3-venv); name one with PYTHON=/path/to/python"
    return 1
}

# The version of an interpreter's torch where fastclip can use it, else nothing.
torch_version() {
    "$1" - <<'PY'
from importlib.metadata import PackageNotFoundError, version

try:
    installed = version("torch")
    if tuple(map(int, installed.split("+")[0].split(".")[:2])) >= (2, 10):
        print(installed)
except PackageNotFoundError:
    pass
PY
}

create_venv() {
    local base
    base=$(find_python)
    if [[ -n $(torch_version "$base") ]]; then
        say "creating $venv with $base, on top of the torch it has"
        "$base" -m venv --clear --system-site-packages "$venv"
    else
        say "creating $venv with $base"
        "$base" -m venv --clear "$venv"
    fi
}

# Without a GPU a CPU build saves gigabytes: from wherever pip already looks, else from PyTorch's own index.
# On Linux the plain name means CUDA; elsewhere it means the build that is wanted here anyway.
install_torch() {
    local pin
    pin=$(grep '^torch==' constraints.txt)
    if [[ $(uname -s) == Linux ]] && ! nvidia-smi >/dev/null 2>&1; then
        say "installing $pin for CPU"
        if pip install "$pin+cpu" 2>/dev/null; then return; fi
        if pip install --timeout 15 --retries 0 --extra-index-url https://download.pytorch.org/whl/cpu "$pin+cpu"; then
            return
        fi
        say "no CPU build of torch can be reached: installing the default one, which brings CUDA (gigabytes)"
    else
        say "installing $pin"
    fi
    pip install "$pin"
}

version='import sys; print(sys.version_info[:2])'
if ! usable "$python" || [[ -n ${PYTHON:-} && $("$PYTHON" -c "$version") != $("$python" -c "$version") ]]; then
    create_venv
fi
pip --version >/dev/null 2>&1 || "$python" -m ensurepip >/dev/null # an environment made by another tool may lack pip
[[ -n $(torch_version "$python") ]] || install_torch

# From here on nothing may replace that torch.
{ grep -v -e '^#' -e '^torch==' constraints.txt && echo "torch==$(torch_version "$python")"; } >"$venv/constraints.txt"

say "installing fastclip[$extras]"
"$python" - >"$venv/build-requirements.txt" <<'PY'
import tomllib

with open("pyproject.toml", "rb") as file:
    print(*tomllib.load(file)["build-system"]["requires"], sep="\n")
PY
pip install --quiet --constraint "$venv/constraints.txt" --requirement "$venv/build-requirements.txt"
pip install --quiet --constraint "$venv/constraints.txt" --no-build-isolation --editable ".[$extras]"

if [[ -f fastclip/_build_failure.txt ]]; then
    say "WARNING: the C++ kernels were not built, so fastclip runs without its cpu backend:"
    cat fastclip/_build_failure.txt >&2
fi
