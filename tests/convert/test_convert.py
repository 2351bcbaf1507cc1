"""The command converts, checks what it wrote, and leaves nothing behind when the check fails."""

from __future__ import annotations

from dataclasses import replace
from itertools import pairwise

import pytest
import torch

import fastclip.convert
from fastclip.convert import convert, main
from fastclip.models import PRESETS, WeightsError, load, save
from fastclip.models.presets import siglip_vision
from fastclip.models.weights.open_clip import read_open_clip_config, write_open_clip_config
from tests.models.tiny import RESNET, SIGLIP, VIT, inputs, make
from tests.tiny_model import write_run

pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.mark.parametrize("path", [("fastclip", "hf", "openai", "open_clip", "fastclip"),
                                  ("openai", "open_clip", "hf", "fastclip")])  # fmt: skip
def test_round_trip_through_every_form(path, tmp_path):
    """Tensors come back as they were: nothing is computed with them."""
    model = make(VIT)
    save(model, tmp_path / "0-start")
    places = [tmp_path / "0-start"]
    for number, form in enumerate(path, 1):
        places.append(tmp_path / f"{number}-{form}{'.safetensors' if form == 'openai' else ''}")
    for (source, destination), form in zip(pairwise(places), path, strict=True):
        report = convert(source, destination, form, config=VIT if source.is_file() else None)
        assert report[-1] == f"wrote {destination}"
        assert any(
            line.startswith("read back: differences at most image embeddings 0.0e+00") for line in report
        )
    state = load(places[-1]).model.state_dict()
    assert state.keys() == model.state_dict().keys()
    for name, tensor in model.state_dict().items():
        assert torch.equal(state[name], tensor), name
    assert sorted(tmp_path.iterdir()) == sorted(places)


@pytest.mark.parametrize(
    ("config", "form"),
    [(RESNET, "openai"), (RESNET, "open_clip"), (SIGLIP, "fastclip")],
    ids=["resnet-openai", "resnet-open_clip", "siglip-fastclip"],
)
def test_other_kinds_of_towers(config, form, tmp_path):
    save(make(config), tmp_path / "ours")
    convert(tmp_path / "ours", tmp_path / "there.pt", form)
    loaded = load(tmp_path / "there.pt", config=config if form == "openai" else None).model
    images, tokens = inputs(config)
    assert torch.equal(loaded.encode_image(images), make(config).encode_image(images))
    assert torch.equal(loaded.encode_text(tokens), make(config).encode_text(tokens))


@pytest.mark.parametrize("averaged", [False, True])
def test_who_converts_the_last_weights_of_a_run_is_told_of_the_averaged_ones(averaged, tmp_path):
    report = convert(write_run(tmp_path / "run"), tmp_path / "out", "fastclip", averaged=averaged)
    assert any("--averaged takes the averaged ones" in line for line in report) != averaged
    converted, wanted = load(tmp_path / "out"), load(tmp_path / "run", averaged=averaged)
    assert torch.equal(converted.model.visual.proj, wanted.model.visual.proj)


def test_open_clip_is_told_the_activation_of_both_towers():
    """In a tower that is told nothing, open_clip takes exact GELU."""
    config = replace(VIT, activation="gelu_tanh")
    document = write_open_clip_config(config)
    for tower in ("vision_cfg", "text_cfg"):
        assert document["model_cfg"][tower]["act_kwargs"] == {"approximate": "tanh"}
    assert read_open_clip_config(document, "here") == config
    del document["model_cfg"]["text_cfg"]["act_kwargs"]
    with pytest.raises(
        WeightsError, match="here: the image tower has activation gelu_tanh, the text tower gelu"
    ):
        read_open_clip_config(document, "here")


@pytest.mark.parametrize("size", [(256, 32, 768, 12, 12, 3072), (384, 16, 1152, 27, 16, 4304)])
def test_siglips_that_timm_has_with_their_activation_go_to_open_clip(size):
    vision = siglip_vision(*size)
    config = replace(PRESETS["ViT-B-16-SigLIP"], vision=vision, embed_dim=vision.width)
    read = read_open_clip_config(write_open_clip_config(config), "here")
    assert read == replace(config, init_logit_scale=read.init_logit_scale)
    with pytest.raises(WeightsError, match="of each size it has one activation"):
        write_open_clip_config(replace(config, activation="gelu"))
    with pytest.raises(WeightsError, match="of each size it has one activation"):
        write_open_clip_config(PRESETS["ViT-B-16-SigLIP"])


