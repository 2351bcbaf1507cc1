"""Measure how fast training pairs are read, beside a plain torch DataLoader with Pillow.

    python -m benchmarks data                      all cores, JPEGs of three sizes, to 224 pixels
    python -m benchmarks data --cores 1 --side 64  one core, small pictures

Both read the same JPEG files from the same folder, crop 90 to 100 % of each at random, resize it bicubically with
antialiasing, and end in normalised float32 batches. The plain pipeline is what trainers use: worker processes, one a
core, that decode, crop and resize with Pillow. fastclip has as many threads. They take turns, and the ratio is the
median over turns of both speeds in one turn. The CPU time per picture counts every thread and process, so it holds on
a busy machine too.
"""

from __future__ import annotations

import argparse
import contextlib
import io
import math
import multiprocessing
import os
import random
import statistics
import tarfile
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from benchmarks import report
from benchmarks.report import say
from fastclip.data import open_source
from fastclip.data.picture import decoder_name
from fastclip.train.feed import Cursor, batches

MEAN, STD = (0.4815, 0.4578, 0.4082), (0.2686, 0.2613, 0.2758)
SIZES = ((341, 256), (512, 384), (1024, 768))
BATCH = 64


@dataclass(frozen=True)
class Row:
    """One pipeline on JPEGs of one size; `ratio` is its speed over the plain pipeline's."""

    pictures: str
    kilobytes: float
    side: int
    cores: int
    contender: str
    images_per_second: float
    cpu_milliseconds: float
    ratio: float


class Plain(Dataset[tuple[Tensor, str]]):
    """Read pictures as most trainers do: Pillow's decoding, RandomResizedCrop, ToTensor, Normalize."""

    def __init__(self, files: list[Path], side: int) -> None:
        self.files, self.side = files, side
        self.mean, self.std = (torch.tensor(v).view(3, 1, 1) for v in (MEAN, STD))

    def __len__(self) -> int:
        return 1_000_000  # the same ones again and again: between epochs a DataLoader runs dry

    def __getitem__(self, i: int) -> tuple[Tensor, str]:
        from PIL import Image

        path = self.files[i % len(self.files)]
        with Image.open(path) as file:
            picture = file.convert("RGB")
        width, height = picture.size
        left, upper, across, down = _crop(width, height)
        part = picture.crop((left, upper, left + across, upper + down))
        small = part.resize((self.side, self.side), Image.Resampling.BICUBIC)
        pixels = torch.from_numpy(np.array(small)).permute(2, 0, 1).contiguous().float().div(255)
        caption = path.with_suffix(".txt").read_text()
        return pixels.sub_(self.mean).div_(self.std), caption


def _crop(width: int, height: int) -> tuple[int, int, int, int]:
    """Draw (left, upper, width, height) as RandomResizedCrop does: up to ten tries at what fits."""
    for _ in range(10):
        area = width * height * random.uniform(0.9, 1.0)
        ratio = math.exp(random.uniform(math.log(3 / 4), math.log(4 / 3)))
        across, down = round(math.sqrt(area * ratio)), round(math.sqrt(area / ratio))
        if 0 < across <= width and 0 < down <= height:
            return random.randint(0, width - across), random.randint(0, height - down), across, down
    return 0, 0, width, height


def plain(folder: Path, side: int, cores: int) -> Iterator[int]:
    """Yield the sizes of an endless row of batches from a DataLoader."""
    dataset = Plain(sorted(folder.glob("*.jpg")), side)
    for images, _ in DataLoader(dataset, BATCH, shuffle=True, drop_last=True, num_workers=cores):
        yield len(images)


def fastclip(path: Path, side: int, cores: int) -> Iterator[int]:
    """Yield the sizes of an endless row of fastclip's batches, normalised as the model does it."""
    mean, std = (255 * torch.tensor(v).view(3, 1, 1) for v in (MEAN, STD))
    source = open_source(path, side, held_out_share=0, cache_dir=path.parent)
    for batch in batches(source, BATCH, seed=0, start=Cursor(), count=1 << 40, workers=cores):
        yield len(batch.pairs.images.float().sub_(mean).div_(std))


def measure(
    contenders: Mapping[str, Callable[[], Iterator[int]]], turns: int, seconds: float
) -> dict[str, list[tuple[float, float]]]:
    """Return (images/s, CPU ms an image) of every turn by contender."""
    found: dict[str, list[tuple[float, float]]] = {name: [] for name in contenders}
    for _ in range(turns):
        for name, start in contenders.items():
            feed = start()
            for _ in range(4):  # workers have started, and what was prepared ahead has been used up
                next(feed)
            cpu, wall, count = cpu_seconds(), time.perf_counter(), 0
            while time.perf_counter() - wall < seconds:
                count += next(feed)
            wall, cpu = time.perf_counter() - wall, cpu_seconds() - cpu
            feed.close()  # type: ignore[attr-defined]
            found[name].append((count / wall, 1e3 * cpu / count))
    return found


