"""Models of fastclip in folders: runs, checkpoints, single models and towers."""

from __future__ import annotations

import hashlib
import json
from dataclasses import replace

import pytest
import torch
from safetensors.torch import save_file

from fastclip.models import (
    CLIP,
    PRESETS,
    CLIPConfig,
    ImageTower,
    TextConfig,
    TextTower,
    WeightsError,
    load,
    save,
)
from tests.models.tiny import RESNET, SIGLIP, VIT, inputs, make

pytestmark = pytest.mark.usefixtures("one_thread")

#: With CLIP's vocabulary, so that the tokenizer fits.
SMALL = CLIPConfig(VIT.vision, TextConfig(width=16, layers=1, heads=2), embed_dim=8, activation="gelu")


def write_checkpoint(folder, model, manifest=True):
    """Write what fastclip.train writes, as far as loading a model goes."""
    folder.mkdir(parents=True)
    save_file({name: t.contiguous() for name, t in model.state_dict().items()}, folder / "model.safetensors")
    (folder / "state.json").write_text(json.dumps({"format": 2, "model_config": model.config.to_dict()}))
    if manifest:
        files = {
            path.name: {"sha256": hashlib.sha256(path.read_bytes()).hexdigest()} for path in folder.iterdir()
        }
        (folder / "manifest.json").write_text(json.dumps({"files": files}))


@pytest.mark.parametrize("config", [VIT, RESNET, SIGLIP, SMALL], ids=["vit", "resnet", "siglip", "small"])
def test_saved_models_come_back(config, tmp_path):
    model, (images, tokens) = make(config), inputs(config)
    save(model, tmp_path)
    loaded = load(tmp_path).model
    assert type(loaded) is CLIP and loaded.config == config and not loaded.training
    assert all(p.requires_grad for p in loaded.parameters())
    for name, tensor in loaded.state_dict().items():
        assert torch.equal(tensor, model.state_dict()[name]), name
    assert torch.equal(loaded.encode_image(images), model.encode_image(images))
    assert torch.equal(loaded.encode_text(tokens), model.encode_text(tokens))


def test_one_tower_is_loaded_used_and_saved_without_the_other(tmp_path):
    model, (images, tokens) = make(SMALL), inputs(SMALL)
    save(model, tmp_path / "both")
    for towers, kind in (("image", ImageTower), ("text", TextTower)):
        tower = load(tmp_path / "both", towers=towers).model
        save(tower, tmp_path / towers)
        again = load(tmp_path / towers, towers=towers)
        assert type(again.model) is kind
        if towers == "image":
            assert torch.equal(again.model.encode_image(images), model.encode_image(images))
            with pytest.raises(TypeError, match="an image tower alone takes no texts"):
                again.tokenizer(["a"])
        else:
            assert torch.equal(again.model.encode_text(tokens), model.encode_text(tokens))
            with pytest.raises(TypeError, match="a text tower alone takes no pictures"):
                again.transform(None)
        with pytest.raises(WeightsError, match=f"has the {towers} tower only, but towers is 'both'"):
            load(tmp_path / towers)
    with pytest.raises(ValueError, match="towers must be 'both', 'image' or 'text', got 'vision'"):
        load(tmp_path / "both", towers="vision")


def test_transform_and_tokenizer_prepare_the_models_input(tmp_path):
    image = pytest.importorskip("PIL.Image")
    save(make(SMALL), tmp_path)
    model, transform, tokenizer = load(tmp_path)
    picture = transform(image.new("RGB", (50, 40), (255, 0, 0)))
    assert picture.shape == (3, 32, 32) and picture.dtype == torch.float32
    pixels = torch.zeros(1, 3, 32, 32, dtype=torch.uint8)
    pixels[:, 0] = 255
    torch.testing.assert_close(picture[None], model.preprocess(pixels))
    tokens = tokenizer(["a cat", "a dog"])
    assert tokens.shape == (2, 77) and tokens.dtype == torch.int64
    assert model(picture[None], tokens)["text_features"].shape == (2, 8)


def test_pictures_of_any_kind_become_three_channels():
    image = pytest.importorskip("PIL.Image")
    from fastclip.models.transform import ImageTransform

    transform = ImageTransform(SMALL.vision)
    clear = image.new("RGBA", (64, 32), (0, 0, 0, 0))
    assert (transform.to_uint8(clear) == 255).all()  # what is transparent shows white
    for mode in ("L", "P", "1", "LA", "CMYK", "I;16"):
        assert transform.to_uint8(image.new(mode, (33, 61))).shape == (3, 32, 32)
    wide = torch.zeros(32, 96, 3, dtype=torch.uint8)
    wide[:, 32:64] = 200
    cropped = transform.to_uint8(image.fromarray(wide.numpy()))
    squashed = ImageTransform(replace(SMALL.vision, resize="squash")).to_uint8(image.fromarray(wide.numpy()))
    assert (cropped == 200).all()
    assert (squashed[:, :, 0] == 0).all() and (squashed[:, :, 16] == 200).all()


