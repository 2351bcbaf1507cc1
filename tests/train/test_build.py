"""What a run starts from: pretrained weights, locked towers, features computed beforehand."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from fastclip.models import CLIP, PRESETS, CLIPConfig, save
from fastclip.models.vision import resize_positions
from fastclip.models.weights.files import write_tensors
from fastclip.models.weights.hf import write_hf
from fastclip.models.weights.open_clip import read_open_clip_config, write_open_clip_config
from fastclip.train import checkpoint, metrics
from fastclip.train.__main__ import main
from fastclip.train.build import build_model_config, build_tokenizer, name_of_pretrained, presets_of
from fastclip.train.command_line import parse
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


def test_a_folder_says_what_its_model_is(
    flags: list[str], weights: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Its preset's name goes into the settings and the report; a --model that contradicts it is refused."""
    flags += ["--pretrained", str(weights)]
    assert main([*flags, "--name", "a"]) == 0
    assert parse(["--config", str(tmp_path / "logs" / "a" / "run.yaml")]).config.model.model == "tiny"
    report = (tmp_path / "logs" / "a" / "report.html").read_text()
    assert ": tiny, 3 steps" in report and "ViT-B-32" not in report
    assert f"model: tiny, from {weights}, " in capsys.readouterr().out
    assert parse([*flags, "--print-config"]).config.model.model == "tiny"

    assert main([*flags, "--name", "b", "--model", "ViT-B-32"]) == 2
    error = capsys.readouterr().err
    assert f"--model ViT-B-32 contradicts --pretrained {weights}, which is a tiny; leave --model out" in error
    assert not (tmp_path / "logs" / "b").exists()
    assert main([*flags, "--name", "c", "--model", "tiny"]) == 0


def test_a_model_that_is_no_preset_is_called_as_its_folder(flags: list[str], tmp_path: Path) -> None:
    own = dataclasses.replace(PRESETS["tiny"], embed_dim=20)
    save(CLIP(own), tmp_path / "own")
    flags += ["--pretrained", str(tmp_path / "own")]
    assert main([*flags, "--name", "a", "--save-every-n-steps", "2"]) == 0
    run = tmp_path / "logs" / "a"
    assert parse(["--config", str(run / "run.yaml")]).config.model.model == "own"
    assert main(["--config", str(run / "run.yaml"), "--name", "again"]) == 0
    for path in (tmp_path / "own").iterdir():
        path.unlink()
    (tmp_path / "own").rmdir()
    assert main(["--resume", str(run / "checkpoints" / "step_00000002")]) == 0
    assert main([*flags, "--name", "b", "--model", "own"]) == 2  # it is gone


