"""Every measure and sum takes every floating dtype on every device, and gives there what float64 gives on the CPU."""

from __future__ import annotations

import pytest
import torch

from fastclip import space

DEVICES = ["cpu", *(["cuda"] if torch.cuda.is_available() else [])]


def everything(x: torch.Tensor, y: torch.Tensor, label: torch.Tensor) -> list[float]:
    probe = space.linear_probe(x, label, l2=1e-3)
    report = space.cluster_report(x, label, k=5)
    direction = space.attribute_direction(x[label == 0], x[label == 1])
    classifier = space.ZeroShotClassifier(
        tuple("abcd"), space.compose([y[:4]]).to(torch.promote_types(y.dtype, torch.float32))
    )
    tensors = [
        space.interpolate(x, y, torch.tensor([0.2, 0.7], device=x.device)).sum((0, 1)),
        space.compose([x, y[0]], [y[1]]).sum(0),
        direction.add(x, -0.5).sum(0),
        space.nearest(x, y, 3)[0].sum(0),
        space.modality_gap(x, y).vector,
    ]
    assert all(tensor.device == x.device for tensor in tensors)
    numbers = [report.purity, report.silhouette, report.within, space.alignment(x, y), space.uniformity(x)]
    numbers += [probe.accuracy(x, label), classifier.evaluate(x, label).top1]
    return [*numbers, *(value for tensor in tensors for value in tensor.double().tolist())]


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16, torch.float64], ids=str)
def test_all_dtypes_on_all_devices(dtype: torch.dtype, device: str) -> None:
    generator = torch.Generator().manual_seed(0)
    label = torch.arange(64) % 4
    centres = torch.randn(4, 16, generator=generator)
    x, y = (2 * centres[label] + 0.3 * torch.randn(64, 16, generator=generator) for _ in range(2))
    x, y = x.to(dtype), y.to(dtype)
    expected = everything(x.double(), y.double(), label)
    tolerance = 64 * {torch.bfloat16: 2e-2, torch.float16: 3e-3}.get(dtype, 1e-5)  # sums over 64 rows
    assert everything(x.to(device), y.to(device), label.to(device)) == pytest.approx(
        expected, abs=tolerance, rel=1e-3
    )
