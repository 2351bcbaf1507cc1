"""Measure each drop-in beside what it replaces: time and peak memory of a step, theirs and ours in turns.

    python -m benchmarks dropins
    python -m benchmarks dropins -n 8192 --only open_clip

A step is forward and backward from features or, for transformers, through a model so small that its loss is what
counts. The packages come from the test extra; open_clip from the environment that `make openclip` prepares.
"""

from __future__ import annotations

import argparse
import importlib.util
import json
import os
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from benchmarks import measure, report
from benchmarks.contenders import Unavailable
from benchmarks.report import say

SIDES = ("theirs", "ours")
ROOT = Path(__file__).parents[1]

#: Pairs in the step that loads libraries and starts threads before memory is measured.
SMALL = 64

#: A step, forward and backward into fresh gradients.
Step = Callable[[], None]


@dataclass(frozen=True)
class DropIn:
    """A loss of another package and the one that takes its place.

    Attributes:
        name: package and class.
        prepare: of a side and the numbers of pairs and features, returns a step, or raises `Unavailable`.
        share: of the pairs asked for; less where theirs takes memory like N³.
        width: of the features, instead of what is asked for.
    """

    name: str
    prepare: Callable[[str, int, int], Step]
    share: float = 1.0
    width: int | None = None


def _features(n: int, d: int, copies: int) -> list[Tensor]:
    """Return unit features that resemble each other as in a CLIP halfway through its training."""
    generator = torch.Generator().manual_seed(0)
    base = F.normalize(torch.randn(n, d, generator=generator), dim=1)
    noise = (torch.randn(n, d, generator=generator).mul_(3 / d**0.5) for _ in range(copies))
    return [F.normalize(base + part, dim=1).requires_grad_() for part in noise]


def _step(loss: Callable[[], Tensor], leaves: list[Tensor]) -> Step:
    def step() -> None:
        for leaf in leaves:
            leaf.grad = None
        loss().backward()

    return step


def _open_clip(name: str) -> Callable[[str, int, int], Step]:
    def prepare(side: str, n: int, d: int) -> Step:
        import fastclip.open_clip as ours

        loss = getattr(_open_clip_losses() if side == "theirs" else ours, name)()
        x, y = _features(n, d, 2)
        scale = torch.tensor(10.0 if name == "SigLipLoss" else 1 / 0.07, requires_grad=True)
        given: dict[str, Any] = {"image_features": x, "text_features": y, "logit_scale": scale}
        if name == "SigLipLoss":
            given["logit_bias"] = torch.tensor(-10.0, requires_grad=True)
        leaves = list(given.values())
        if name == "DistillClipLoss":
            teacher = (*(feature.detach() for feature in _features(n, d, 2)), torch.tensor(50.0))
            names = ("dist_image_features", "dist_text_features", "dist_logit_scale")
            given.update(zip(names, teacher, strict=True))
        return _step(lambda: sum(loss(**given, output_dict=True).values()), leaves)

    return prepare


def _open_clip_losses() -> ModuleType:
    # Its losses need torch alone, but its package imports torchvision: load that one file.
    found = [*ROOT.glob(".venv-openclip/lib/python*/site-packages/open_clip/loss.py")]
    package = importlib.util.find_spec("open_clip")
    if package is not None and package.submodule_search_locations:
        found.append(Path(package.submodule_search_locations[0]) / "loss.py")
    if not found:
        raise Unavailable("not installed: make openclip")
    spec = importlib.util.spec_from_file_location("open_clip_loss", found[0])
    if spec is None or spec.loader is None:
        raise Unavailable(f"{found[0]} is no module")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def _transformers(name: str) -> Callable[[str, int, int], Step]:
    def prepare(side: str, n: int, d: int) -> Step:
        import fastclip.hf

        transformers = _package("transformers")
        # Two image tokens and four of text: towers that cost little. SigLIP's are as wide as its features.
        width = d if name == "SiglipModel" else 32
        tower = {
            "hidden_size": width,
            "intermediate_size": 32,
            "num_hidden_layers": 1,
            "num_attention_heads": 2,
        }
        text = {**tower, "vocab_size": 64, "max_position_embeddings": 4, "bos_token_id": 1, "eos_token_id": 2}
        vision = {**tower, "image_size": 32, "patch_size": 32}
        config_class = getattr(transformers, name.replace("Model", "Config"))
        more = {} if name == "SiglipModel" else {"projection_dim": d}
        torch.manual_seed(0)
        model = getattr(transformers, name)(config_class(text_config=text, vision_config=vision, **more))
        if side == "ours":
            fastclip.hf.fuse(model)
        tokens, pixels = torch.randint(3, 64, (n, 4)), torch.randn(n, 3, 32, 32)
        return _step(
            lambda: model(input_ids=tokens, pixel_values=pixels, return_loss=True).loss,
            list(model.parameters()),
        )

    return prepare


