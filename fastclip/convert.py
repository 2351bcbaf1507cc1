"""Convert a model between fastclip's, OpenAI's, open_clip's and Hugging Face's forms, and check the result.

Examples:

  A training run for transformers, with tokenizer and preprocessor:
      python -m fastclip.convert logs/my-run out/hf --to hf
  The weights that OpenAI published, read without running the program inside:
      python -m fastclip.convert ViT-B-32.pt out/clip --to fastclip
  A state dict, which does not say its activation:
      python -m fastclip.convert weights.bin out/open_clip --to open_clip --config ViT-B-32-quickgelu
  The text tower of a CLIPModel as a pipeline's text encoder, in half precision:
      python -m fastclip.convert clip-folder out/text_encoder --to hf --towers text --dtype float16
  The averaged weights of a run with --ema, in OpenAI's layout:
      python -m fastclip.convert logs/my-run out/mine.safetensors --to openai --averaged
  A ViT for larger pictures:
      python -m fastclip.convert clip-folder out/clip-336 --to fastclip --image-size 336

The result is put aside, read back and compared with the source on random pictures and texts, also by the library it is
for where that is installed; only then does it get its name.
"""

from __future__ import annotations

import argparse
import importlib
import importlib.util
import json
import shutil
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from fastclip.models.config import AnyConfig, CLIPConfig, ImageTowerConfig, TextTowerConfig, VisionConfig
from fastclip.models.loading import build, resize
from fastclip.models.tokenizer import VOCAB_SIZE
from fastclip.models.vocabulary import write_vocabulary
from fastclip.models.weights.errors import WeightsError
from fastclip.models.weights.files import write_tensors
from fastclip.models.weights.folder import has_averaged, save_folder
from fastclip.models.weights.hf import write_hf
from fastclip.models.weights.hf_names import is_siglip
from fastclip.models.weights.open_clip import write_open_clip_config
from fastclip.models.weights.openai import write_openai
from fastclip.models.weights.reading import OPEN_CLIP_CONFIG, read

FORMS = ("fastclip", "hf", "open_clip", "openai")
TOLERANCE = 1e-5  # of the largest entry, or of 1