def test_sizes_tell_presets_of_one_shape_apart(
    tiny_config: Callable[..., Config], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As ViT-L-14 and ViT-L-14-336; a size of no preset is any of them."""
    large = replace_vision(PRESETS["tiny"], image_size=32)
    monkeypatch.setitem(PRESETS, "tiny-32", large)
    start = str(tmp_path / "large")
    save(CLIP(large), start)
    assert name_of_pretrained(tiny_config(pretrained=start)) == "tiny-32"
    with pytest.raises(ConfigError, match=r"--model tiny contradicts .* which is a tiny-32"):
        build_model_config(tiny_config(pretrained=start, model="tiny"))
    config = tiny_config(pretrained=start, model="tiny-32", force_image_size=16)
    assert name_of_pretrained(config) == "tiny-32"
    assert build_model_config(config).vision == PRESETS["tiny"].vision

    save(CLIP(replace_vision(large, image_size=48)), tmp_path / "huge")
    for name in ("tiny", "tiny-32"):
        config = tiny_config(pretrained=str(tmp_path / "huge"), model=name)
        assert build_model_config(config).vision.image_size == 48


@pytest.mark.parametrize("eos", [2, 49407])
def test_hugging_faces_folders_have_presets_names(
    tiny_config: Callable[..., Config], tmp_path: Path, eos: int
) -> None:
    """Its files call the end token by its number, or by 2, which is that of an earlier vocabulary."""
    tensors, document, preprocessor = write_hf(CLIP(PRESETS["tiny"]).state_dict(), PRESETS["tiny"])
    document["text_config"]["eos_token_id"] = eos
    write_tensors(tmp_path / "model.safetensors", tensors)
    (tmp_path / "config.json").write_text(json.dumps(document))
    (tmp_path / "preprocessor_config.json").write_text(json.dumps(preprocessor))
    config = tiny_config(pretrained=str(tmp_path))
    assert name_of_pretrained(config) == "tiny"
    assert build_model_config(config).text.pool == ("argmax" if eos == 2 else "eos")


@pytest.mark.parametrize(
    "name", [name for name in PRESETS if name not in ("demo", "tiny") and "SigLIP" not in name]
)
def test_open_clips_folders_have_presets_names(name: str) -> None:
    """Its files round the width of feed-forward layers. (Its SigLIPs have GELU, and are not the presets.)"""
    document = json.loads(json.dumps(write_open_clip_config(PRESETS[name])))
    vision = document["model_cfg"]["vision_cfg"]
    if "mlp_ratio" in vision:
        vision["mlp_ratio"] = round(vision["mlp_ratio"], 4)
    assert presets_of(read_open_clip_config(document, "here")) == [name]


def replace_vision(config: CLIPConfig, **changes: Any) -> CLIPConfig:
    return dataclasses.replace(config, vision=dataclasses.replace(config.vision, **changes))


def test_flags_change_the_models_pictures(flags: list[str], weights: Path, tmp_path: Path) -> None:
    """Position embeddings of pretrained weights are resampled; size, patch dropout and colours are the run's."""
    forced = ["--force-image-size", "24", "--force-patch-dropout", "0.5",
              "--image-mean", "0.5", "0.25", "0.125", "--image-std", "1", "2", "4"]  # fmt: skip
    assert main([*flags, "--name", "new", "--model", "tiny", *forced]) == 0
    assert main([*flags, "--name", "old", "--pretrained", str(weights), *forced, "--lr", "1e-9"]) == 0
    wanted = replace_vision(
        PRESETS["tiny"], image_size=24, patch_dropout=0.5, mean=(0.5, 0.25, 0.125), std=(1.0, 2.0, 4.0)
    )
    for name in ("new", "old"):
        assert CLIPConfig.from_dict(saved(tmp_path, name).model_config) == wanted
    torch.manual_seed(77)
    start = CLIP(PRESETS["tiny"]).state_dict()["visual.positional_embedding"]
    torch.testing.assert_close(
        saved(tmp_path, "old").model["visual.positional_embedding"],
        resize_positions(start, 6 * 6 + 1),
        atol=1e-6,
        rtol=0,
    )
    # The end of a run without patch dropout, as people do it.
    latest = tmp_path / "logs" / "old"
    assert main(["--resume", str(latest), "--steps", "4", "--force-patch-dropout", "0"]) == 0
    vision = CLIPConfig.from_dict(saved(tmp_path, "old").model_config).vision
    assert vision == replace_vision(wanted, patch_dropout=0.0).vision


@pytest.mark.parametrize(
    ("model", "changes", "message"),
    [
        (
            "tiny",
            {"force_image_size": 17},
            "--force-image-size 17: image_size must be a multiple of patch_size 4",
        ),
        ("RN50", {"force_image_size": 100}, "--force-image-size 100: image_size must be a multiple of 32"),
        ("RN50", {"force_patch_dropout": 0.5}, "--force-patch-dropout needs a vision transformer"),
    ],
)
def test_what_a_model_cannot_be_forced_to(
    tiny_config: Callable[..., Config], weights: Path, model: str, changes: dict[str, Any], message: str
) -> None:
    with pytest.raises(ConfigError, match=message):
        build_model_config(tiny_config(model=model, **changes))
    if model == "tiny":
        with pytest.raises(ConfigError, match=message):
            build_model_config(tiny_config(pretrained=str(weights), **changes))


@pytest.mark.parametrize(
    ("kind", "named", "needs", "is_one"), [("csv", "folder", "file", "folder"), ("folder", "file", "folder", "file"),
                                           ("hf", "file", "folder", "file"), ("features", "file", "folder", "file")]
)  # fmt: skip
def test_data_of_another_kind_than_said(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], kind: str, named: str, needs: str, is_one: str
) -> None:
    path = tmp_path / named
    path.mkdir() if named == "folder" else path.write_text("x")
    assert main(["--train-data", str(path), "--dataset-type", kind, "--logs", str(tmp_path / "logs")]) == 2
    error = capsys.readouterr().err
    assert f"--dataset-type {kind} needs a {needs}, but --train-data {path} is a {is_one}" in error
    assert not (tmp_path / "logs").exists()


def test_data_are_blamed_by_their_own_flag(
    flags: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main([*flags, "--model", "tiny", "--val-data", str(tmp_path / "nothing")]) == 2
    assert f"error: --val-data: {tmp_path / 'nothing'} does not exist" in capsys.readouterr().err
    table = tmp_path / "tests.csv"
    table.mkdir()
    assert main([*flags, "--model", "tiny", "--val-data", str(table / "a.csv")]) == 2
    assert "--val-data: " in capsys.readouterr().err


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
