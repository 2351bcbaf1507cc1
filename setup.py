"""Build fastclip._C with CMake and ninja. Metadata is in pyproject.toml, sources and flags in CMakeLists.txt.

The extension is optional: where it cannot be built, fastclip installs without it, and
`python -m fastclip.info` repeats the reason. Environment variables:

    FASTCLIP_REQUIRE_CPP=1           fail instead
    FASTCLIP_SANITIZE=address;…      build with these sanitizers
    CXX, CXXFLAGS, CMAKE_ARGS        as CMake's users know them
"""

import os
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

from setuptools import Extension, setup
from setuptools.command.build_ext import build_ext

ROOT = Path(__file__).resolve().parent
REPORT = "_build_failure.txt"  # read by fastclip/info.py


class BuildFailure(Exception):
    """Why fastclip._C was not built, with the compiler's output where there is some."""


class CMakeBuild(build_ext):
    """Leave the extension module in the package, or a report that says why it is not there."""

    def run(self) -> None:
        self.in_source_tree = bool(self.inplace)  # an editable install; setuptools clears `inplace` meanwhile
        super().run()

    def build_extension(self, ext: Extension) -> None:
        library = Path(self.get_ext_fullpath(ext.name)).resolve()
        folders = [library.parent, ROOT / "fastclip"] if self.in_source_tree else [library.parent]
        try:
            compile_module(library.parent)
        except BuildFailure as failure:
            if os.environ.get("FASTCLIP_REQUIRE_CPP", "0") not in ("", "0"):
                raise
            for folder in folders:
                folder.mkdir(parents=True, exist_ok=True)
                # A library of an earlier build does not fit these sources.
                (folder / library.name).unlink(missing_ok=True)
                (folder / REPORT).write_text(f"{failure}\n", encoding="utf-8")
            bar = "=" * 80
            message = f"WARNING: fastclip installs WITHOUT its C++ kernels: {failure}"
            print(bar, message, bar, sep="\n", file=sys.stderr)
        else:
            for folder in folders:
                (folder / REPORT).unlink(missing_ok=True)


def compile_module(output: Path) -> None:
    """Compile fastclip._C into the folder `output`; raise BuildFailure if that cannot be done."""
    ninja = find_tools()
    import pybind11  # a requirement of the build, which a build without a compiler can do without

    # Kept between builds, so that only what changed is compiled again.
    build = ROOT / "build" / f"cmake-{sys.implementation.cache_tag}"
    configure = [
        *("cmake", "-S", str(ROOT), "-B", str(build), "-G", "Ninja"),
        f"-DCMAKE_MAKE_PROGRAM={ninja}",
        f"-DCMAKE_LIBRARY_OUTPUT_DIRECTORY={output}",
        f"-DPython_EXECUTABLE={sys.executable}",
        f"-Dpybind11_DIR={pybind11.get_cmake_dir()}",
        f"-DFASTCLIP_SANITIZE={os.environ.get('FASTCLIP_SANITIZE', '')}",
        *shlex.split(os.environ.get("CMAKE_ARGS", "")),
    ]
    for command in (configure, ["cmake", "--build", str(build)]):
        done = subprocess.run(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
        print(done.stdout)
        if done.returncode:
            raise BuildFailure(f"`{command[0]} {command[1]}` failed:\n\n{done.stdout.strip()}")


def find_tools() -> str:
    """Return the path of ninja; raise BuildFailure if it, cmake or a C++ compiler is not on PATH."""
    wanted = os.environ.get("CXX")
    compilers = shlex.split(wanted)[:1] if wanted else ["c++", "g++", "clang++"]
    if not any(map(shutil.which, compilers)):
        raise BuildFailure(f"no C++ compiler was found (looked for {', '.join(compilers)} on PATH)")
    for tool in ("cmake", "ninja"):
        if not shutil.which(tool):
            raise BuildFailure(f"{tool} was not found on PATH")
    return str(shutil.which("ninja"))


setup(
    # CMake knows the sources. `optional` lets setuptools go on without the file.
    ext_modules=[Extension("fastclip._C", sources=[], optional=True)],
    cmdclass={"build_ext": CMakeBuild},
)
