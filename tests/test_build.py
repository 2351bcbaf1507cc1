"""Installing: with a compiler, without one, and with one that fails. Each builds a copy of the sources."""

from __future__ import annotations

import ast
import os
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
REPORT = "fastclip/_build_failure.txt"
NO_COMPILER = {"CXX": "/nowhere/c++"}


@pytest.fixture
def sources(tmp_path: Path) -> Path:
    """Return a copy of what a build reads, without anything that an earlier build made."""
    copy = tmp_path / "fastclip"
    copy.mkdir()
    ignore = shutil.ignore_patterns("*.so", "__pycache__", Path(REPORT).name)
    for name in ("fastclip", "csrc"):
        shutil.copytree(ROOT / name, copy / name, ignore=ignore)
    for name in (
        "pyproject.toml",
        "setup.py",
        "CMakeLists.txt",
        "README.md",
        "LICENSE",
        "NOTICE",
        "MANIFEST.in",
    ):
        shutil.copy(ROOT / name, copy)
    return copy


def build_wheel(
    sources: Path, *options: str, **environment: str
) -> tuple[subprocess.CompletedProcess, set[str]]:
    """Run `pip wheel`; return what it printed and the names of the files in the wheel."""
    command = [sys.executable, "-m", "pip", "wheel", "--no-deps", "--wheel-dir", "dist", *options, "."]
    done = subprocess.run(
        command,
        cwd=sources,
        env=os.environ | {"FASTCLIP_REQUIRE_CPP": "0"} | environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )
    wheels = list((sources / "dist").glob("*.whl"))
    return done, set(zipfile.ZipFile(wheels[0]).namelist()) if wheels else set()


def has_extension(files: set[str]) -> bool:
    return any(name.startswith("fastclip/_C.") and name.endswith((".so", ".pyd")) for name in files)


@pytest.mark.slow
def test_pip_builds_everything_in_isolation(sources: Path) -> None:
    done, files = build_wheel(sources, FASTCLIP_REQUIRE_CPP="1")
    assert done.returncode == 0, done.stdout
    assert has_extension(files)
    assert REPORT not in files
    package = {
        str(path.relative_to(sources))
        for path in (sources / "fastclip").rglob("*")
        if path.is_file() and "__pycache__" not in path.parts and not path.match("_C.*.so")
    }
    assert "fastclip/models/bpe_simple_vocab_16e6.txt.gz" in package
    assert sorted(package - files) == []


@pytest.mark.slow
def test_without_a_compiler_pip_installs_the_rest_and_a_reason(sources: Path) -> None:
    done, files = build_wheel(sources, "--no-build-isolation", **NO_COMPILER)
    assert done.returncode == 0, done.stdout
    assert "fastclip/ops.py" in files
    assert not has_extension(files)
    with zipfile.ZipFile(next((sources / "dist").glob("*.whl"))) as wheel:
        assert wheel.read(REPORT).decode() == "no C++ compiler was found (looked for /nowhere/c++ on PATH)\n"


@pytest.mark.slow
def test_a_compile_error_is_shown_and_the_rest_installs(sources: Path) -> None:
    (sources / "csrc/module.cpp").write_text("#error deliberately broken\n")
    done, files = build_wheel(sources, "--no-build-isolation", "--verbose")
    assert done.returncode == 0, done.stdout
    assert "WARNING: fastclip installs WITHOUT its C++ kernels" in done.stdout
    assert "deliberately broken" in done.stdout
    assert REPORT in files
    assert not has_extension(files)


@pytest.mark.slow
@pytest.mark.parametrize("broken", ["compiler", "source"])
def test_an_extension_that_is_required_is_not_optional(sources: Path, broken: str) -> None:
    if broken == "source":
        (sources / "csrc/module.cpp").write_text("#error deliberately broken\n")
    environment = {"FASTCLIP_REQUIRE_CPP": "1"} | (NO_COMPILER if broken == "compiler" else {})
    done, files = build_wheel(sources, "--no-build-isolation", **environment)
    assert done.returncode != 0
    assert "no C++ compiler" in done.stdout if broken == "compiler" else "deliberately broken" in done.stdout
    assert files == set()


@pytest.mark.slow
def test_an_editable_install_replaces_a_stale_library(sources: Path) -> None:
    command = [sys.executable, "setup.py", "-q", "build_ext", "--inplace"]
    package = sources / "fastclip"
    subprocess.run(command, cwd=sources, check=True)
    assert len(list(package.glob("_C.*.so"))) == 1
    # A failing build takes the old library away: it would not match the new sources.
    subprocess.run(
        command, cwd=sources, check=True, env=os.environ | {"FASTCLIP_REQUIRE_CPP": "0"} | NO_COMPILER
    )
    assert list(package.glob("_C.*.so")) == []
    assert (sources / REPORT).exists()
    subprocess.run(command, cwd=sources, check=True)
    assert len(list(package.glob("_C.*.so"))) == 1
    assert not (sources / REPORT).exists()


def test_the_stub_names_what_the_extension_has() -> None:
    extension = pytest.importorskip("fastclip._C", reason="the C++ extension is not built")
    stub = ast.parse((ROOT / "fastclip/_C.pyi").read_text())
    declared = {node.name for node in stub.body if isinstance(node, ast.ClassDef | ast.FunctionDef)}
    declared |= {node.target.id for node in stub.body if isinstance(node, ast.AnnAssign)}
    assert declared == {name for name in vars(extension) if not name.startswith("_")}
