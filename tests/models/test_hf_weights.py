"""Weights to and from Hugging Face's models, tiny and with random weights: outputs equal within 1e-5."""

from __future__ import annotations

import json
from dataclasses import replace

import pytest
import torch

from fastclip.convert import convert
from fastclip.models import ImageTower, TextTower, WeightsError, load, save
from tests.models.tiny import RESNET, SIGLIP, VIT, inputs, make, randomise

transformers = pytest.importorskip("transformers")

pytestmark = pytest.mark.usefixtures("one_thread")

_TEXT = dict(hidden_size=32, intermediate_size=96, num_hidden_layers=2, num_attention_heads=4, vocab_size=64,
             max_position_embeddings=12, bos_token_id=62, eos_token_id=63, pad_token_id=0)  # fmt: skip
_VISION = dict(hidden_size=32, intermediate_size=64, num_hidden_layers=3, num_attention_heads=2, image_size=32,
               patch_size=8)  # fmt: skip
IMAGES, TOKENS = inputs(VIT)


def theirs(name, **text):
    """Build one of their classes with weights that are all different."""
    text, kind = {**_TEXT, **text}, getattr(transformers, name)
    torch.manual_seed(0)
    if name == "CLIPModel":
        config = transformers.CLIPConfig(text_config=text, vision_config=_VISION, projection_dim=24)
    elif name == "SiglipModel":
        config = transformers.SiglipConfig(text_config=text, vision_config=_VISION)
    else:
        values = text if "Text" in name else _VISION
        config = kind.config_class(**values, **({"projection_dim": 24} if "Projection" in name else {}))
    return randomise(kind(config))


def first(output, *names):
    return next(output[name] for name in names if name in output)


@torch.no_grad()
def outputs(model, towers):
    """Return what their model makes of the inputs: embeddings, and tokens behind the last norm where it has one."""
    found = {}
    if towers == "both":
        found["image"], found["text"] = (
            value if isinstance(value, torch.Tensor) else value.pooler_output
            for value in (model.get_image_features(IMAGES), model.get_text_features(TOKENS))
        )
        whole = model(pixel_values=IMAGES, input_ids=TOKENS)
        vision, text = whole.vision_model_output, whole.text_model_output
    else:
        vision = model(IMAGES) if towers == "image" else None
        text = model(TOKENS) if towers == "text" else None
    if vision is not None:
        found.setdefault("image", first(vision, "image_embeds", "pooler_output"))
        found["image tokens"] = vision.last_hidden_state
    if text is not None:
        found.setdefault("text", first(text, "text_embeds", "pooler_output"))
        found["text tokens"] = text.last_hidden_state
    return found


@torch.no_grad()
def our_outputs(model, towers, siglip):
    found = {}
    if towers != "text":
        found["image"] = model.encode_image(IMAGES)
        # CLIP's last_hidden_state of pictures is before the norm, SigLIP's behind it.
        found["image tokens"] = model.encode_image_tokens(IMAGES, final_norm=siglip)
    if towers != "image":
        found["text"], found["text tokens"] = model.encode_text(TOKENS), model.encode_text_tokens(TOKENS)
    return found


def assert_same(ours, theirs):
    assert ours.keys() == theirs.keys()
    for name, value in theirs.items():
        torch.testing.assert_close(
            ours[name], value, rtol=0, atol=1e-5, msg=lambda text, n=name: f"{n}: {text}"
        )


CLASSES = {
    "CLIPModel": "both",
    "CLIPTextModel": "text",
    "CLIPTextModelWithProjection": "text",
    "CLIPVisionModel": "image",
    "CLIPVisionModelWithProjection": "image",
    "SiglipModel": "both",
    "SiglipTextModel": "text",
    "SiglipVisionModel": "image",
}


