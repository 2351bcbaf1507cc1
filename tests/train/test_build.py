"""What a run starts from: pretrained weights, locked towers, features computed beforehand."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch

from fastclip.models import CLIP, PRESETS, save
from fastclip.train import checkpoint, metrics
from fastclip.train.__main__ import main
from fastclip.train.build import build_model_config, build_tokenizer
from fastclip.train.config import Config, ConfigError, RunConfig
from tests.train.painted import paint


@pytest.fixture
def flags(tmp_path: Path) -> list[str]:
    """Return the flags of a run of three steps over 24 pictures."""
    pictures = paint(tmp_path / "pictures", 24, lambda colour, i: f"a {colour} picture, number {i}")
    return ["--train-data", str(pictures), "--batch-size", "8", "--device", "cpu", "--steps", "3", "--lr", "3e-3",
            "--logs", str(tmp_path / "logs"), "--no-pictures", "--val-frequency", "0", "--workers", "0"]  # fmt: skip


@pytest.fixture
def weights(tmp_path: Path) -> Path:
    """Write a tiny model with weights that no seed draws."""
    torch.manual_seed(77)
    save(CLIP(PRESETS["tiny"]), tmp_path / "start")
    return tmp_path / "start"


def saved(tmp_path: Path, name: str) -> checkpoint.Checkpoint:
    return checkpoint.load(checkpoint.find(RunConfig(resume=str(tmp_path / "logs" / name))))


def test_a_run_starts_from_pretrained_weights_and_leaves_a_locked_tower(
    flags: list[str], weights: Path, tmp_path: Path
) -> None:
    """LiT: the image tower is the file's to the last bit, the text tower has learned."""
    assert main([*flags, "--name", "lit", "--pretrained", str(weights), "--lock-image"]) == 0
    torch.manual_seed(77)
    start = CLIP(PRESETS["tiny"]).state_dict()
    end = saved(tmp_path, "lit").model
    for name, value in start.items():
        assert torch.equal(value, end[name]) == name.startswith("visual."), name


def test_a_run_that_was_pretrained_resumes_without_the_file(
    flags: list[str], weights: Path, tmp_path: Path
) -> None:
    flags += ["--pretrained", str(weights)]
    assert main([*flags, "--name", "whole"]) == 0
    assert main([*flags, "--name", "part", "--save-every-n-steps", "2"]) == 0
    for path in weights.iterdir():
        path.unlink()
    weights.rmdir()
    first = tmp_path / "logs" / "part" / "checkpoints" / "step_00000002"
    assert main(["--resume", str(first), "--steps", "3"]) == 0
    whole, part = saved(tmp_path, "whole"), saved(tmp_path, "part")
    assert all(torch.equal(value, part.model[key]) for key, value in whole.model.items())


def test_the_sigmoid_loss_gives_a_pretrained_model_its_own_start(
    flags: list[str], weights: Path, tmp_path: Path
) -> None:
    assert main([*flags, "--name", "a", "--pretrained", str(weights), "--siglip", "--lr", "1e-9"]) == 0
    end = saved(tmp_path, "a").model
    assert end["logit_bias"].item() == pytest.approx(-10) and end[
        "logit_scale"
    ].exp().item() == pytest.approx(10)
    torch.manual_seed(77)
    torch.testing.assert_close(end["visual.proj"], CLIP(PRESETS["tiny"]).state_dict()["visual.proj"])


def test_what_cannot_be_started_from_says_why(
    flags: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "empty").mkdir()
    for path, message in (("nowhere", "does not exist"), ("empty", "--pretrained: ")):
        assert main([*flags, "--pretrained", str(tmp_path / path)]) == 2
        assert message in capsys.readouterr().err
    assert not (tmp_path / "logs").exists()


def test_a_vocabulary_of_its_own_needs_a_tokenizer(tiny_config: Callable[..., Config]) -> None:
    config = tiny_config()
    own = dataclasses.replace(
        PRESETS["tiny"], text=dataclasses.replace(PRESETS["tiny"].text, vocab_size=1000)
    )
    with pytest.raises(ConfigError, match="vocabulary of 1,000 tokens of its own; give --pretrained"):
        build_tokenizer(config, own)
    assert build_tokenizer(config, build_model_config(config))(["a text"]).shape == (1, 77)


@pytest.mark.parametrize("with_texts", [True, False])
def test_precomputed_features_train_projections(
    tmp_path: Path, with_texts: bool, capsys: pytest.CaptureFixture[str]
) -> None:
    """Pairs that share hidden causes, seen through two random matrices: the space that is learned finds them."""
    pa = pytest.importorskip("pyarrow")
    from pyarrow import parquet

    draw = np.random.default_rng(0)
    causes = draw.standard_normal((400, 6)).astype(np.float32)
    for side, width in (("img", 20), ("text", 12)):
        (tmp_path / "emb" / f"{side}_emb").mkdir(parents=True)
        features = causes @ draw.standard_normal((6, width)).astype(np.float32)
        np.save(tmp_path / "emb" / f"{side}_emb" / f"{side}_emb_0.npy", features)
    (tmp_path / "emb" / "metadata").mkdir()
    captions = [" ".join("high" if x > 0 else "low" for x in row) for row in causes]
    parquet.write_table(pa.table({"caption": captions}), tmp_path / "emb" / "metadata" / "metadata_0.parquet")
    if not with_texts:
        (tmp_path / "emb" / "text_emb" / "text_emb_0.npy").unlink()
        (tmp_path / "emb" / "text_emb").rmdir()
    flags = ["--train-data", str(tmp_path / "emb"), "--dataset-type", "features", "--model", "tiny", "--device", "cpu",
             "--batch-size", "64", "--epochs", "15", "--lr", "1e-2", "--logs", str(tmp_path / "logs"), "--name", "a",
             "--no-pictures", "--val-frequency", "0"]  # fmt: skip
    assert main(flags) == 0
    lines = metrics.read(tmp_path / "logs" / "a" / "metrics.jsonl")
    assert lines[-1]["val/image_to_text_R@5"] > 0.6
    model = saved(tmp_path, "a").model_config
    assert (model["image_width"], model["text_width"]) == (20, 12 if with_texts else None)
