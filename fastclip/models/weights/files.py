"""Tensors in files, read without running code from them.

safetensors is only data. A .pt, .pth or .bin is a pickle, which torch's `weights_only` reader takes apart without
calling anything it does not know. A TorchScript archive, the form of OpenAI's own files, is a zip file with a pickle
of its own, read here as strictly: nothing of the program inside is run.
"""

from __future__ import annotations

import pickle
import re
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import IO, Any

import torch
from torch import Tensor

from .errors import WeightsError

SUFFIXES = (".safetensors", ".pt", ".pth", ".bin", ".ckpt")


def read_file(path: Path) -> tuple[dict[str, Any], dict[str, str]]:
    """Read the tensors of a file, and what it says of them: safetensors' metadata.

    Of a TorchScript archive the second part holds "activation" if its program has QuickGELU in it.

    Raises:
        WeightsError: the file is missing, damaged, or holds more than weights.
    """
    if path.suffix == ".safetensors":
        return read_tensors(path), read_metadata(path)
    if path.suffix not in SUFFIXES:
        raise WeightsError(f"{path} has none of the endings {', '.join(SUFFIXES)}")
    if not path.is_file():
        raise WeightsError(f"{path} does not exist")
    if zipfile.is_zipfile(path) and _is_torchscript(path):
        return _read_torchscript(path)
    try:
        content = torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        reason = str(error).split("\n")[0].split(".")[0]
        raise WeightsError(
            f"{path} holds more than weights, and is not opened: that could run code from it ({reason}). "
            "Where you trust it, load it with torch, take its state_dict and save that with safetensors"
        ) from error
    except (OSError, RuntimeError, EOFError, ValueError) as error:
        raise WeightsError(f"{path} cannot be read: {error}") from error
    if not isinstance(content, Mapping):
        raise WeightsError(f"{path} holds a {type(content).__name__} in place of a state dict")
    return dict(content), {}


def read_shards(index: Path, weight_map: Mapping[str, str]) -> dict[str, Tensor]:
    """Read a model that is spread over several files, as its index says.

    Raises:
        WeightsError: a file is missing, damaged, or not in the same folder.
    """
    tensors: dict[str, Tensor] = {}
    for name in sorted(set(weight_map.values())):
        if Path(name).name != name:
            raise WeightsError(f"{index} lists {name!r}, which is no name of a file beside it")
        tensors |= read_file(index.parent / name)[0]
    if missing := sorted(weight_map.keys() - tensors.keys()):
        raise WeightsError(f"{index} lists tensors that are in no file: {', '.join(missing[:4])}")
    return tensors


def read_tensors(path: Path) -> dict[str, Tensor]:
    """Read a safetensors file.

    Raises:
        WeightsError: it is missing or damaged.
    """
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    try:
        return load_file(path)
    except (OSError, SafetensorError) as error:
        raise WeightsError(f"{path} cannot be read: {error}") from error


def read_metadata(path: Path) -> dict[str, str]:
    """Read the metadata of a safetensors file that read_tensors could read."""
    from safetensors import safe_open

    with safe_open(path, "pt") as file:
        return dict(file.metadata() or {})


def write_tensors(
    path: Path, tensors: Mapping[str, Tensor], metadata: Mapping[str, str] | None = None
) -> None:
    """Write a safetensors file; "format" is in its metadata, as Hugging Face wants it."""
    from safetensors.torch import save_file

    whole = {name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}
    save_file(whole, path, metadata={"format": "pt", **(metadata or {})})


def _is_torchscript(path: Path) -> bool:
    with zipfile.ZipFile(path) as archive:
        return any(re.fullmatch(r"[^/]+/constants\.pkl", name) for name in archive.namelist())


def _read_torchscript(path: Path) -> tuple[dict[str, Any], dict[str, str]]:
    """Read the module tree of a TorchScript archive and flatten it to a state dict."""
    with zipfile.ZipFile(path) as archive:
        root = archive.namelist()[0].split("/")[0]
        try:
            module, constants = (
                _ModuleReader(archive.open(f"{root}/{part}.pkl"), archive, f"{root}/{part}").load()
                for part in ("data", "constants")
            )
        except (pickle.UnpicklingError, KeyError, EOFError, RuntimeError, TypeError, ValueError) as error:
            raise WeightsError(f"{path} is a TorchScript archive that cannot be read: {error}") from error
        programs = [name for name in archive.namelist() if re.match(rf"{re.escape(root)}/code/.*\.py$", name)]
        # x * sigmoid(1.702 * x) has its number in the program, which is read as text, or among its constants.
        quick = any(b"1.702" in archive.read(name) for name in programs) or any(
            isinstance(value, Tensor) and value.numel() == 1 and abs(value.item() - 1.702) < 1e-3
            for value in constants
        )
    tensors: dict[str, Any] = {}
    _flatten(module, "", tensors)
    return tensors, {"activation": "quick_gelu"} if quick else {}


class _Module:
    """Stand in for a class of the archive's program: its objects are their attributes and no more."""

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state)


class _ModuleReader(pickle.Unpickler):
    """Unpickle modules as _Module and tensors as tensors; refuse everything else."""

    def __init__(self, file: IO[bytes], archive: zipfile.ZipFile, folder: str) -> None:
        super().__init__(file)
        self.archive, self.folder = archive, folder

    def find_class(self, module: str, name: str) -> Any:
        if module.startswith("__torch__"):
            return _Module
        if (module, name) == ("torch._utils", "_rebuild_tensor_v2"):
            return _rebuild_tensor
        if (module, name) == ("collections", "OrderedDict"):
            return dict
        if module == "torch" and name.endswith("Storage"):
            return name
        if module == "torch.jit._pickle":  # typed lists and the like
            return lambda *values: values[0] if values else None
        raise pickle.UnpicklingError(f"it names {module}.{name}")

    def persistent_load(self, key: Any) -> Tensor:
        _, storage, name, _, count = key
        if not re.fullmatch(r"\w+", str(name)):
            raise pickle.UnpicklingError(f"it names a storage {name!r}")
        data = bytearray(self.archive.read(f"{self.folder}/{name}"))
        return torch.frombuffer(data, dtype=_STORAGES[storage], count=count) if count else torch.empty(0)


_STORAGES = {
    "FloatStorage": torch.float32,
    "HalfStorage": torch.float16,
    "BFloat16Storage": torch.bfloat16,
    "DoubleStorage": torch.float64,
    "LongStorage": torch.int64,
    "IntStorage": torch.int32,
    "BoolStorage": torch.bool,
}


def _rebuild_tensor(storage: Tensor, offset: int, size: Any, stride: Any, *_: Any) -> Tensor:
    return storage.as_strided(size, stride, offset)  # which checks that they fit the storage


def _flatten(module: Any, prefix: str, tensors: dict[str, Any]) -> None:
    for name, value in vars(module).items():
        if isinstance(value, Tensor):
            tensors[prefix + name] = value
        elif isinstance(value, _Module):
            _flatten(value, f"{prefix}{name}.", tensors)
