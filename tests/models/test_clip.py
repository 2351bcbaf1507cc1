"""The towers have OpenAI's names and shapes, and compute what they promise."""

import math
from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F

from fastclip.models import CLIP, PRESETS, CLIPConfig, TextConfig, Tokenizer, VisionConfig

PLAIN = CLIPConfig(
    vision=VisionConfig(image_size=32, patch_size=8, width=32, layers=2, heads=2),
    text=TextConfig(width=24, layers=2, heads=3),
    embed_dim=16,
    activation="quick_gelu",
)


def build(config=PLAIN):
    torch.manual_seed(0)
    return CLIP(config).eval()


@pytest.fixture(scope="module")
def model():
    return build()


@pytest.fixture(scope="module")
def tokens():
    return Tokenizer()(["a cat", "a photo of a dog on a red mat", ""])


def openai_names(config):
    block = {
        "ln_1.weight", "ln_1.bias", "attn.in_proj_weight", "attn.in_proj_bias", "attn.out_proj.weight",
        "attn.out_proj.bias", "ln_2.weight", "ln_2.bias", "mlp.c_fc.weight", "mlp.c_fc.bias",
        "mlp.c_proj.weight", "mlp.c_proj.bias",
    }  # fmt: skip
    names = {
        "positional_embedding", "text_projection", "logit_scale", "token_embedding.weight", "ln_final.weight",
        "ln_final.bias", "visual.class_embedding", "visual.positional_embedding", "visual.proj",
        "visual.conv1.weight", "visual.ln_pre.weight", "visual.ln_pre.bias", "visual.ln_post.weight",
        "visual.ln_post.bias",
    }  # fmt: skip
    for prefix, layers in (("", config.text.layers), ("visual.", config.vision.layers)):
        names |= {f"{prefix}transformer.resblocks.{i}.{name}" for i in range(layers) for name in block}
    return names


def test_state_dict_is_openais(model):
    state = model.state_dict()
    assert set(state) == openai_names(PLAIN)
    assert state["visual.positional_embedding"].shape == (17, 32)
    assert state["visual.proj"].shape == (32, 16)
    assert state["positional_embedding"].shape == (77, 24)
    assert state["text_projection"].shape == (24, 16)
    assert state["visual.transformer.resblocks.1.attn.in_proj_weight"].shape == (96, 32)
    assert state["transformer.resblocks.0.mlp.c_fc.weight"].shape == (96, 24)


def test_vit_b_32_has_its_size():
    with torch.device("meta"):
        model = CLIP(PRESETS["ViT-B-32"])
    assert sum(p.numel() for p in model.parameters()) == 151_277_313
    assert set(model.state_dict()) == openai_names(PRESETS["ViT-B-32"])


@pytest.mark.parametrize("config", [PLAIN, PRESETS["demo"]], ids=["plain", "demo"])
def test_forward_gives_unit_features_and_the_scale(config, tokens):
    model = build(config)
    size = config.vision.image_size
    images = model.preprocess(torch.randint(0, 256, (2, 3, size, size), dtype=torch.uint8))
    output = model(images, tokens)
    assert set(output) == {"image_features", "text_features", "logit_scale"}
    assert output["image_features"].shape == (2, config.embed_dim)
    assert output["text_features"].shape == (3, config.embed_dim)
    for name in ("image_features", "text_features"):
        torch.testing.assert_close(output[name].norm(dim=-1), torch.ones(len(output[name])))
    torch.testing.assert_close(output["logit_scale"], torch.tensor(config.init_logit_scale))
    torch.testing.assert_close(output["image_features"], F.normalize(model.encode_image(images), dim=-1))
    torch.testing.assert_close(output["text_features"], model.encode_text(tokens, normalize=True))


@pytest.mark.parametrize("layers", [0, 2])
def test_picture_does_not_depend_on_its_neighbours(layers):
    """In training mode too: cached gradients of micro-batches rely on it."""
    model = build(replace(PRESETS["demo"], vision=replace(PRESETS["demo"].vision, layers=layers))).train()
    images = torch.randn(3, 3, 32, 32)
    together = model.encode_image(images)
    for image, features in zip(images, together, strict=True):
        torch.testing.assert_close(model.encode_image(image[None])[0], features)
    assert not list(model.buffers())


def test_every_parameter_gets_a_gradient(tokens):
    model = build(replace(PRESETS["demo"], init_logit_bias=-10.0)).train()
    size = model.config.vision.image_size
    output = model(torch.randn(3, 3, size, size), tokens)
    z = output["logit_scale"] * output["image_features"] @ output["text_features"].T + output["logit_bias"]
    (F.cross_entropy(z, torch.arange(3)) + F.softplus(z).mean()).backward()
    for name, parameter in model.named_parameters():
        assert parameter.grad is not None and parameter.grad.isfinite().all(), name
        assert parameter.grad.any(), name


def test_attention_is_multi_head_attention(model):
    """The same weights in torch's own module give the same output."""
    own = model.transformer.resblocks[0].attn
    theirs = torch.nn.MultiheadAttention(24, 3, batch_first=True)
    theirs.load_state_dict(own.state_dict())
    x = torch.randn(2, 5, 24)
    mask = torch.full((5, 5), -math.inf).triu(1)
    torch.testing.assert_close(own(x), theirs(x, x, x, attn_mask=mask, need_weights=False)[0])


