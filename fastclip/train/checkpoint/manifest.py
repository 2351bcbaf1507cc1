"""The manifest of a checkpoint: what its files must be, byte for byte, and what wrote them."""

from __future__ import annotations

import hashlib
import json
import os
import platform
import re
import time
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch

import fastclip
from fastclip.train.config import ConfigError

FORMAT = 2
NAME = re.compile(r"step_\d{8,}")
REQUIRED = ("model.safetensors", "training.safetensors", "state.json")
_MANIFEST = "manifest.json"
_CHUNK = 1 << 20


class CheckpointError(ConfigError):
    """A checkpoint that is missing, damaged, or made for another model."""


class NoCheckpoint(CheckpointError):
    """There is none at all, as before the first save of a run."""


@dataclass(frozen=True)
class Seal:
    """What a file must be."""

    bytes: int
    sha256: str  #: hexadecimal


def write_sealed(path: Path, chunks: Iterable[bytes | memoryview]) -> Seal:
    """Write a new file and flush it to the disk; return the seal of what was meant to be written."""
    digest, size = hashlib.sha256(), 0
    with path.open("xb") as file:
        for chunk in chunks:
            digest.update(chunk)
            size += len(chunk)
            file.write(chunk)
        file.flush()
        os.fsync(file.fileno())
        if hasattr(os, "posix_fadvise"):  # what is read back is to come from the disk, not from memory
            os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)
    return Seal(size, digest.hexdigest())


def write_manifest(
    folder: Path, files: Mapping[str, Seal], *, step: int, world_size: int, config: Mapping[str, Any]
) -> None:
    """Write the manifest of the files in `folder`."""
    document = {
        "format": FORMAT,
        "step": step,
        "world_size": world_size,
        "written": time.strftime("%Y-%m-%dT%H:%M:%S%z"),
        "versions": {
            "fastclip": fastclip.__version__,
            "torch": torch.__version__,
            "python": platform.python_version(),
        },
        "config": config,
        "files": {name: asdict(seal) for name, seal in files.items()},
    }
    text = json.dumps({**document, "digest": _digest(document)}, indent=2) + "\n"
    write_sealed(folder / _MANIFEST, [text.encode()])


def read_manifest(folder: Path) -> dict[str, Any]:
    """Return the manifest of a checkpoint.

    Raises:
        CheckpointError: there is none, it is damaged, or of another format.
    """
    path = folder / _MANIFEST
    if not path.is_file():
        raise CheckpointError(_why_not(folder))
    try:
        document = json.loads(path.read_bytes())
        digest = document.pop("digest")
        version = document["format"]
    except (OSError, ValueError, KeyError, AttributeError, TypeError, RecursionError) as error:
        raise CheckpointError(f"{path} is damaged ({type(error).__name__}: {error})") from error
    if version != FORMAT:
        raise CheckpointError(
            f"{folder} has checkpoint format {version}, this version reads {FORMAT}; "
            "use the version of fastclip that wrote it"
        )
    if digest != _digest(document):
        raise CheckpointError(f"{path} is damaged (its digest does not match)")
    if missing := [name for name in REQUIRED if name not in document["files"]]:
        raise CheckpointError(f"{path} lists no {', '.join(missing)}")
    return document


def verify(folder: Path) -> dict[str, Any]:
    """Compare every file of a checkpoint with its manifest, byte for byte; return the manifest.

    Raises:
        CheckpointError: a file is missing, too short or too long, or has other contents.
    """
    manifest = read_manifest(folder)
    for name, seal in manifest["files"].items():
        path = folder / name
        if Path(name).name != name:
            raise CheckpointError(f"{folder} lists {name!r}, which is no name of a file in it")
        if not path.is_file():
            raise CheckpointError(f"{folder} is incomplete: {name} is missing")
        size = path.stat().st_size
        if size != seal["bytes"]:
            raise CheckpointError(f"{path} is damaged: {size:,} bytes in place of {seal['bytes']:,}")
        if _file_digest(path) != seal["sha256"]:
            raise CheckpointError(f"{path} is damaged: its SHA-256 is not the manifest's")
    return manifest


def checkpoints(folder: Path) -> list[Path]:
    """Return the checkpoints in `folder`, oldest first.

    A save that replaces one of the same step and is cut down between two renames leaves the old one under its
    `.replaced` name; it stands in for the missing one.
    """
    if not folder.is_dir():
        return []
    found: dict[int, Path] = {}
    for path in sorted(folder.iterdir()):  # hidden names come first, proper ones replace them
        name = proper_name(path)
        if name is not None and path.is_dir():
            found[int(name.removeprefix("step_"))] = path
    return [found[step] for step in sorted(found)]


def proper_name(path: Path) -> str | None:
    """Return the name `step_…` that a checkpoint has or, under its `.replaced` name, had; None for anything else."""
    name = path.name.removeprefix(".").removesuffix(".replaced")
    own = NAME.fullmatch(name) and path.name in (name, replaced(path.with_name(name)).name)
    return name if own else None


def replaced(path: Path) -> Path:
    """Return the name a checkpoint has while another takes its place."""
    return path.with_name(f".{path.name}.replaced")


def _why_not(folder: Path) -> str:
    if (folder / "state.json").is_file():
        return (
            f"{folder} has no {_MANIFEST}: it is incomplete, or of checkpoint format 1, which has no checksums "
            f"and which this version does not resume; its weights are in {folder / REQUIRED[0]}"
        )
    expected = ", ".join((*REQUIRED, _MANIFEST))
    return f"{folder} is no checkpoint: {_MANIFEST} is missing; expected {expected}"


def _digest(document: Mapping[str, Any]) -> str:
    text = json.dumps(document, sort_keys=True, separators=(",", ":"))
    return hashlib.sha256(text.encode()).hexdigest()


def _file_digest(path: Path) -> str:
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while chunk := file.read(_CHUNK):
            digest.update(chunk)
    return digest.hexdigest()
