"""What callers may hand to a loss: every check and every error message, in one place, before any kernel runs."""

from __future__ import annotations

from numbers import Integral, Real

import torch
from torch import Tensor

Labels = Tensor | tuple[Tensor, Tensor]
REDUCTIONS = ("mean", "sum", "none")
DTYPES = (torch.float32, torch.bfloat16, torch.float16, torch.float64)


def check_features(
    names: tuple[str, str], x: Tensor, y: Tensor, *, shards: bool = False
) -> tuple[Tensor, Tensor]:
    """Return both feature matrices, in one dtype; `names` are what the caller knows them by.

    Different dtypes are refused as torch's matmul refuses them; under autocast, where torch would cast them, both take
    the wider one. One rank's shards of the features may have no rows.

    Raises:
        TypeError: not floating-point tensors, or of two dtypes.
        ValueError: not 2-D, empty, of two widths or on two devices.
    """
    for name, features in zip(names, (x, y), strict=True):
        if not isinstance(features, Tensor):
            raise TypeError(f"{name} must be a tensor of shape (rows, D), got {type(features).__name__}")
        if features.dim() != 2:
            raise ValueError(
                f"{name} must have shape (rows, D), got {tuple(features.shape)}; flatten or pool it first"
            )
        if not features.is_floating_point():
            raise TypeError(f"{name} must be floating point, got {features.dtype}; convert it with .float()")
        if features.dtype not in DTYPES:
            known = ", ".join(str(dtype).removeprefix("torch.") for dtype in DTYPES)
            raise TypeError(f"{name} must be of {known}, got {features.dtype}; convert it with .bfloat16()")
        if 0 in features.shape[shards:]:
            raise ValueError(
                f"{name} is empty, shape {tuple(features.shape)}; a loss needs at least one pair"
            )
    if x.shape[1] != y.shape[1]:
        raise ValueError(
            f"{names[1]} has {y.shape[1]} features but {names[0]} has {x.shape[1]}; project both to one width"
        )
    if x.device != y.device:
        raise ValueError(
            f"{names[1]} is on {y.device} but {names[0]} is on {x.device}; move both to one device"
        )
    if x.dtype == y.dtype:
        return x, y
    if not torch.is_autocast_enabled(x.device.type):
        raise TypeError(
            f"{names[1]} is {y.dtype} but {names[0]} is {x.dtype}; cast one to the other's dtype "
            "(under torch.autocast the wider one is taken)"
        )
    wider = torch.promote_types(x.dtype, y.dtype)
    return x.to(wider), y.to(wider)


def check_scalar(name: str, value: float | Tensor, like: Tensor) -> Tensor:
    """Return a scale or bias as a 0-d tensor of `like`'s device and dtype, still attached to its graph.

    Raises:
        TypeError: neither a number nor a floating-point tensor.
        ValueError: a tensor of more than one element.
    """
    if isinstance(value, Real) and not isinstance(value, bool):  # NumPy's numbers too
        return torch.full((), float(value), dtype=like.dtype, device=like.device)
    if not isinstance(value, Tensor) or not value.is_floating_point():
        got = value.dtype if isinstance(value, Tensor) else type(value).__name__
        raise TypeError(f"{name} must be a float or a floating-point tensor of one element, got {got}")
    if value.numel() != 1:
        raise ValueError(f"{name} must have one element, got shape {tuple(value.shape)}")
    return value.reshape(()).to(like.device, like.dtype)


def inverse(temperature: float | Tensor) -> float | Tensor:
    """Return the scale that is a temperature's inverse.

    Raises:
        TypeError: neither a number nor a floating-point tensor.
        ValueError: a number that is not positive, or a tensor of more than one element.
    """
    is_tensor = isinstance(temperature, Tensor)
    check_scalar("temperature", temperature, temperature if is_tensor else torch.empty(0))  # type: ignore[arg-type]
    if not is_tensor and not temperature > 0:
        raise ValueError(f"temperature must be positive, got {temperature}")
    return 1 / temperature


def check_weights(weights: tuple[float, float]) -> None:
    """Check the weights of two directions.

    Raises:
        ValueError: not two numbers.
    """
    if (
        not isinstance(weights, (tuple, list))
        or len(weights) != 2
        or not all(isinstance(weight, Real) for weight in weights)
    ):
        raise ValueError(f"weights must be two numbers, of rows and of columns, got {weights!r}")


