"""Measure how fast pictures and texts are embedded, beside transformers' CLIPModel with the same weights.

    python -m benchmarks embed                          ViT-B/32, one thread, batches of 16 pictures and 64 texts
    python -m benchmarks embed --threads 2 --turns 9
    python -m benchmarks embed --small                  a model of two narrow layers: a quick look

Both models hold the same random weights; the largest difference of their unit-length features is reported. They take
turns, and the ratio is the median over turns of both times in one turn, so that a busy machine is busy for both; the
second ratio is that of the processor time of all threads.
Texts are compared twice: all padded to 77 tokens, as CLIP was trained, and padded to the longest of their batch, the
least that transformers can do. From files, pictures are JPEGs of 500 x 375 pixels: here fastclip.embed's reading and
decoding, there Pillow and CLIPImageProcessor.
"""

from __future__ import annotations

import argparse
import statistics
import tempfile
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from benchmarks import report
from benchmarks.report import say
from fastclip.models import Tokenizer, load
from fastclip.space import Encoder, PictureFiles

WORDS = "a the red small old two on in with near street photo dog bicycle morning light window people house river green"
SMALL = dict(hidden_size=64, intermediate_size=128, num_hidden_layers=2, num_attention_heads=2)


@dataclass(frozen=True)
class Row:
    """One kind of input: how many are embedded a second, here and there."""

    what: str
    batch: int
    fastclip_per_second: float
    transformers_per_second: float
    ratio: float
    cpu_ratio: float  #: of the processor time of all threads, which holds on a busy machine too
    difference: float  #: the largest between entries of both, at unit length


def compare(
    what: str, batch: int, ours: Callable[[], Tensor], theirs: Callable[[], Tensor], turns: int
) -> Row:
    """Time both on one batch, in turns."""
    with torch.inference_mode():
        a, b = (F.normalize(encode().float(), dim=-1) for encode in (ours, theirs))
        times = [(*_seconds(ours), *_seconds(theirs)) for _ in range(turns)]
    mine, _, other, _ = zip(*times, strict=True)
    return Row(
        what,
        batch,
        batch / statistics.median(mine),
        batch / statistics.median(other),
        statistics.median(there / here for here, _, there, _ in times),
        statistics.median(there / here for _, here, _, there in times),
        (a - b).abs().max().item(),
    )


def _seconds(call: Callable[[], Tensor]) -> tuple[float, float]:
    """Return the time on the clock, and on the processors."""
    start, used = time.perf_counter(), time.process_time()
    call()
    return time.perf_counter() - start, time.process_time() - used


def measure(options: argparse.Namespace) -> list[Row]:
    """Make both models and measure all rows."""
    import numpy as np
    from PIL import Image
    from transformers import CLIPConfig, CLIPModel
    from transformers.utils import logging

    logging.set_verbosity_error()
    logging.disable_progress_bar()
    torch.manual_seed(0)
    parts: dict[str, Any] = (
        {"text_config": dict(SMALL), "vision_config": dict(SMALL)} if options.small else {}
    )
    theirs = CLIPModel(CLIPConfig(**parts)).eval()
    generator = torch.Generator().manual_seed(0)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        theirs.save_pretrained(folder / "model")
        model, _, _ = load(folder / "model")
        tokenizer = Tokenizer()  # a CLIPModel folder without its tokenizer's files
        side, batch, texts = model.config.vision.image_size, options.pictures, options.texts

        def their_images(pixels: Tensor) -> Tensor:
            return theirs.visual_projection(theirs.vision_model(pixel_values=pixels).pooler_output)

        def their_texts(tokens: Tensor) -> Tensor:
            return theirs.text_projection(theirs.text_model(input_ids=tokens).pooler_output)

        say("pictures")
        images = torch.randint(0, 256, (batch, 3, side, side), dtype=torch.uint8, generator=generator)
        pixels = model.preprocess(images)
        rows = [
            compare(
                "pictures",
                batch,
                lambda: model.encode_image(pixels),
                lambda: their_images(pixels),
                options.turns,
            )
        ]

        say("texts")
        lengths = torch.randint(4, 20, (texts,), generator=generator).tolist()
        words = WORDS.split()
        picks = torch.randint(len(words), (texts, 20), generator=generator).tolist()
        captions = [
            " ".join(words[i] for i in row[:length]) for row, length in zip(picks, lengths, strict=True)
        ]
        tokens = tokenizer(captions)
        short = tokens[:, : int(tokens.argmax(1).max()) + 1]
        for what, given in (("texts, padded to 77", tokens), ("texts, padded to the longest", short)):
            rows.append(
                compare(what, texts, lambda given=given: model.encode_text(given),  # type: ignore[misc]
                        lambda given=given: their_texts(given), options.turns)  # type: ignore[misc]
            )  # fmt: skip

        say("pictures from files")
        files = []
        for i in range(batch):
            small = torch.rand(24, 32, 3, generator=generator).numpy()
            picture = Image.fromarray((255 * small).astype(np.uint8)).resize((500, 375))
            files.append(folder / f"{i}.jpg")
            picture.save(files[-1], quality=90)
        rows.append(_from_files(model, tokenizer, files, their_images, options))
    return rows


