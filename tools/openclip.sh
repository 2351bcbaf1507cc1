#!/usr/bin/env bash
# Prepare an environment for the tests that compare with open_clip and lightly, on top of the one with fastclip's tests.
#
#   tools/openclip.sh VENV OPENCLIP_VENV
#
# Both packages import torchvision, whose compiled part does not load beside a CPU build of torch, and which then breaks
# transformers' CLIPModel. So they live apart, without their dependencies: what they need is in VENV, which is appended
# to the search path.
set -euo pipefail
cd "$(dirname "$0")/.."
venv=$1
openclip=$2
export PIP_DISABLE_PIP_VERSION_CHECK=1 PIP_NO_INPUT=1

printf '== creating %s\n' "$openclip" >&2
"$venv/bin/python" -m venv --clear "$openclip"
site=$("$openclip/bin/python" -c 'import sysconfig; print(sysconfig.get_path("purelib"))')
"$venv/bin/python" - >"$site/fastclip-tests.pth" <<'PY'
import sysconfig
from pathlib import Path

import torch  # may be the base interpreter's

for folder in dict.fromkeys([sysconfig.get_path("purelib"), str(Path(torch.__file__).parents[1])]):
    print(folder)
PY
"$openclip/bin/python" -m pip install --quiet --no-deps --constraint constraints.txt \
    torchvision open_clip_torch timm lightly lightly_utils