def test_runs_give_their_newest_checkpoint(tmp_path):
    old, new = make(SMALL), make(replace(SMALL, activation="quick_gelu"))
    write_checkpoint(tmp_path / "run/checkpoints/step_00000008", old, manifest=False)
    write_checkpoint(tmp_path / "run/checkpoints/step_00000120", new)
    (tmp_path / "run/checkpoints/.step_00000300.partial").mkdir()
    for path in ("run", "run/checkpoints", "run/checkpoints/step_00000120"):
        assert load(tmp_path / path).model.config == new.config
    assert load(tmp_path / "run/checkpoints/step_00000008").model.config == old.config


def test_damaged_checkpoints_give_way_to_the_one_before(tmp_path):
    old, new = make(SMALL), make(replace(SMALL, activation="quick_gelu"))
    write_checkpoint(tmp_path / "step_00000001", old)
    write_checkpoint(tmp_path / "step_00000002", new)
    weights = tmp_path / "step_00000002/model.safetensors"
    data = bytearray(weights.read_bytes())
    data[-5] ^= 1  # one bit of one number, which loads without complaint
    weights.write_bytes(data)
    with pytest.warns(
        UserWarning, match=r"step_00000001, since .*step_00000002.model\.safetensors is damaged"
    ):
        assert load(tmp_path).model.config == old.config
    with pytest.raises(WeightsError, match="its SHA-256 is not the manifest's"):
        load(tmp_path / "step_00000002")


def test_averaged_weights_are_taken_on_request(tmp_path):
    last, mean = make(SMALL), make(SMALL)
    with torch.no_grad():
        for parameter in mean.parameters():
            parameter.mul_(0.5)
    folder = tmp_path / "step_00000001"
    write_checkpoint(folder, last, manifest=False)
    with pytest.raises(WeightsError, match=r"has no averaged weights \(ema\.safetensors\)"):
        load(tmp_path, averaged=True)
    save_file({name: p.detach() for name, p in mean.named_parameters()}, folder / "ema.safetensors")
    for averaged, model in ((False, last), (True, mean)):
        loaded = load(tmp_path, averaged=averaged).model
        assert torch.equal(loaded.visual.proj, model.visual.proj)
    save(last, tmp_path / "plain")
    with pytest.raises(WeightsError, match="only those have averaged weights"):
        load(tmp_path / "plain", averaged=True)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("{", "cannot be read"),
        ("[]", "is no JSON object"),
        ("{}", 'has no "model_config"'),
        ('{"model_config": {"vision": {}}}', "incomplete model config"),
        ('{"model_config": {"image_width": 5}}', "trained projections of features computed beforehand"),
    ],
)
def test_damaged_configs_are_named(text, message, tmp_path):
    save(make(SMALL), tmp_path)
    (tmp_path / "fastclip.json").write_text(text)
    with pytest.raises(WeightsError, match=message):
        load(tmp_path)


def test_another_image_size_resamples_the_positions(tmp_path):
    model = make(VIT)
    save(model, tmp_path)
    loaded, transform, _ = load(tmp_path, image_size=48)
    assert loaded.config.vision.image_size == transform.config.image_size == 48
    assert loaded.encode_image(torch.randn(2, 3, 48, 48)).shape == (2, 24)
    assert torch.equal(loaded.visual.positional_embedding[0], model.visual.positional_embedding[0])
    assert load(tmp_path, image_size=32).model.config == VIT
    with pytest.raises(ValueError, match="image_size must be a multiple of patch_size 8, got 50"):
        load(tmp_path, image_size=50)
    save(make(RESNET), tmp_path / "resnet")
    with pytest.raises(ValueError, match="image_size can be chosen for vision transformers only"):
        load(tmp_path / "resnet", image_size=96)


def test_another_vocabulary_needs_its_own_tokenizer(tmp_path):
    save(make(VIT), tmp_path)
    with pytest.raises(FileNotFoundError, match=r"has no vocabulary .*and the model does not have CLIP's"):
        load(tmp_path).tokenizer(["a cat"])
    transformers = pytest.importorskip("transformers")
    tokenizers = pytest.importorskip("tokenizers")
    words = {"[PAD]": 0, "[UNK]": 1, "a": 2, "cat": 3}
    plain = tokenizers.Tokenizer(tokenizers.models.WordLevel(words, unk_token="[UNK]"))
    plain.pre_tokenizer = tokenizers.pre_tokenizers.Whitespace()
    transformers.PreTrainedTokenizerFast(
        tokenizer_object=plain, pad_token="[PAD]", unk_token="[UNK]"
    ).save_pretrained(tmp_path)
    tokens = load(tmp_path).tokenizer(["a cat", "cat cat dog " * 9])
    assert tokens.shape == (2, 12)
    assert tokens[0].tolist() == [2, 3] + [0] * 10 and tokens[1, :3].tolist() == [3, 3, 1]


def test_demo_preset_is_loaded(tmp_path):
    model = CLIP(PRESETS["demo"]).eval()
    save(model, tmp_path)
    images = torch.randn(1, 3, 32, 32)
    assert torch.equal(load(tmp_path).model.encode_image(images), model.encode_image(images))
