"""What the commands over a space have in common: reading their flags, opening a model, telling how far they are."""

from __future__ import annotations

import dataclasses
import inspect
import json
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated, Any, TypeVar

import torch
import tyro

from fastclip.models import Loaded, load
from fastclip.models.weights.folder import has_averaged
from fastclip.space.encoder import Encoder

Options = TypeVar("Options")

# Arguments that are told by their place, not by a flag.
ModelArgument = Annotated[tyro.conf.Positional[str], tyro.conf.arg(metavar="MODEL")]
DataArgument = Annotated[tyro.conf.Positional[str], tyro.conf.arg(metavar="DATA")]
OutputArgument = Annotated[tyro.conf.Positional[str], tyro.conf.arg(metavar="OUTPUT")]
EmbeddingsArgument = Annotated[tyro.conf.Positional[str], tyro.conf.arg(metavar="EMBEDDINGS")]

#: Which weights of a run to take.
AveragedFlag = Annotated[
    bool,
    tyro.conf.arg(
        help="Take the averaged weights of a run with --ema, on which it was tested. Default: those of its last step."
    ),
]


class CommandError(Exception):
    """Something that the user can put right; the message says what and how."""


def main(
    options: type[Options],
    run: Callable[[Options], object],
    argv: Sequence[str] | None,
    *,
    name: str,
    examples: str,
) -> int:
    """Parse the flags of `python -m fastclip.<name>` and run it.

    Args:
        options: a dataclass whose fields are the flags and whose docstring is the description.
        run: the command.
        argv: without the program's name; None: the process's own.
        name: of the command.
        examples: lines that show its use, printed below the description by `--help`.

    Returns:
        The exit code: 0 done, 1 failed with a message, 130 interrupted. (2, wrong flags, is raised as SystemExit.)
    """
    description = f"{inspect.cleandoc(options.__doc__ or '')}\n\nExamples:\n{examples}"
    chosen = tyro.cli(
        tyro.conf.configure(tyro.conf.OmitArgPrefixes)(options),
        prog=f"python -m fastclip.{name}",
        description=description,
        args=None if argv is None else list(argv),
    )
    try:
        run(chosen)
    except (CommandError, ValueError, TypeError, OSError, ImportError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
        return 130
    return 0


def open_model(
    path: str, device: str = "auto", dtype: torch.dtype = torch.float32, *, averaged: bool = False
) -> Loaded[Any]:
    """Load a model as `fastclip.models.load` does; "auto" is a GPU where there is one.

    Whoever takes the last weights of a run that has averaged ones, too, is told.
    """
    if device == "auto":
        device = "cuda" if torch.cuda.is_available() else "cpu"
    if not averaged and has_averaged(Path(path)):
        print(f"{path}: the weights of its last step; --averaged takes the averaged ones", file=sys.stderr)
    return load(path, device=device, dtype=dtype, averaged=averaged)


def open_encoder(
    path: str, device: str = "auto", batch_size: int = 256, *, averaged: bool = False
) -> Encoder:
    """Load a model and return the encoder of its pictures and texts."""
    model, _, tokenizer = open_model(path, device, averaged=averaged)
    return Encoder(model, tokenizer, batch_size=batch_size)


def write_json(path: Path, value: Any) -> None:
    """Write plain values, or a dataclass of them, as JSON."""
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        value = dataclasses.asdict(value)
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(value, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")


@contextmanager
def progress(title: str, total: int, unit: str) -> Iterator[Callable[[int], object]]:
    """Show a bar on a terminal, nothing elsewhere; yields what is called with the number of items done since."""
    from tqdm import tqdm

    with tqdm(total=total, desc=title, unit=unit, disable=None, file=sys.stderr, leave=False) as bar:
        yield bar.update