def test_a_bias_that_has_no_place_is_mentioned(tmp_path):
    model = make(replace(VIT, init_logit_bias=-10.0))
    save(model, tmp_path / "ours")
    assert "logit_bias is left out" in convert(tmp_path / "ours", tmp_path / "hf", "hf")[-2]
    assert "logit_bias" not in load(tmp_path / "hf").model.state_dict()
    convert(tmp_path / "ours", tmp_path / "oc", "open_clip")
    assert torch.equal(load(tmp_path / "oc").model.logit_bias, model.logit_bias)
    save(make(replace(SIGLIP, init_logit_bias=None)), tmp_path / "siglip")
    with pytest.raises(WeightsError, match="SiglipModel needs a logit_bias"):
        convert(tmp_path / "siglip", tmp_path / "x", "hf")


def test_command_line(tmp_path, capsys):
    save(make(VIT), tmp_path / "ours")
    assert main([str(tmp_path / "ours"), str(tmp_path / "t"), "--to", "hf", "--towers", "text"]) == 0
    out = capsys.readouterr().out
    assert "text tower, 0.0 M parameters, activation quick_gelu" in out and f"wrote {tmp_path / 't'}" in out
    assert load(tmp_path / "t", towers="text").model.config.text.width == 32
    again = [str(tmp_path / "ours"), str(tmp_path / "t"), "--to", "fastclip", "--image-size", "16"]
    assert main(again) == 1
    assert "exists; pass --overwrite to replace it" in capsys.readouterr().err
    assert main([*again, "--overwrite"]) == 0
    assert load(tmp_path / "t").model.config.vision.image_size == 16
    assert not (tmp_path / "t/config.json").exists()
    assert main([str(tmp_path / "nothing"), str(tmp_path / "x"), "--to", "hf"]) == 1
    assert "nothing does not exist" in capsys.readouterr().err


def test_help_has_examples(capsys):
    with pytest.raises(SystemExit):
        main(["--help"])
    out = capsys.readouterr().out
    assert out.count("python -m fastclip.convert ") >= 6 and "--activation" in out


def test_a_result_that_computes_something_else_is_not_kept(tmp_path, monkeypatch):
    save(make(VIT), tmp_path / "ours")
    write = fastclip.convert.write_tensors

    def swap(path, tensors, *rest):
        """Exchange two tensors of one shape, which no loader can notice."""
        tensors = dict(tensors)
        a, b = (f"vision_model.encoder.layers.0.layer_norm{i}.weight" for i in (1, 2))
        tensors[a], tensors[b] = tensors[b], tensors[a]
        write(path, tensors, *rest)

    monkeypatch.setattr(fastclip.convert, "write_tensors", swap)
    with pytest.raises(
        WeightsError, match=r"read back, the image embeddings differ by .*; nothing was written"
    ):
        convert(tmp_path / "ours", tmp_path / "hf", "hf")
    assert [path.name for path in tmp_path.iterdir()] == ["ours"]


@pytest.mark.parametrize(
    ("config", "form", "message"),
    [
        (
            replace(VIT, vision=replace(VIT.vision, pool="mean")),
            "openai.pt",
            "OpenAI's layout has no image tower",
        ),
        (SIGLIP, "openai.pt", "OpenAI's layout has no image tower"),
        (
            replace(VIT, text=replace(VIT.text, causal=False)),
            "openai.pt",
            "OpenAI's layout has no text tower",
        ),
        (SIGLIP, "open_clip", "open_clip takes SigLIP's image towers from timm, which has none such as"),
        (replace(VIT, vision=replace(VIT.vision, pool="mean")), "open_clip", "open_clip has no image tower"),
    ],
    ids=["mean-openai", "siglip-openai", "bidirectional-openai", "siglip-open_clip", "mean-open_clip"],
)
def test_what_a_form_cannot_say_is_refused(config, form, message, tmp_path):
    save(make(config), tmp_path / "ours")
    with pytest.raises(WeightsError, match=message):
        convert(tmp_path / "ours", tmp_path / form, form.split(".")[0])
    assert [path.name for path in tmp_path.iterdir()] == ["ours"]


def test_arguments_that_cannot_work_are_named(tmp_path):
    save(make(VIT), tmp_path / "ours")
    with pytest.raises(ValueError, match="to must be one of fastclip, hf, open_clip, openai, got 'onnx'"):
        convert(tmp_path / "ours", tmp_path / "x", "onnx")
    with pytest.raises(ValueError, match=r"destination must end in \.safetensors or \.pt for openai"):
        convert(tmp_path / "ours", tmp_path / "x", "openai")
    with pytest.raises(WeightsError, match="open_clip's folders hold both towers"):
        convert(tmp_path / "ours", tmp_path / "x", "open_clip", towers="text")