Tensors = Mapping[str, Tensor]


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command; return its exit status."""
    summary, _, rest = (__doc__ or "").partition("\n\n")
    parser = argparse.ArgumentParser(
        prog="python -m fastclip.convert",
        description=summary,
        epilog=rest,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument(
        "source", type=Path, help="folder or file: of fastclip, OpenAI, open_clip or Hugging Face"
    )
    parser.add_argument("destination", type=Path, help="folder; of openai, a .safetensors or .pt file")
    parser.add_argument("--to", required=True, choices=FORMS, help="form of the result")
    parser.add_argument(
        "--towers", choices=("any", "both", "image", "text"), default="any", help="what to take along"
    )
    parser.add_argument("--config", help="preset that a state dict has, for example ViT-B-32-quickgelu")
    parser.add_argument(
        "--activation", help="gelu, quick_gelu or gelu_tanh, where the source does not say it"
    )
    parser.add_argument(
        "--image-size",
        type=int,
        help="side of the pictures that the result takes, pixels; position embeddings are resampled",
    )
    parser.add_argument(
        "--dtype", choices=("float32", "float16", "bfloat16"), default="float32", help="of the result"
    )
    parser.add_argument(
        "--averaged", action="store_true", help="take the averaged weights of a run with --ema"
    )
    parser.add_argument("--overwrite", action="store_true", help="replace a destination that exists")
    arguments = parser.parse_args(argv)
    try:
        report = convert(**vars(arguments))
    except (WeightsError, ValueError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    for line in report:
        print(line)
    return 0


def convert(
    source: Path,
    destination: Path,
    to: str,
    *,
    towers: str = "any",
    config: CLIPConfig | str | None = None,
    activation: str | None = None,
    image_size: int | None = None,
    dtype: str = "float32",
    averaged: bool = False,
    overwrite: bool = False,
) -> list[str]:
    """Convert a model and check the result; return what was found, line by line.

    Args:
        source, destination: folders or files.
        to: "fastclip", "hf", "open_clip" or "openai".
        towers: "both", "image", "text", or "any": what there is.
        config, activation, image_size, averaged: as in fastclip.models.load.
        dtype: of the result's weights.
        overwrite: replace a destination that exists.

    Raises:
        WeightsError: the source cannot be read, the form has no such model, or the result computes something else.
        ValueError: an argument cannot work.
    """
    if to not in FORMS:
        raise ValueError(f"to must be one of {', '.join(FORMS)}, got {to!r}")
    if to == "openai" and destination.suffix not in (".safetensors", ".pt"):
        raise ValueError(f"destination must end in .safetensors or .pt for openai, got {destination}")
    if destination.exists() and not overwrite:
        raise ValueError(f"{destination} exists; pass --overwrite to replace it")
    tensors, found = read(source, config, activation, towers, averaged)
    if image_size is not None:
        tensors, found = resize(tensors, found, image_size)
    tensors = {
        name: tensor.to(getattr(torch, dtype)) if tensor.is_floating_point() else tensor
        for name, tensor in tensors.items()
    }
    # The suffix stays at the end: it says what kind of file it is.
    aside = destination.with_name(f".partial.{destination.name}")
    _remove(aside)
    destination.parent.mkdir(parents=True, exist_ok=True)
    try:
        {"fastclip": save_folder, "hf": _save_hf, "open_clip": _save_open_clip, "openai": _save_openai}[to](
            aside, tensors, found
        )
        size = sum(tensor.numel() for tensor in tensors.values())
        report = [
            f"{source}: {_describe(found)}, {size / 1e6:.1f} M parameters, activation {found.activation}"
        ]
        if not averaged and has_averaged(source):
            report.append("these are the weights of its last step; --averaged takes the averaged ones")
        report += _verify(aside, tensors, found, to)
        if to == "hf" and "logit_bias" in tensors and not is_siglip(found):
            report.append("logit_bias is left out: CLIPModel has none, and embeddings do not depend on it")
    except BaseException:
        _remove(aside)
        raise
    _remove(destination)
    aside.rename(destination)
    return [*report, f"wrote {destination}"]


def _save_hf(folder: Path, tensors: Tensors, config: AnyConfig) -> None:
    renamed, document, preprocessor = write_hf(tensors, config)
    folder.mkdir()
    write_tensors(folder / "model.safetensors", renamed)
    document["dtype"] = str(next(iter(renamed.values())).dtype).removeprefix("torch.")
    _write_json(folder / "config.json", document)
    if preprocessor is not None:
        _write_json(folder / "preprocessor_config.json", preprocessor)
    if not isinstance(config, ImageTowerConfig) and config.text.vocab_size == VOCAB_SIZE:
        write_vocabulary(folder, config.text.context_length)


def _save_open_clip(folder: Path, tensors: Tensors, config: AnyConfig) -> None:
    if not isinstance(config, CLIPConfig):
        raise WeightsError("open_clip's folders hold both towers; convert a single tower to hf or fastclip")
    document = write_open_clip_config(config)
    folder.mkdir()
    _write_json(folder / OPEN_CLIP_CONFIG, document)
    write_tensors(folder / "open_clip_model.safetensors", write_openai(tensors, config))


def _write_json(path: Path, document: Mapping[str, Any]) -> None:
    path.write_text(json.dumps(document, indent=2) + "\n", encoding="utf-8")


def _save_openai(path: Path, tensors: Tensors, config: AnyConfig) -> None:
    vision, text = getattr(config, "vision", None), getattr(config, "text", None)
    if isinstance(vision, VisionConfig) and (
        (vision.stem, vision.pool, vision.pre_norm, vision.patch_bias, vision.projection)
        != ("patch", "token", True, False, True)
    ):
        raise WeightsError(f"OpenAI's layout has no image tower such as {vision}")
    if text is not None and not (
        text.causal and text.projection and text.pool != "last" and not text.projection_bias
    ):
        raise WeightsError(f"OpenAI's layout has no text tower such as {text}")
    if path.suffix == ".safetensors":
        write_tensors(path, tensors, {"activation": config.activation})
    else:
        torch.save(dict(tensors), path)


def _verify(path: Path, tensors: Tensors, config: AnyConfig, to: str) -> list[str]:
    """Compare the written model, as read by us and by the library it is for, with the one that was read."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        pictures, texts = _inputs(config)
    wanted = _encode(build(tensors, config), pictures, texts)
    given = config if to == "openai" and isinstance(config, CLIPConfig) else None
    read_back, found = read(path, given, None, "any")
    report = [_compare("read back", wanted, _encode(build(read_back, found), pictures, texts))]
    library, run = {"hf": ("transformers", _run_hf), "open_clip": ("open_clip", _run_open_clip)}.get(
        to, ("", None)
    )
    if run is not None and importlib.util.find_spec(library) is None:
        report.append(f"by {library}: not compared, it is not installed")
    elif run is not None:
        report.append(_compare(f"by {library}", wanted, run(path, pictures, texts)))
    return report