@pytest.mark.parametrize(("name", "towers"), CLASSES.items())
def test_there_and_back(name, towers, tmp_path):
    """Their folder gives our model; the folder that we write gives theirs."""
    model = theirs(name)
    model.save_pretrained(tmp_path / "theirs")
    wanted = outputs(model, towers)
    loaded = load(tmp_path / "theirs", towers=towers)
    assert_same(our_outputs(loaded.model, towers, "Siglip" in name), wanted)

    save(loaded.model, tmp_path / "ours")
    report = convert(tmp_path / "ours", tmp_path / "back", "hf")
    assert any(line.startswith("by transformers: differences at most") for line in report), report
    back = getattr(transformers, name).from_pretrained(tmp_path / "back").eval()
    assert_same(outputs(back, towers), wanted)
    if towers == "both":
        torch.testing.assert_close(loaded.model.logit_scale, back.logit_scale.reshape(()))


@pytest.mark.parametrize("activation", ["gelu", "quick_gelu", "gelu_pytorch_tanh"])
def test_activation_is_read(activation, tmp_path):
    model = theirs("CLIPTextModel", hidden_act=activation)
    model.save_pretrained(tmp_path)
    found = load(tmp_path, towers="text").model
    assert found.config.activation == activation.replace("_pytorch", "")
    assert_same(our_outputs(found, "text", False), outputs(model, "text"))


def test_eos_pooling_is_read(tmp_path):
    """transformers reads old configs (eos_token_id 2) at the highest id, new ones at the first end token."""
    for eos, pool in ((63, "eos"), (2, "argmax"), (20, "eos")):
        model = theirs("CLIPTextModel", eos_token_id=eos)
        model.save_pretrained(tmp_path / str(eos))
        found = load(tmp_path / str(eos), towers="text").model
        tokens = TOKENS.clone()
        tokens[:, 5] = eos
        with torch.no_grad():
            assert found.config.text.pool == pool
            torch.testing.assert_close(
                found.encode_text(tokens), model(tokens).pooler_output, rtol=0, atol=1e-5
            )


def test_one_tower_of_a_whole_model(tmp_path):
    model = theirs("CLIPModel")
    model.save_pretrained(tmp_path)
    wanted = outputs(model, "both")
    for towers, kind in (("image", ImageTower), ("text", TextTower)):
        part = load(tmp_path, towers=towers).model
        assert type(part) is kind
        found = our_outputs(part, towers, False)
        assert_same(found, {name: wanted[name] for name in found})


def test_one_tower_among_the_weights_of_both(tmp_path):
    """A text encoder's config may stand beside the weights of a whole model."""
    model = theirs("CLIPModel")
    model.save_pretrained(tmp_path)
    config = {**model.config.text_config.to_dict(), "projection_dim": 24}
    (tmp_path / "config.json").write_text(json.dumps(config))
    part = load(tmp_path, towers="text").model
    torch.testing.assert_close(part.encode_text(TOKENS), outputs(model, "both")["text"], rtol=0, atol=1e-5)


def test_shards(tmp_path):
    model = theirs("CLIPModel")
    model.save_pretrained(tmp_path, max_shard_size="40KB")
    assert len(list(tmp_path.glob("*.safetensors"))) > 2
    assert_same(our_outputs(load(tmp_path).model, "both", False), outputs(model, "both"))
    index = tmp_path / "model.safetensors.index.json"
    document = json.loads(index.read_text())
    name = next(iter(document["weight_map"]))
    index.write_text(
        json.dumps({"weight_map": {**document["weight_map"], name: "../../elsewhere.safetensors"}})
    )
    with pytest.raises(
        WeightsError, match=r"lists '\.\./\.\./elsewhere\.safetensors', which is no name of a file"
    ):
        load(tmp_path)


def test_pickled_weights_are_read_as_data(tmp_path):
    model = theirs("CLIPTextModel")
    model.config.save_pretrained(tmp_path)
    old = {
        f"text_model.{name}": tensor for name, tensor in model.state_dict().items()
    }  # names of transformers 4
    old["text_model.embeddings.position_ids"] = torch.arange(12)[None]
    torch.save(old, tmp_path / "pytorch_model.bin")
    assert_same(our_outputs(load(tmp_path, towers="text").model, "text", False), outputs(model, "text"))