def check_diagonal(names: tuple[str, str], diagonal: int, m: int, n: int) -> None:
    """Check that every row's positive, column ``row + diagonal``, exists.

    Raises:
        TypeError: diagonal is no integer.
        ValueError: some row's positive lies outside the columns.
    """
    _check_integer("diagonal", diagonal)
    if diagonal < 0 or diagonal + m > n:
        first, second = names
        raise ValueError(
            f"diagonal={diagonal} puts the positives of {m} rows of {first} at rows {diagonal} to {diagonal + m - 1} "
            f"of {second}, which has {n}; every row needs its partner ({second} may have extra rows, not fewer)"
        )


def check_labels(labels: Labels | None, m: int, n: int, device: torch.device) -> tuple[Tensor, Tensor] | None:
    """Return labels as an int64 pair (rows (M,), columns (N,)); one tensor comes back as the same one twice.

    Raises:
        TypeError: not integer tensors.
        ValueError: of the wrong length, or one tensor for M != N.
    """
    if labels is None:
        return None
    both = isinstance(labels, Tensor)
    if isinstance(labels, Tensor):
        if m != n:
            raise ValueError(
                f"labels must be a (rows, columns) pair of tensors where M != N, here {m} and {n}"
            )
        labels = (labels, labels)
    if not isinstance(labels, (tuple, list)) or len(labels) != 2:
        raise TypeError(
            f"labels must be an integer tensor or a (rows, columns) pair of them, got {_describe(labels)}"
        )
    pair = []
    for side, ids, length in zip(("row", "column"), labels, (m, n), strict=True):
        if not isinstance(ids, Tensor) or ids.is_floating_point() or ids.is_complex():
            got = ids.dtype if isinstance(ids, Tensor) else type(ids).__name__
            raise TypeError(f"{side} labels must be an integer tensor, got {got}")
        if ids.shape != (length,):
            raise ValueError(
                f"{side} labels must have shape ({length},), one per feature row, got {tuple(ids.shape)}"
            )
        pair.append(ids.to(device, torch.int64))
    return pair[0], pair[0] if both else pair[1]


def _describe(value: object) -> str:
    kind = type(value).__name__
    return f"a {kind} of {len(value)}" if isinstance(value, (tuple, list)) else kind


def check_multi_positive(
    labels: tuple[Tensor, Tensor] | None, diagonal: int, label_smoothing: float = 0.0
) -> tuple[Tensor, Tensor]:
    """Return the labels that decide which entries are positives.

    Raises:
        ValueError: there are none, or an option was given that has no meaning with many positives.
    """
    if labels is None:
        raise ValueError("multi_positive=True needs labels: pairs that share a label are the positives")
    if diagonal != 0:
        raise ValueError(
            f"diagonal must be 0 with multi_positive=True, got {diagonal}: labels decide the positives"
        )
    if label_smoothing:
        raise ValueError(
            f"label_smoothing must be 0 with multi_positive=True, got {label_smoothing}: the target is already spread"
        )
    return labels


def check_square(what: str, m: int, n: int) -> None:
    """Check that there are as many rows as columns.

    Raises:
        ValueError: there are not.
    """
    if m != n:
        raise ValueError(f"{what} needs as many rows as columns, got {m} and {n}")


def check_reduction(reduction: str) -> None:
    """Check the name of a reduction.

    Raises:
        ValueError: unknown.
    """
    if reduction not in REDUCTIONS:
        raise ValueError(f"reduction must be one of {', '.join(map(repr, REDUCTIONS))}, got {reduction!r}")


def check_fraction(name: str, value: float) -> None:
    """Check that a number lies in [0, 1].

    Raises:
        ValueError: it does not.
    """
    if not (isinstance(value, Real) and 0 <= value <= 1):
        raise ValueError(f"{name} must be a number in [0, 1], got {value!r}")


def check_workspace(workspace: float) -> int:
    """Return a workspace in MiB as bytes; as many as nobody has for infinity.

    Raises:
        ValueError: no number, or negative.
    """
    if not isinstance(workspace, Real) or isinstance(workspace, bool) or not workspace >= 0:
        raise ValueError(
            f"workspace must be at least 0 MiB (0 keeps nothing between the passes, infinity all), got {workspace!r}"
        )
    return int(min(workspace, 2.0**40) * 2**20)


def check_count(name: str, value: int, most: int, of_what: str) -> None:
    """Check that a number of things lies between 1 and how many there are.

    Raises:
        TypeError: no integer.
        ValueError: it does not.
    """
    _check_integer(name, value)
    if not 1 <= value <= most:
        raise ValueError(f"{name} must lie between 1 and {of_what}, {most}, got {value}")


def _check_integer(name: str, value: object) -> None:
    if not isinstance(value, (int, Integral, torch.SymInt)) or isinstance(value, bool):
        raise TypeError(f"{name} must be an integer, got {value!r}")