def cpu_seconds() -> float:
    """Return the CPU time that this process and its running children have used; of children on Linux only."""
    total = time.process_time()
    for child in multiprocessing.active_children():
        with contextlib.suppress(OSError):
            fields = Path(f"/proc/{child.pid}/stat").read_text().rpartition(")")[2].split()
            total += (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")
    return total


def write_pictures(root: Path, width: int, height: int, count: int) -> tuple[Path, Path, float]:
    """Write JPEGs with captions as files and as a shard; return folder, shard and mean size in kB."""
    folder, shard, total = root / "files", root / "shard.tar", 0
    folder.mkdir(parents=True)
    with tarfile.open(shard, "w") as tar:
        for number in range(count):
            data = picture(width, height, number)
            total += len(data)
            for suffix, content in ((".jpg", data), (".txt", b"picture number %d" % number)):
                name = f"{number:05}{suffix}"
                (folder / name).write_bytes(content)
                about = tarfile.TarInfo(name)
                about.size = len(content)
                tar.addfile(about, io.BytesIO(content))
    return folder, shard, total / count / 1000


def picture(width: int, height: int, seed: int) -> bytes:
    """Return a JPEG with a photograph's spectrum: noise at every scale, the coarser the stronger."""
    from PIL import Image

    draws = np.random.default_rng(seed)
    pixels = draws.normal(128, 6, (height, width, 3)).astype(np.float32)
    for octave in range(1, 8):
        coarse = draws.standard_normal((3, 2**octave, 2**octave), np.float32)
        layers = [Image.fromarray(c).resize((width, height), Image.Resampling.BICUBIC) for c in coarse]
        pixels += 60 * 0.75**octave * np.stack([np.asarray(layer) for layer in layers], 2)
    buffer = io.BytesIO()
    Image.fromarray(pixels.clip(0, 255).astype(np.uint8)).save(buffer, "JPEG", quality=90)
    return buffer.getvalue()


def table(rows: list[Row]) -> str:
    """Lay rows out for a terminal."""
    lines = [f"  {'JPEGs':>10}  {'to':>4}  {'cores':>5}  {'':<20}  {'images/s':>8}  {'CPU':>8}  {'ratio':>5}"]
    lines += [
        f"  {row.pictures:>10}  {row.side:>4}  {row.cores:>5}  {row.contender:<20}  {row.images_per_second:>8,.0f}  "
        f"{row.cpu_milliseconds:>5.2f} ms  {row.ratio:>5.2f}"
        for row in rows
    ]
    return "\n".join(lines)


def main(arguments: list[str]) -> int:
    """Measure every size; print a table and write JSON."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks data",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    add = parser.add_argument
    add("--side", type=int, default=224, help="side of the pictures that come out; default %(default)s")
    add("--cores", type=int, default=os.cpu_count() or 1, help="cores and workers; default %(default)s")
    add("--pictures", type=int, default=128, help="JPEGs of each size; default %(default)s")
    add("--turns", type=int, default=7, help="of every contender; default %(default)s")
    add("--seconds", type=float, default=3.0, help="of a turn; default %(default)s")
    add("--output", type=Path, default=report.RESULTS, help="folder for results")
    options = parser.parse_args(arguments)
    made_by = report.environment()
    if hasattr(os, "sched_setaffinity"):
        os.sched_setaffinity(0, sorted(os.sched_getaffinity(0))[: options.cores])
    torch.set_num_threads(1)
    rows = []
    for width, height in SIZES:
        say(f"{width} x {height}")
        with tempfile.TemporaryDirectory() as root:
            folder, shard, size = write_pictures(Path(root), width, height, options.pictures)
            contenders = {
                "DataLoader + Pillow": partial(plain, folder, options.side, options.cores),
                "fastclip, folder": partial(fastclip, folder, options.side, options.cores),
                "fastclip, shards": partial(fastclip, shard, options.side, options.cores),
            }
            found = measure(contenders, options.turns, options.seconds)
        baseline = [speed for speed, _ in found["DataLoader + Pillow"]]
        for name, turns in found.items():
            speed, cpu = (statistics.median(values) for values in zip(*turns, strict=True))
            ratio = statistics.median(turn[0] / base for turn, base in zip(turns, baseline, strict=True))
            pictures = f"{width}x{height}"
            rows.append(Row(pictures, round(size, 1), options.side, options.cores, name, speed, cpu, ratio))
    print(table(rows))
    document = {
        "command": report.command("data", arguments),
        **made_by,
        "decoder": decoder_name(),
        "rows": [asdict(row) for row in rows],
    }
    say(f"results: {report.save(document, 'data-cpu', options.output)}")
    return 0
