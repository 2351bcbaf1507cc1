"""Draw SVG and PNG files as RGBA pictures, in as many processes as there are cores.

The SVG renderer holds the interpreter lock, so threads gain nothing. The workers are plain scripts that
import neither torch nor this package: they start in a fraction of a second, and the caller needs no
``__main__`` guard.
"""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from io import BytesIO
from pathlib import Path

import numpy as np


def rasterise(path: str, size: int) -> np.ndarray:
    """Return the picture in ``path`` (.svg or anything Pillow reads) as uint8 ``(size, size, 4)`` RGBA."""
    from PIL import Image

    if path.endswith(".svg"):
        from resvg_py import svg_to_bytes

        path_or_buffer = BytesIO(svg_to_bytes(svg_path=path, width=size, height=size, skip_system_fonts=True))
        picture = Image.open(path_or_buffer).convert("RGBA")
    else:
        picture = Image.open(path).convert("RGBA")
    if picture.size != (size, size):
        # Pillow filters RGBA with premultiplied alpha, so no dark fringe appears at transparent edges.
        picture = picture.resize((size, size), Image.Resampling.LANCZOS)
    return np.asarray(picture)


def rasterise_all(paths: Sequence[str | Path], size: int, processes: int | None = None) -> np.ndarray:
    """Return every picture of ``paths`` as uint8 ``(len(paths), size, size, 4)`` RGBA, in order.

    Raises RuntimeError with the worker's own message if one of them fails.
    """
    processes = max(1, min(processes or os.cpu_count() or 1, len(paths)))
    out = np.empty((len(paths), size, size, 4), np.uint8)

    def work(worker: int) -> None:
        # Worker w takes every processes-th picture, which evens out the load; heavy drawings come in runs.
        mine = [str(path) for path in paths[worker::processes]]
        command = [sys.executable, "-P", __file__, str(size)]
        done = subprocess.run(command, input="\n".join(mine).encode(), capture_output=True, check=False)
        expected = len(mine) * size * size * 4
        if done.returncode or len(done.stdout) != expected:
            raise RuntimeError(
                f"drawing {len(mine)} pictures failed:\n{done.stderr.decode(errors='replace')}"
            )
        out[worker::processes] = np.frombuffer(done.stdout, np.uint8).reshape(-1, size, size, 4)

    with ThreadPoolExecutor(processes) as pool:
        list(pool.map(work, range(processes)))
    return out


def main() -> None:
    """Read paths from standard input, one a line, and write their pictures' bytes to standard output."""
    size = int(sys.argv[1])
    for path in sys.stdin.buffer.read().decode().splitlines():
        sys.stdout.buffer.write(rasterise(path, size).tobytes())


if __name__ == "__main__":
    main()