@pytest.mark.parametrize("resize", ["crop", "squash"])
def test_mean_std_and_resizing_come_from_the_preprocessor(resize, tmp_path):
    looks = {"mean": (0.1, 0.2, 0.3), "std": (0.4, 0.5, 0.6), "resize": resize}
    model = make(replace(VIT, vision=replace(VIT.vision, **looks)))
    save(model, tmp_path / "ours")
    convert(tmp_path / "ours", tmp_path / "hf", "hf")
    assert load(tmp_path / "hf").model.config.vision == model.config.vision


@pytest.mark.parametrize("config", [VIT, SIGLIP], ids=["clip", "siglip"])
def test_their_preprocessor_makes_our_input(config, tmp_path):
    image = pytest.importorskip("PIL.Image")
    save(make(replace(config, activation="gelu_tanh")), tmp_path / "ours")
    convert(tmp_path / "ours", tmp_path / "hf", "hf")
    pixels = torch.randint(0, 256, (50, 71, 3), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    picture = image.fromarray(pixels.numpy())
    processor = transformers.AutoImageProcessor.from_pretrained(tmp_path / "hf")
    theirs = processor(picture, return_tensors="pt")["pixel_values"][0]
    # Theirs resizes by torch or by Pillow, which round differently: by one step of 255.
    bound = 1.01 / 255 / min(config.vision.std)
    assert (load(tmp_path / "hf").transform(picture) - theirs).abs().max() <= bound


def test_half_precision(tmp_path):
    save(make(VIT), tmp_path / "ours")
    convert(tmp_path / "ours", tmp_path / "half", "hf", dtype="float16")
    assert json.loads((tmp_path / "half/config.json").read_text())["dtype"] == "float16"
    with torch.no_grad():
        exact, half = make(VIT).encode_text(TOKENS), load(tmp_path / "half").model.encode_text(TOKENS)
    assert 1e-6 < (exact - half).abs().max() < 1e-2


@pytest.mark.parametrize(
    ("config", "message"),
    [
        (RESNET, "Hugging Face has no vision tower such as ResNetConfig"),
        (replace(VIT, vision=replace(VIT.vision, pool="mean")), "Hugging Face has no vision tower such as"),
        (replace(VIT, text=replace(VIT.text, causal=False)), "Hugging Face has no text tower such as"),
    ],
)
def test_what_they_do_not_have_is_refused(config, message, tmp_path):
    save(make(config), tmp_path / "ours")
    with pytest.raises(WeightsError, match=message):
        convert(tmp_path / "ours", tmp_path / "hf", "hf")
    assert [path.name for path in tmp_path.iterdir()] == ["ours"]


def test_folders_that_do_not_fit_are_explained(tmp_path):
    model = theirs("CLIPModel")
    model.save_pretrained(tmp_path)
    config = json.loads((tmp_path / "config.json").read_text())

    def complaint(**changes):
        (tmp_path / "config.json").write_text(json.dumps({**config, **changes}))
        with pytest.raises(WeightsError) as error:
            load(tmp_path)
        return str(error.value)

    assert "model_type 'bert' is none of clip, siglip" in complaint(model_type="bert")
    fewer = complaint(text_config={**config["text_config"], "num_hidden_layers": 1})
    assert "tensors are not part of such a model: text_model.encoder.layers.1" in fewer
    wider = complaint(vision_config={**config["vision_config"], "image_size": 64})
    assert "visual.positional_embedding is (17, 32) and should be (65, 32)" in wider
    assert "image_size=32 patch_size=8 width=32 layers=3" in wider
    mixed = complaint(text_config={**config["text_config"], "hidden_act": "gelu"})
    assert "hidden_act must be the same in both towers" in mixed and "got gelu, quick_gelu" in mixed
    assert "must be a positive int" in complaint(projection_dim=0)