def test_text_attention_looks_back_only(model):
    x = torch.randn(1, 6, 24)
    changed = x.clone()
    changed[:, 4:] = torch.randn(1, 2, 24)
    before, after = model.transformer(x), model.transformer(changed)
    torch.testing.assert_close(before[:, :4], after[:, :4])
    assert (before[:, 4:] - after[:, 4:]).abs().min() > 1e-6


def test_what_follows_the_end_token_has_no_influence(model, tokens):
    noisy = tokens.clone()
    for row in noisy:
        end = int(row.argmax())
        row[end + 1 :] = torch.randint(0, 49407, (76 - end,))
    torch.testing.assert_close(model.encode_text(noisy), model.encode_text(tokens))


def test_text_does_not_depend_on_its_neighbours_or_its_padding(model, tokens):
    together = model.encode_text(tokens)
    for i, row in enumerate(tokens):
        end = int(row.argmax())
        torch.testing.assert_close(model.encode_text(row[None])[0], together[i])
        torch.testing.assert_close(model.encode_text(row[None, : end + 1])[0], together[i])


def test_text_is_read_off_at_the_first_end_token(model):
    tokens = Tokenizer()(["a cat"])
    x = model.token_embedding(tokens) + model.positional_embedding
    end = model.ln_final(model.transformer(x))[:, 3] @ model.text_projection
    torch.testing.assert_close(model.encode_text(tokens), end)


def test_initialisation_is_openais():
    config = replace(PLAIN, text=TextConfig(width=256, layers=4, heads=4))
    model = build(config)
    block = model.transformer.resblocks[2]
    for weight, std in (
        (model.token_embedding.weight, 0.02),
        (model.positional_embedding, 0.01),
        (model.text_projection, 256**-0.5),
        (block.attn.in_proj_weight, 256**-0.5),
        (block.attn.out_proj.weight, 256**-0.5 * 8**-0.5),
        (block.mlp.c_fc.weight, 512**-0.5),
        (block.mlp.c_proj.weight, 256**-0.5 * 8**-0.5),
    ):
        assert float(weight.detach().std()) == pytest.approx(std, rel=0.05)
        assert abs(float(weight.detach().mean())) < 0.05 * std
    assert float(model.logit_scale.detach()) == pytest.approx(math.log(1 / 0.07))


def test_quick_gelu_differs_from_gelu(model, tokens):
    other = build(replace(PLAIN, activation="gelu"))
    other.load_state_dict(model.state_dict())
    assert not torch.allclose(other.encode_text(tokens), model.encode_text(tokens), atol=1e-4)
    x = torch.linspace(-3, 3, 13)
    torch.testing.assert_close(model.transformer.resblocks[0].mlp.act(x), x / (1 + (-1.702 * x).exp()))


def test_preprocess_normalises_channels(model):
    images = torch.zeros(1, 3, 32, 32, dtype=torch.uint8)
    images[:, 1] = 255
    out = model.preprocess(images)
    mean, std = PLAIN.vision.mean, PLAIN.vision.std
    expected = torch.tensor([-mean[0] / std[0], (1 - mean[1]) / std[1], -mean[2] / std[2]])
    assert out.dtype == torch.float32
    torch.testing.assert_close(out[0, :, 5, 5], expected)


def test_scale_is_clamped_in_place():
    model = build()
    parameter = model.logit_scale
    for value, clamped in ((9.0, math.log(100)), (-1.0, 0.0), (2.0, 2.0)):
        with torch.no_grad():
            parameter.fill_(value)
        model.clamp_logit_scale_()
        assert model.logit_scale is parameter
        assert float(parameter.detach()) == pytest.approx(clamped)


def test_wrong_images_are_named(model):
    with pytest.raises(ValueError, match=r"images must have shape \(B, 3, 32, 32\), got \(2, 3, 16, 16\)"):
        model.encode_image(torch.zeros(2, 3, 16, 16))
    with pytest.raises(TypeError, match=r"images must be floating point, got torch\.uint8.*preprocess"):
        model.encode_image(torch.zeros(2, 3, 32, 32, dtype=torch.uint8))
    with pytest.raises(ValueError, match=r"images must be uint8 \(B, 3, H, W\), got torch\.float32"):
        model.preprocess(torch.zeros(2, 3, 32, 32))


def test_wrong_tokens_are_named(model):
    for shape in ((77,), (0, 77), (2, 0), (2, 78)):
        with pytest.raises(ValueError, match=r"tokens must have shape .*77, got"):
            model.encode_text(torch.zeros(shape, dtype=torch.int64))
    with pytest.raises(TypeError, match=r"tokens must be int64 or int32, got torch\.float32.*Tokenizer"):
        model.encode_text(torch.zeros(2, 77))
    with pytest.raises(ValueError, match=r"token ids .*\[0, 49408\)"):
        model.encode_text(torch.full((1, 77), 60000))


def test_weights_of_another_model_are_refused(model):
    other = build(replace(PLAIN, embed_dim=32))
    with pytest.raises(RuntimeError, match="size mismatch for text_projection"):
        other.load_state_dict(model.state_dict())


@pytest.mark.slow
def test_compiles_without_graph_breaks(model, tokens):
    images = torch.randn(3, 3, 32, 32)
    compiled = torch.compile(model, fullgraph=True)
    for name, value in compiled(images, tokens).items():
        torch.testing.assert_close(value, model(images, tokens)[name], rtol=1e-4, atol=1e-5)