def _inputs(config: AnyConfig) -> tuple[Tensor | None, Tensor | None]:
    """Draw two pictures and three texts of different lengths for a model."""
    pictures = texts = None
    if not isinstance(config, TextTowerConfig):
        size = config.vision.image_size
        pictures = torch.randn(2, 3, size, size)
    if not isinstance(config, ImageTowerConfig):
        text = config.text
        length, end = text.context_length, text.eos_id if text.pool == "eos" else text.vocab_size - 1
        texts = torch.randint(0, max(1, min(end, text.vocab_size - 2)), (3, length))
        for i, row in enumerate(texts):
            row[min(length - 1, 2 + 3 * i) :] = 0
            row[min(length - 1, 2 + 3 * i)] = end
    return pictures, texts


@torch.no_grad()
def _encode(model: Any, pictures: Tensor | None, texts: Tensor | None) -> dict[str, Tensor]:
    """Return what a model makes of pictures and texts, by name."""
    found = {}
    if pictures is not None:
        found["image embeddings"] = model.encode_image(pictures)
    if texts is not None:
        found["text embeddings"] = model.encode_text(texts)
        found["text tokens"] = model.encode_text_tokens(texts)
    return found


@torch.no_grad()
def _run_hf(folder: Path, pictures: Tensor | None, texts: Tensor | None) -> dict[str, Tensor]:
    import transformers

    name = json.loads((folder / "config.json").read_text(encoding="utf-8"))["architectures"][0]
    model = getattr(transformers, name).from_pretrained(folder, dtype=torch.float32).eval()
    found = {}
    if pictures is not None and texts is not None:
        output = model(pixel_values=pictures, input_ids=texts)
        image, text = output.vision_model_output, output.text_model_output
        # The model's own outputs are of unit length; these are not.
        features = model.get_image_features(pictures), model.get_text_features(texts)
        found["image embeddings"], found["text embeddings"] = (
            value if isinstance(value, Tensor) else value.pooler_output for value in features
        )
        found["text tokens"] = text.last_hidden_state
        return found
    if pictures is not None:
        image = model(pixel_values=pictures)
        found["image embeddings"] = image.get("image_embeds", image.get("pooler_output"))
    if texts is not None:
        text = model(input_ids=texts)
        found["text embeddings"] = text.get("text_embeds", text.get("pooler_output"))
        found["text tokens"] = text.last_hidden_state
    return found


@torch.no_grad()
def _run_open_clip(folder: Path, pictures: Tensor | None, texts: Tensor | None) -> dict[str, Tensor]:
    open_clip = importlib.import_module("open_clip")
    model = open_clip.create_model(f"local-dir:{folder}").eval()
    return {"image embeddings": model.encode_image(pictures), "text embeddings": model.encode_text(texts)}


def _compare(label: str, wanted: Mapping[str, Tensor], got: Mapping[str, Tensor]) -> str:
    """Describe how far outputs are apart.

    Raises:
        WeightsError: by more than rounding.
    """
    parts = []
    for name, value in got.items():
        error = (value.float() - wanted[name]).abs().max().item()
        bound = TOLERANCE * max(1.0, wanted[name].abs().max().item())
        if not error <= bound:
            raise WeightsError(
                f"{label}, the {name} differ by {error:.2g}, more than {bound:.2g}; nothing was written"
            )
        parts.append(f"{name} {error:.1e}")
    return f"{label}: differences at most {', '.join(parts)}"


def _describe(config: AnyConfig) -> str:
    kinds = {CLIPConfig: "both towers", ImageTowerConfig: "image tower", TextTowerConfig: "text tower"}
    return kinds[type(config)]


def _remove(path: Path) -> None:
    if path.is_dir():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)


if __name__ == "__main__":
    sys.exit(main())