def _from_files(
    model: Any,
    tokenizer: Any,
    files: list[Path],
    their_images: Callable[[Tensor], Tensor],
    options: argparse.Namespace,
) -> Row:
    from PIL import Image
    from transformers import CLIPImageProcessor

    side = model.config.vision.image_size
    processor = CLIPImageProcessor(size={"shortest_edge": side}, crop_size={"height": side, "width": side})
    encoder = Encoder(model, tokenizer, batch_size=len(files))

    def ours() -> Tensor:
        pictures = PictureFiles(files, side)
        return torch.cat(
            [encoder.images(images) for images, _ in pictures.batches(len(files), workers=options.threads)]
        )

    def theirs() -> Tensor:
        opened = []
        for file in files:
            with Image.open(file) as picture:
                opened.append(picture.convert("RGB"))
        return their_images(processor(images=opened, return_tensors="pt")["pixel_values"])

    return compare("pictures from files", len(files), ours, theirs, options.turns)


def table(rows: list[Row]) -> str:
    """Lay rows out for a terminal."""
    lines = [
        f"  {'':<30}  {'fastclip':>12}  {'transformers':>12}  {'ratio':>6}  {'of CPU':>6}  {'difference':>10}"
    ]
    lines += [
        f"  {row.what:<30}  {row.fastclip_per_second:>10.1f}/s  {row.transformers_per_second:>10.1f}/s"
        f"  {row.ratio:>6.2f}  {row.cpu_ratio:>6.2f}  {row.difference:>10.0e}"
        for row in rows
    ]
    return "\n".join(lines)


def main(arguments: list[str]) -> int:
    """Measure, print a table and write JSON."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks embed",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    add = parser.add_argument
    add("--pictures", type=int, default=16, metavar="N", help="pictures of a batch; default %(default)s")
    add("--texts", type=int, default=64, metavar="N", help="texts of a batch; default %(default)s")
    add("--turns", type=int, default=7, metavar="T", help="times each is measured; default %(default)s")
    add("--threads", type=int, default=1, metavar="T", help="of torch and of decoding; default %(default)s")
    add("--small", action="store_true", help="a small model in place of ViT-B/32")
    add("--output", type=Path, default=report.RESULTS, help="folder for results")
    options = parser.parse_args(arguments)
    torch.set_num_threads(options.threads)
    made_by = report.environment()
    rows = measure(options)
    print(table(rows))
    name = "embed-cpu-small" if options.small else "embed-cpu"
    document = {
        "command": report.command("embed", arguments),
        **made_by,
        "rows": [asdict(row) for row in rows],
    }
    say(f"results: {report.save(document, name, options.output)}")
    return 0
