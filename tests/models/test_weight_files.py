"""State dicts in files: OpenAI's layout under any wrapper, read as data, and explained where they do not fit."""

from __future__ import annotations

import os
import pickle
from dataclasses import replace

import pytest
import torch
from safetensors.torch import save_file
from torch import nn

from fastclip.convert import convert
from fastclip.models import CLIP, PRESETS, WeightsError, load, save
from fastclip.models.weights.fit import describe, find_presets, infer, shapes_of
from tests.models.tiny import RESNET, VIT, inputs, make

pytestmark = pytest.mark.usefixtures("one_thread")

IMAGES, TOKENS = inputs(VIT)
QUICK = "ViT-B-32-quickgelu"


def same(model, other=None):
    other = make(VIT) if other is None else other
    return torch.equal(model.encode_image(IMAGES), other.encode_image(IMAGES)) and torch.equal(
        model.encode_text(TOKENS), other.encode_text(TOKENS)
    )


def wrap(state, prefix):
    return {prefix + name: tensor for name, tensor in state.items()}


@pytest.mark.parametrize(
    "wrapped",
    [
        lambda state: state,
        lambda state: wrap(state, "module."),
        lambda state: wrap(state, "_orig_mod."),
        lambda state: wrap(state, "_orig_mod.module."),
        lambda state: {"state_dict": wrap(state, "module."), "epoch": 3, "name": "run", "optimizer": {}},
        lambda state: {
            name if name.startswith(("visual.", "logit_")) else f"text.{name}": t for name, t in state.items()
        },
        lambda state: {**state, "input_resolution": torch.tensor(32), "context_length": torch.tensor(12),
                       "vocab_size": torch.tensor(64)},
        lambda state: {**state, "logit_scale": state["logit_scale"].reshape(1)},
    ],
    ids=["bare", "ddp", "compiled", "compiled ddp", "training", "text.", "openai", "scale of one entry"],
)  # fmt: skip
@pytest.mark.parametrize("suffix", [".pt", ".bin"])
def test_wrappers_are_taken_off(wrapped, suffix, tmp_path):
    path = tmp_path / f"weights{suffix}"
    torch.save(wrapped(make(VIT).state_dict()), path)
    assert same(load(path, config=VIT).model)


def test_half_precision_files_are_loaded_in_the_dtype_asked_for(tmp_path):
    save_file(
        {name: t.half().contiguous() for name, t in make(VIT).state_dict().items()},
        tmp_path / "w.safetensors",
    )
    assert load(tmp_path / "w.safetensors", config=VIT).model.logit_scale.dtype == torch.float32
    model = load(tmp_path / "w.safetensors", config=VIT, dtype=torch.bfloat16).model
    assert {p.dtype for p in model.parameters()} == {torch.bfloat16}
    assert model.encode_image(IMAGES.bfloat16()).dtype == torch.bfloat16


def test_one_tower_of_a_file(tmp_path):
    state = make(VIT).state_dict()
    torch.save({name: t for name, t in state.items() if name.startswith("visual.")}, tmp_path / "image.pt")
    torch.save(state, tmp_path / "both.pt")
    for name in ("image", "both"):
        tower = load(tmp_path / f"{name}.pt", config=VIT, towers="image").model
        assert torch.equal(tower.encode_image(IMAGES), make(VIT).encode_image(IMAGES))
    with pytest.raises(WeightsError, match=r"tensors are missing: ln_final\.bias"):
        load(tmp_path / "image.pt", config=VIT)


class Exploit:
    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return os.mkdir, (str(self.path),)


def test_pickles_with_programs_are_not_run(tmp_path):
    torch.save({"state_dict": make(VIT).state_dict(), "x": Exploit(tmp_path / "ran")}, tmp_path / "bad.pt")
    with pytest.raises(WeightsError, match="holds more than weights, and is not opened"):
        load(tmp_path / "bad.pt", config=VIT)
    (tmp_path / "plain.bin").write_bytes(pickle.dumps(Exploit(tmp_path / "ran"), protocol=2))
    with pytest.raises(WeightsError, match=r"plain\.bin"):
        load(tmp_path / "plain.bin", config=VIT)
    assert not (tmp_path / "ran").exists()


@pytest.mark.parametrize("name", ["w.safetensors", "w.pt", "w.bin"])
def test_damaged_files_are_named(name, tmp_path):
    (tmp_path / name).write_bytes(b"\x80\x02not weights at all")
    with pytest.raises(WeightsError, match=name):
        load(tmp_path / name, config=VIT)


def test_other_paths_are_named(tmp_path):
    with pytest.raises(WeightsError, match="does not exist"):
        load(tmp_path / "nothing")
    with pytest.raises(WeightsError, match="holds no model: expected a run or checkpoint"):
        load(tmp_path)
    (tmp_path / "w.txt").write_text("")
    with pytest.raises(WeightsError, match=r"none of the endings \.safetensors, \.pt"):
        load(tmp_path / "w.txt")
    torch.save([1, 2], tmp_path / "list.pt")
    with pytest.raises(WeightsError, match="holds a list in place of a state dict"):
        load(tmp_path / "list.pt")
    torch.save({"vision_model.x": torch.zeros(1)}, tmp_path / "hf.bin")
    with pytest.raises(WeightsError, match="has Hugging Face's names; give the folder it is in"):
        load(tmp_path / "hf.bin")


