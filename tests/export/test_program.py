"""The ONNX export: files for any batch, equal to torch, and the check that would see a difference."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import onnxruntime
import pytest
import torch
from torch import nn

from fastclip.export.__main__ import main
from fastclip.export.program import check_tower
from fastclip.models import load
from tests.tiny_model import write_model

pytestmark = pytest.mark.slow  # the exporter takes about ten seconds a tower


@pytest.fixture(scope="module")
def exported(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    root = tmp_path_factory.mktemp("export")
    model = write_model(root / "model")
    assert main([str(model), str(root / "onnx"), "--uint8", "--no-normalize"]) == 0
    return model, root / "onnx"


def test_the_files_give_what_torch_gives_for_any_batch(exported: tuple[Path, Path]) -> None:
    folder, out = exported
    model, _, tokenizer = load(folder)
    image, text = (onnxruntime.InferenceSession(str(out / name)) for name in ("image.onnx", "text.onnx"))
    pictures = torch.randint(0, 256, (11, 3, 16, 16), dtype=torch.uint8)
    tokens = tokenizer(["a", "a cat", "a long text of many words about nothing at all"] * 3)
    with torch.no_grad():
        expected = model.encode_image(model.preprocess(pictures)), model.encode_text(tokens)
    np.testing.assert_allclose(
        image.run(["features"], {"images": pictures.numpy()})[0], expected[0], atol=1e-5
    )
    np.testing.assert_allclose(text.run(["features"], {"tokens": tokens.numpy()})[0], expected[1], atol=1e-5)


def test_the_description_says_what_goes_in(exported: tuple[Path, Path]) -> None:
    said = json.loads((exported[1] / "model.json").read_text())
    assert said["images"].startswith("uint8") and said["tokens"] == "int64 (B, 77)" and not said["normalized"]
    assert [tower["file"] for tower in said["towers"]] == ["image.onnx", "text.onnx"]
    assert all(tower["largest_difference"] < 1e-5 for tower in said["towers"])


def test_the_check_sees_another_model(exported: tuple[Path, Path]) -> None:
    class Other(nn.Module):
        def forward(self, tokens: torch.Tensor) -> torch.Tensor:
            return torch.zeros(len(tokens), 12)

    tokens = torch.full((3, 77), 49407)
    assert check_tower(Other(), "tokens", [tokens], exported[1] / "text.onnx") > 0.01