def _sentence_transformers(name: str, **options: Any) -> Callable[[str, int, int], Step]:
    def prepare(side: str, n: int, d: int) -> Step:
        sentence_transformers = _package("sentence_transformers")
        from sentence_transformers.sentence_transformer import losses

        import fastclip.sentence_transformers as ours

        model = sentence_transformers.SentenceTransformer(modules=[nn.Identity()], device="cpu")
        loss = getattr(losses if side == "theirs" else ours, name)(model, **options)
        leaves = _features(n, d, 2)
        if name.startswith("Cached"):
            return _cached_step(loss, leaves)
        return _step(lambda: loss.compute_loss_from_embeddings(leaves, None), leaves)

    return prepare


def _cached_step(loss: Any, leaves: list[Tensor]) -> Step:
    def step() -> None:
        for leaf in leaves:
            leaf.grad = None
        loss.calculate_loss([list(leaf.split(loss.mini_batch_size)) for leaf in leaves], with_backward=True)

    return step


def _simclr(side: str, n: int, d: int) -> Step:
    import fastclip

    losses = _package("pytorch_metric_learning").losses
    ours, theirs = fastclip.NTXentLoss(0.1), losses.SelfSupervisedLoss(losses.NTXentLoss(0.1))
    leaves = _features(n, d, 2)
    return _step(lambda: (ours if side == "ours" else theirs)(*leaves), leaves)


def _package(name: str) -> Any:
    try:
        module = importlib.import_module(name)
    except ModuleNotFoundError as error:
        raise Unavailable(f"not installed: pip install {name.replace('_', '-')}") from error
    if name == "pytorch_metric_learning":
        importlib.import_module(f"{name}.losses")
    return module


ALL_DIRECTIONS = ("query_to_doc", "query_to_query", "doc_to_query", "doc_to_doc")
BOTH_WAYS = {"directions": ("query_to_doc", "doc_to_query"), "partition_mode": "per_direction"}
RANKING = "MultipleNegativesRankingLoss"

DROPINS = (
    DropIn("open_clip ClipLoss", _open_clip("ClipLoss")),
    DropIn("open_clip SigLipLoss", _open_clip("SigLipLoss")),
    DropIn("open_clip DistillClipLoss", _open_clip("DistillClipLoss")),
    DropIn("transformers CLIPModel", _transformers("CLIPModel")),
    DropIn("transformers SiglipModel", _transformers("SiglipModel"), width=64),
    DropIn(f"sentence-transformers {RANKING}", _sentence_transformers(RANKING)),
    DropIn(f"sentence-transformers {RANKING}, both ways", _sentence_transformers(RANKING, **BOTH_WAYS)),
    DropIn(
        f"sentence-transformers {RANKING}, all directions",
        _sentence_transformers(RANKING, directions=ALL_DIRECTIONS),
    ),
    DropIn(f"sentence-transformers Cached{RANKING}", _sentence_transformers(f"Cached{RANKING}")),
    DropIn("pytorch-metric-learning NTXentLoss", _simclr, share=1 / 32),
)


def measure_dropin(dropin: DropIn, n: int, d: int, *, seconds: float) -> dict[str, Any]:
    """Return a row: seconds and bytes of either side and theirs over ours, or the failure."""
    n, d = max(2, int(n * dropin.share)), dropin.width or d
    row: dict[str, Any] = {"dropin": dropin.name, "n": n, "d": d}
    try:
        steps = {side: dropin.prepare(side, n, d) for side in SIDES}
        for side in SIDES:
            row[f"{side}_memory"] = _memory(dropin, side, n, d)
    except Unavailable as reason:
        return {**row, "failure": str(reason)}
    timings = measure.in_turns({side: _numbered(step) for side, step in steps.items()}, seconds=seconds)
    for side in SIDES:
        row[f"{side}_seconds"] = timings[side].median
    return {**row, "speedup": timings["theirs"].over(timings["ours"])}