def test_weights_that_do_not_fit_name_keys_shapes_and_what_would_fit(tmp_path):
    torch.save(make(VIT).state_dict(), tmp_path / "w.pt")
    with pytest.raises(WeightsError) as error:
        load(tmp_path / "w.pt", config=replace(VIT, embed_dim=32, vision=replace(VIT.vision, layers=4)))
    text = str(error.value)
    assert "12 tensors are missing: visual.transformer.resblocks.3" in text
    assert "2 shapes differ: text_projection is (32, 24) and should be (32, 32)" in text
    assert "image_size=32 patch_size=8 width=48 layers=3" in text
    assert "text width=32 layers=2 context_length=12 vocab_size=64, embed_dim=24" in text
    assert "depths=(1, 2, 1, 1) width=8" in describe(shapes_of(RESNET))
    assert describe({"x": (1,)}) == ""


def test_activation_is_never_guessed(tmp_path):
    shapes = shapes_of(PRESETS["ViT-B-32"])
    assert find_presets(shapes) == ["ViT-B-32", QUICK]
    with pytest.raises(
        WeightsError, match=f"the weights fit ViT-B-32 and {QUICK}, and do not say which activation"
    ):
        infer(shapes, None, "w.pt")
    assert infer(shapes, "quick_gelu", "w.pt") == PRESETS[QUICK]
    assert infer(shapes_of(PRESETS["RN50"]), "gelu", "w.pt") == PRESETS["RN50"]
    torch.save(make(VIT).state_dict(), tmp_path / "w.pt")
    with pytest.raises(WeightsError, match="fit no model that is known by name; they look like this: vision"):
        load(tmp_path / "w.pt", activation="gelu")
    with pytest.raises(ValueError, match="activation must be one of gelu, quick_gelu, gelu_tanh, got 'relu'"):
        load(tmp_path / "w.pt", activation="relu")
    with pytest.raises(ValueError, match="activation is 'gelu', but the config says 'quick_gelu'"):
        load(tmp_path / "w.pt", activation="gelu", config=VIT)
    with pytest.raises(ValueError, match="config must be one of demo, ViT-B-32"):
        load(tmp_path / "w.pt", config="ViT-Z-99")


def test_a_file_or_folder_that_says_its_activation_is_believed(tmp_path):
    save(make(VIT), tmp_path / "ours")
    convert(tmp_path / "ours", tmp_path / "w.safetensors", "openai")
    assert same(load(tmp_path / "w.safetensors", config=VIT).model)
    for path in (tmp_path / "ours", tmp_path / "w.safetensors"):
        with pytest.raises(WeightsError, match="says its activation is quick_gelu, not gelu"):
            load(path, activation="gelu")
    with pytest.raises(WeightsError, match="says its activation is quick_gelu, not gelu"):
        load(tmp_path / "w.safetensors", config=replace(VIT, activation="gelu"))
    with pytest.raises(WeightsError, match="says itself what its model is"):
        load(tmp_path / "ours", config=replace(VIT, activation="gelu"))


class Traced(nn.Module):
    """A model as OpenAI published theirs: its own layout and program, in a TorchScript archive."""

    def __init__(self, model: CLIP) -> None:
        super().__init__()
        self.transformer, self.visual = model.transformer, model.visual
        self.token_embedding, self.ln_final = model.token_embedding, model.ln_final
        self.positional_embedding, self.text_projection = model.positional_embedding, model.text_projection
        self.logit_scale = model.logit_scale
        self.register_buffer("input_resolution", torch.tensor(32))
        self.register_buffer("vocab_size", torch.tensor(64))

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        return self.visual(images)


@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::torch.jit.TracerWarning")
@pytest.mark.parametrize("config", [VIT, RESNET], ids=["vit", "resnet"])
def test_torchscript_archives_are_read_without_running_them(config, tmp_path):
    model = make(config)
    path = tmp_path / "ViT.pt"
    torch.jit.save(torch.jit.trace(Traced(model), inputs(config)[0]), path)
    loaded = load(path, config=config).model
    assert torch.equal(loaded.encode_image(inputs(config)[0]), model.encode_image(inputs(config)[0]))
    assert torch.equal(loaded.encode_text(TOKENS), model.encode_text(TOKENS))
    if config is VIT:  # 1.702 stands in its program
        with pytest.raises(WeightsError, match="says its activation is quick_gelu, not gelu"):
            load(path, config=replace(VIT, activation="gelu"))


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_torchscript_archives_with_other_objects_are_refused(tmp_path):
    import zipfile

    path = tmp_path / "bad.pt"
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("bad/data.pkl", pickle.dumps({"x": Exploit(tmp_path / "ran")}))
        archive.writestr("bad/constants.pkl", pickle.dumps(()))
    with pytest.raises(
        WeightsError, match=r"a TorchScript archive that cannot be read: it names posix\.mkdir"
    ):
        load(path, config=VIT)
    assert not (tmp_path / "ran").exists()
