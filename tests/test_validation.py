"""Bad input: one clear error each, which names the argument, what was expected, what came, and the remedy."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
import torch

import fastclip
from fastclip.backends import get_backend, resolve_backend
from fastclip.functional import info_nce_loss
from tests.regimes import unit

X, Y = unit(4, 8, 1).float(), unit(4, 8, 2).float()
LONGER = unit(6, 8, 3).float()
LABELS = torch.arange(4)

clip, siglip = fastclip.clip_loss, fastclip.siglip_loss

#: What is wrong -> (the call, the kind of error, all that its message must say).
BAD: dict[str, tuple[Callable[[], object], type[Exception], tuple[str, ...]]] = {
    # Features.
    "another width": (
        lambda: clip(X, Y[:, :5], 10.0),
        ValueError,
        ("text_features has 5 features", "image_features has 8", "project both to one width"),
    ),
    "an empty batch": (
        lambda: clip(X[:0], Y[:0], 10.0),
        ValueError,
        ("image_features is empty", "(0, 8)", "at least one pair"),
    ),
    "no features": (
        lambda: siglip(X[:, :0], Y[:, :0], 10.0),
        ValueError,
        ("image_features is empty", "(4, 0)"),
    ),
    "integers": (
        lambda: clip(X.long(), Y, 10.0),
        TypeError,
        ("image_features must be floating point", "torch.int64", ".float()"),
    ),
    "eight bits": (
        lambda: clip(X.to(torch.float8_e4m3fn), Y.to(torch.float8_e4m3fn), 10.0),
        TypeError,
        ("image_features must be of float32, bfloat16, float16, float64", "float8_e4m3fn"),
    ),
    "integers on the other side": (
        lambda: siglip(X, Y.to(torch.uint8), 10.0),
        TypeError,
        ("text_features must be floating point", "torch.uint8", ".float()"),
    ),
    "a list": (
        lambda: clip([[1.0]], Y, 10.0),
        TypeError,
        ("image_features must be a tensor", "(rows, D)", "list"),
    ),
    "one vector": (
        lambda: clip(X[0], Y, 10.0),
        ValueError,
        ("image_features must have shape (rows, D)", "(8,)", "flatten or pool"),
    ),
    "tokens": (
        lambda: siglip(X, Y[None], 10.0),
        ValueError,
        ("text_features must have shape (rows, D)", "(1, 4, 8)", "flatten or pool"),
    ),
    "two dtypes": (
        lambda: clip(X, Y.bfloat16(), 10.0),
        TypeError,
        ("text_features is torch.bfloat16", "image_features is torch.float32", "cast one", "autocast"),
    ),
    "two devices": (
        lambda: clip(X, Y.to("meta"), 10.0),
        ValueError,
        ("text_features is on meta", "image_features is on cpu", "move both to one device"),
    ),
    "the names of queries and keys": (
        lambda: info_nce_loss(X, Y[:, :5], 10.0),
        ValueError,
        ("key_features has 5 features", "query_features has 8"),
    ),
    # Pairs.
    "more images than texts": (
        lambda: clip(LONGER, Y, 10.0),
        ValueError,
        (
            "diagonal=0",
            "6 rows of image_features",
            "rows 0 to 5 of text_features",
            "which has 4",
            "its partner",
        ),
    ),
    "a diagonal that does not fit": (
        lambda: clip(X, LONGER, 10.0, diagonal=3),
        ValueError,
        ("diagonal=3", "rows 3 to 6 of text_features", "which has 6"),
    ),
    "a negative diagonal": (
        lambda: siglip(X, LONGER, 10.0, diagonal=-1),
        ValueError,
        ("diagonal=-1", "rows -1 to 2"),
    ),
    "a diagonal that is no integer": (
        lambda: clip(X, LONGER, 10.0, diagonal=1.5),
        TypeError,
        ("diagonal must be an integer", "1.5"),
    ),
    "a diagonal of queries and keys": (
        lambda: info_nce_loss(LONGER, Y, 10.0),
        ValueError,
        ("6 rows of query_features", "of key_features, which has 4"),
    ),
    "views of different samples": (
        lambda: fastclip.NTXentLoss()(LONGER, Y),
        ValueError,
        ("a loss of two views needs as many rows as columns", "6 and 4"),
    ),
    "views of two widths": (
        lambda: fastclip.NTXentLoss()(X, Y[:, :5]),
        ValueError,
        ("out1 has 5 features but out0 has 8",),
    ),
    # Scalars.
    "a scale of many elements": (
        lambda: clip(X, Y, torch.ones(4)),
        ValueError,
        ("logit_scale must have one element", "(4,)"),
    ),
    "a scale of no kind": (
        lambda: clip(X, Y, "100"),
        TypeError,
        ("logit_scale must be a float", "one element", "str"),
    ),
    "no scale": (lambda: clip(X, Y, None), TypeError, ("logit_scale must be a float", "NoneType")),
    "a boolean scale": (lambda: clip(X, Y, True), TypeError, ("logit_scale must be a float", "bool")),
    "an integer tensor as scale": (
        lambda: clip(X, Y, torch.tensor(100)),
        TypeError,
        ("logit_scale must be a float or a floating-point tensor", "torch.int64"),
    ),
    "a bias of many elements": (
        lambda: siglip(X, Y, 10.0, logit_bias=torch.ones(4)),
        ValueError,
        ("logit_bias must have one element", "(4,)"),
    ),
    "scale and temperature": (
        lambda: info_nce_loss(X, Y, 10.0, temperature=0.1),
        ValueError,
        ("exactly one of logit_scale and temperature", "logit_scale = 1 / temperature"),
    ),
    "a temperature of 0": (
        lambda: info_nce_loss(X, Y, temperature=0.0),
        ValueError,
        ("temperature must be positive", "got 0.0"),
    ),
    "temperatures": (
        lambda: info_nce_loss(X, Y, temperature=torch.ones(2)),
        ValueError,
        ("temperature must have one element", "(2,)"),
    ),
    "a temperature of no kind": (
        lambda: info_nce_loss(X, Y, temperature="cold"),
        TypeError,
        ("temperature must be a float", "str"),
    ),
    "neither scale nor temperature": (
        lambda: info_nce_loss(X, Y),
        ValueError,
        ("exactly one of logit_scale and temperature",),
    ),
    # Labels.
    "labels of another length": (
        lambda: clip(X, Y, 10.0, labels=LABELS[:3]),
        ValueError,
        ("row labels must have shape (4,)", "one per feature row", "(3,)"),
    ),
    "column labels of another length": (
        lambda: siglip(X, LONGER, 10.0, labels=(LABELS, LABELS)),
        ValueError,
        ("column labels must have shape (6,)", "(4,)"),
    ),
    "one tensor of labels where M != N": (
        lambda: clip(X, LONGER, 10.0, labels=LABELS),
        ValueError,
        ("labels must be a (rows, columns) pair of tensors where M != N", "4 and 6"),
    ),
    "labels that are no integers": (
        lambda: clip(X, Y, 10.0, labels=LABELS.float()),
        TypeError,
        ("row labels must be an integer tensor", "torch.float32"),
    ),
    "labels that are no tensor": (
        lambda: clip(X, Y, 10.0, labels=([0, 1, 2, 3], LABELS)),
        TypeError,
        ("row labels must be an integer tensor", "list"),
    ),
    "a list of labels": (
        lambda: clip(X, Y, 10.0, labels=[0, 1, 2, 3]),
        TypeError,
        ("labels must be an integer tensor or a (rows, columns) pair of them", "a list of 4"),
    ),
    "many positives without labels": (
        lambda: clip(X, Y, 10.0, multi_positive=True),
        ValueError,
        ("multi_positive=True needs labels",),
    ),
    "many positives with a diagonal": (
        lambda: siglip(X, LONGER, 10.0, labels=(LABELS, torch.arange(6)), multi_positive=True, diagonal=1),
        ValueError,
        ("diagonal must be 0 with multi_positive=True", "got 1"),
    ),
    "many positives with smoothing": (
        lambda: clip(X, Y, 10.0, labels=LABELS, multi_positive=True, label_smoothing=0.1),
        ValueError,
        ("label_smoothing must be 0 with multi_positive=True", "got 0.1"),
    ),
    "many positives, one value a row, M != N": (
        lambda: clip(
            X, LONGER, 10.0, labels=(LABELS, torch.arange(6)), multi_positive=True, reduction="none"
        ),
        ValueError,
        ("reduction='none' with multi_positive needs as many rows as columns", "4 and 6"),
    ),
    # Options.
    "an unknown reduction": (
        lambda: clip(X, Y, 10.0, reduction="avg"),
        ValueError,
        ("reduction must be one of 'mean', 'sum', 'none'", "got 'avg'"),
    ),
    "smoothing above 1": (
        lambda: clip(X, Y, 10.0, label_smoothing=1.1),
        ValueError,
        ("label_smoothing must be a number in [0, 1]", "got 1.1"),
    ),
    "negative smoothing": (
        lambda: clip(X, Y, 10.0, label_smoothing=-0.1),
        ValueError,
        ("label_smoothing must be a number in [0, 1]", "got -0.1"),
    ),
    "one weight for two directions": (
        lambda: info_nce_loss(X, Y, 10.0, weights=(1.0,)),
        ValueError,
        ("weights must be two numbers", "(1.0,)"),
    ),
    "three weights": (
        lambda: info_nce_loss(X, Y, 10.0, weights=(1.0, 0.0, 5.0)),
        ValueError,
        ("weights must be two numbers", "5.0"),
    ),
    "a negative workspace": (
        lambda: clip(X, Y, 10.0, workspace=-1),
        ValueError,
        ("workspace must be at least 0 MiB", "got -1"),
    ),
    "a workspace that is no number": (
        lambda: clip(X, Y, 10.0, workspace="16"),
        ValueError,
        ("workspace must be at least 0 MiB", "'16'"),
    ),
    "a workspace of NaN": (
        lambda: clip(X, Y, 10.0, workspace=float("nan")),
        ValueError,
        ("workspace must be at least 0 MiB", "nan"),
    ),
    "an unknown backend": (
        lambda: clip(X, Y, 10.0, backend="gpu"),
        ValueError,
        ("backend must be 'auto' or one of", "'reference'", "got 'gpu'"),
    ),
}


@pytest.mark.parametrize("what", BAD)
def test_bad_input_is_refused(what: str) -> None:
    call, kind, parts = BAD[what]
    with pytest.raises(kind) as caught:
        call()
    message = str(caught.value)
    for part in parts:
        assert part in message
    assert "\n" not in message


@pytest.mark.parametrize("what", BAD)
def test_bad_input_is_refused_before_any_kernel_runs(what: str, monkeypatch: pytest.MonkeyPatch) -> None:
    def never(*_: object, **__: object) -> None:
        raise AssertionError("a kernel ran")

    monkeypatch.setattr(fastclip.functional, "contrastive", never)
    with pytest.raises(BAD[what][1]):
        BAD[what][0]()


def test_numbers_of_numpy_are_numbers() -> None:
    loss = clip(X, Y, np.float32(10.0), label_smoothing=1.0, workspace=np.float64(16.0))
    assert loss.item() == pytest.approx(clip(X, Y, 10.0, label_smoothing=1.0).item())


def test_a_workspace_may_be_infinite() -> None:
    x = X.clone().requires_grad_()
    assert clip(x, Y, 10.0, workspace=float("inf")).item() == clip(x, Y, 10.0, workspace=0).item()


# Backends


def test_an_unavailable_backend_says_why(monkeypatch: pytest.MonkeyPatch) -> None:
    """Asked for by name it is never replaced: the error gives the reason and what there is instead."""
    monkeypatch.setattr(
        type(get_backend("cpu")), "unavailable_reason", lambda self: "the C++ extension is not there"
    )
    assert "cpu" not in fastclip.available_backends()
    with pytest.raises(RuntimeError) as caught:
        clip(X, Y, 10.0, backend="cpu")
    for part in (
        "backend='cpu' cannot run this",
        "the C++ extension is not there",
        "backend='auto'",
        "'reference'",
    ):
        assert part in str(caught.value)
    assert clip(X, Y, 10.0).isfinite(), "auto falls back"


def test_a_dtype_that_a_backend_does_not_take() -> None:
    if "triton" not in fastclip.available_backends():
        pytest.skip("Triton is not installed")
    with pytest.raises(RuntimeError, match=r"backend='triton' cannot run this.*float64.*backend='auto'"):
        clip(X.double(), Y.double(), 10.0, backend="triton")
    assert clip(X.double(), Y.double(), 10.0).dtype == torch.float64, "auto falls back"


def test_a_device_that_a_backend_does_not_take() -> None:
    if "cpu" not in fastclip.available_backends():
        pytest.skip("the C++ extension is not there")
    with pytest.raises(RuntimeError, match=r"backend='cpu' cannot run this.*CPU tensors.*meta"):
        clip(X.to("meta"), Y.to("meta"), 10.0, backend="cpu")


def test_auto_never_takes_the_interpreter() -> None:
    """Triton's interpreter runs on CPU tensors too, thousands of times slower: only for those who ask."""
    assert resolve_backend("auto", torch.device("cpu"), torch.float32) in ("cpu", "reference")


def test_available_backends_are_names_that_work() -> None:
    names = fastclip.available_backends()
    assert "reference" in names
    for name in names:
        assert clip(X, Y, 10.0, backend=name).isfinite()