def _numbered(step: Step) -> measure.Step:
    return lambda i: step()


def _memory(dropin: DropIn, side: str, n: int, d: int) -> int | None:
    """Measure a side's memory in a process of its own."""
    request = json.dumps([dropin.name, side, n, d, torch.get_num_threads()])
    done = subprocess.run(
        [sys.executable, "-m", "benchmarks.dropins", "--probe", request],
        env={
            **os.environ,
            "PYTHONPATH": os.pathsep.join(filter(None, (str(ROOT), os.environ.get("PYTHONPATH")))),
        },
        capture_output=True,
        text=True,
    )
    if done.returncode != 0:
        said = done.stderr.strip().splitlines() or [f"status {done.returncode}"]
        raise Unavailable(f"{side} failed: {said[-1][:100]}")
    return json.loads(done.stdout.splitlines()[-1])


def _probe(name: str, side: str, n: int, d: int, threads: int) -> int | None:
    torch.set_num_threads(threads)
    prepare = next(dropin.prepare for dropin in DROPINS if dropin.name == name)
    prepare(side, min(n, SMALL), d)()
    return measure.extra_memory(prepare(side, n, d))


def table(rows: list[dict[str, Any]]) -> str:
    """Lay rows out for a terminal or for Markdown."""
    lines = [
        "| replaced | N | D | time, theirs | ours | | memory, theirs | ours | |",
        "|---|--:|--:|--:|--:|--:|--:|--:|--:|",
    ]
    for row in rows:
        start = f"| {row['dropin']} | {row['n']:,} | {row['d']} | "
        if "failure" in row:
            lines.append(f"{start}{row['failure']} | | | | | |")
            continue
        time = [report.duration(row[f"{side}_seconds"]) for side in SIDES]
        memory = [report.size(row[f"{side}_memory"]) for side in SIDES]
        less = _over(row["theirs_memory"], row["ours_memory"])
        lines.append(start + " | ".join([*time, f"{row['speedup']:.1f} ×", *memory, less]) + " |")
    return "\n".join(lines)


def _over(theirs: int | None, ours: int | None) -> str:
    return f"{theirs / ours:.1f} ×" if theirs and ours else "–"


def main(arguments: list[str]) -> int:
    """Measure the drop-ins, print a table and write the numbers."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks dropins",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("-n", "--pairs", type=int, default=4096, metavar="N", help="default %(default)s")
    parser.add_argument(
        "-d", "--width", type=int, default=512, metavar="D", help="features; default %(default)s"
    )
    parser.add_argument("--only", nargs="+", metavar="NAME", help="drop-ins whose name contains one of these")
    parser.add_argument(
        "--threads", type=int, help="of torch and of the C++ kernels; default: torch's own choice"
    )
    parser.add_argument(
        "--seconds", type=float, default=10.0, help="to spend on timing each; default %(default)s"
    )
    parser.add_argument("--output", type=Path, default=report.RESULTS, help="folder for results")
    parser.add_argument("--probe", help=argparse.SUPPRESS)
    options = parser.parse_args(arguments)
    if options.probe is not None:
        print(json.dumps(_probe(*json.loads(options.probe))))
        return 0
    chosen = [
        dropin for dropin in DROPINS if not options.only or any(name in dropin.name for name in options.only)
    ]
    if not chosen:
        parser.error(
            f"--only {' '.join(options.only)}: there are {', '.join(dropin.name for dropin in DROPINS)}"
        )
    if options.threads is not None:
        torch.set_num_threads(options.threads)
    made_by = report.environment()
    rows = []
    for dropin in chosen:
        say(f"measuring {dropin.name}")
        rows.append(measure_dropin(dropin, options.pairs, options.width, seconds=options.seconds))
    print(table(rows))
    command = f"python -m benchmarks dropins -n {options.pairs} -d {options.width}"
    document = {"command": command, "threads": torch.get_num_threads(), **made_by, "rows": rows}
    say(f"written: {report.save(document, 'dropins-cpu', options.output)}")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
