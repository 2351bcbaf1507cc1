"""Towers of every kind: their sizes, pools, switches for training, and what they share."""

import math
from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F

from fastclip.models import CLIP, PRESETS, ImageTower, TextTower
from fastclip.models.vision import resize_positions
from tests.models.tiny import RESNET, SIGLIP, VIT, inputs, make

#: As counted by the models' authors.
PARAMETERS = {
    "ViT-B-32": 151_277_313,
    "ViT-B-16": 149_620_737,
    "ViT-L-14": 427_616_513,
    "ViT-L-14-336": 427_944_193,
    "ViT-H-14": 986_109_441,
    "ViT-bigG-14": 2_539_567_105,
    "RN50": 102_007_137,
    "ViT-B-16-SigLIP": 203_155_970,
}


def with_vision(config=VIT, **changes):
    return replace(config, vision=replace(config.vision, **changes))


def with_text(config=VIT, **changes):
    return replace(config, text=replace(config.text, **changes))


@pytest.fixture(autouse=True, scope="module")
def few_threads(one_thread):
    """Everything here is small."""


@pytest.mark.parametrize(("name", "count"), PARAMETERS.items())
def test_presets_have_their_sizes(name, count):
    with torch.device("meta"):
        assert sum(p.numel() for p in CLIP(PRESETS[name]).parameters()) == count


@pytest.mark.parametrize("name", [name for name in PRESETS if name.endswith("-quickgelu")])
def test_quickgelu_presets_differ_in_nothing_else(name):
    assert PRESETS[name] == replace(PRESETS[name.removesuffix("-quickgelu")], activation="quick_gelu")


@pytest.mark.parametrize("config", [VIT, RESNET, SIGLIP], ids=["vit", "resnet", "siglip"])
def test_one_side_may_be_left_out(config):
    model, (images, tokens) = make(config), inputs(config)
    both = model(images, tokens)
    for given in ({"images": images}, {"tokens": tokens}):
        output = model(**given)
        assert set(both) - set(output) == {"text_features" if "images" in given else "image_features"}
        for name, value in output.items():
            torch.testing.assert_close(value, both[name])
    with pytest.raises(ValueError, match="images and tokens are both None"):
        model()


@pytest.mark.parametrize("config", [VIT, RESNET, SIGLIP], ids=["vit", "resnet", "siglip"])
def test_towers_stand_alone(config):
    """One tower has its part of the state dict, under the same names, and computes the same."""
    model, (images, tokens) = make(config), inputs(config)
    state = model.state_dict()
    image, text = ImageTower(config.image_tower).eval(), TextTower(config.text_tower).eval()
    for tower in (image, text):
        tower.load_state_dict({name: state[name] for name in tower.state_dict()})
    rest = state.keys() - image.state_dict().keys() - text.state_dict().keys()
    assert {name.split("_")[0] for name in rest} == {"logit"}
    assert torch.equal(image.encode_image(images), model.encode_image(images))
    assert torch.equal(text.encode_text(tokens), model.encode_text(tokens))


def test_mean_pool_is_the_mean_of_the_tokens():
    config = with_vision(pool="mean")
    model, images = make(config), inputs(config)[0]
    tokens = model.encode_image_tokens(images, final_norm=False)
    assert tokens.shape == (3, 16, 48)
    expected = model.visual.ln_post(tokens.mean(dim=1)) @ model.visual.proj
    torch.testing.assert_close(model.encode_image(images), expected)


def test_map_pool_is_multi_head_attention_of_the_probe():
    pool = make(SIGLIP).visual.attn_pool
    theirs = torch.nn.MultiheadAttention(32, 2, batch_first=True)
    own = {name: t for name, t in pool.state_dict().items() if name in theirs.state_dict()}
    theirs.load_state_dict(own)
    x = torch.randn(3, 7, 32)
    h = theirs(pool.probe.expand(3, 1, -1), x, x, need_weights=False)[0][:, 0]
    torch.testing.assert_close(pool(x), h + pool.mlp(pool.norm(h)))


def test_eos_pool_reads_the_first_end_token_whatever_ids_stand_elsewhere():
    argmax, eos = make(VIT), make(with_text(pool="eos", eos_id=20))
    tokens = torch.tensor([[1, 5, 20, 50, 20, 0], [1, 20, 20, 20, 20, 20]])
    hidden = eos.encode_text_tokens(tokens, projected=True)
    torch.testing.assert_close(eos.encode_text(tokens), hidden[torch.arange(2), torch.tensor([2, 1])])
    assert not torch.allclose(argmax.encode_text(tokens)[0], hidden[0, 2])
    with pytest.raises(ValueError, match="each row of tokens must hold the end token, eos_id=20"):
        eos.encode_text(torch.tensor([[1, 2, 3]]))
    with pytest.raises(ValueError, match=r"eos_id must lie in \[0, 64\)"):
        with_text(pool="eos", eos_id=64)


def test_bidirectional_text_looks_ahead_and_reads_the_last():
    model, (_, tokens) = make(SIGLIP), inputs(SIGLIP)
    changed = tokens.clone()
    changed[:, -1] = 7
    assert (
        model.encode_text_tokens(tokens)[:, 0] - model.encode_text_tokens(changed)[:, 0]
    ).abs().max() > 1e-4
    last = model.encode_text_tokens(tokens, projected=True)[:, -1]
    torch.testing.assert_close(model.encode_text(tokens), last)


@pytest.mark.parametrize("config", [VIT, SIGLIP], ids=["vit", "siglip"])
def test_gradient_checkpointing_changes_memory_only(config):
    images, tokens = inputs(config)

    def run(checkpointing):
        model, kept = make(config).train(), []
        model.set_grad_checkpointing(checkpointing)
        with torch.autograd.graph.saved_tensors_hooks(lambda t: kept.append(t.numel()) or t, lambda t: t):
            output = model(images, tokens[:3])
            loss = (output["image_features"] * output["text_features"]).sum() * output["logit_scale"]
        loss.backward()
        return {name: p.grad for name, p in model.named_parameters() if p.grad is not None}, sum(kept)

    (plain, all_kept), (again, few_kept) = run(False), run(True)
    assert plain.keys() == again.keys()
    for name, gradient in plain.items():
        torch.testing.assert_close(again[name], gradient, msg=name)
    assert few_kept < all_kept / 2


def test_patch_dropout_draws_a_part_of_the_patches_in_training_only():
    plain, dropping = make(VIT), make(with_vision(patch_dropout=0.75))
    images = inputs(VIT)[0]
    assert torch.equal(plain.encode_image(images), dropping.encode_image(images))
    dropping.train()
    x = dropping.visual.embed(images)
    assert x.shape == (3, 1 + 4, 48)
    everything = plain.visual.embed(images)
    torch.testing.assert_close(x[:, 0], everything[:, 0])  # the class token stays
    distance = torch.cdist(x[:, 1:], everything[:, 1:])
    assert (distance.min(dim=2).values < 1e-5).all()  # the others are patches at their own places,
    chosen = distance.argmin(dim=2)
    assert all(len(set(row.tolist())) == 4 for row in chosen)  # none twice,
    assert len({tuple(sorted(row.tolist())) for row in chosen}) > 1  # and every picture's own


def test_locked_tower_stays_as_it_is():
    model, (images, tokens) = make(RESNET).train(), inputs(RESNET)
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    model.lock(image=True)
    model.train()
    optimizer = torch.optim.SGD([p for p in model.parameters() if p.requires_grad], lr=1.0)
    output = model(images, tokens[:3])
    (output["image_features"] * output["text_features"]).sum().backward()
    optimizer.step()
    for name, tensor in model.state_dict().items():
        moved = not torch.equal(tensor, before[name])
        assert moved <= (not name.startswith("visual.")), name  # running statistics too
    assert model.training and not model.visual.training
    assert all(p.grad is None for p in model.visual.parameters())
    model.lock(image=False, text=True)
    frozen = {name for name, p in model.named_parameters() if not p.requires_grad}
    assert model.visual.training
    assert frozen == {name for name in before if not name.startswith(("visual.", "logit_"))}


def test_positions_of_another_grid_keep_the_class_token_and_a_smooth_map():
    side = torch.linspace(0, 1, 7)
    smooth = torch.stack([side[:, None].expand(7, 7), side.expand(7, 7)], dim=-1).reshape(49, 2)
    resized = resize_positions(torch.cat([torch.full((1, 2), 9.0), smooth]), 14 * 14 + 1)
    assert resized.shape == (197, 2)
    assert torch.equal(resized[0], torch.full((2,), 9.0))
    grid = resized[1:].reshape(14, 14, 2)
    middle = torch.linspace(-0.5 / 14, 1 + 0.5 / 14, 14)[3:11] * 7 / 6 * 6 / 7
    assert (grid[3:11, 5, 0].diff() > 0).all() and (grid[5, 3:11, 1].diff() > 0).all()
    assert (grid[3:11, 5, 0] - middle).abs().max() < 0.05
    assert torch.equal(resize_positions(smooth, 49), smooth)
    with pytest.raises(ValueError, match="from 50 to 49 tokens"):
        resize_positions(torch.zeros(50, 2), 49)


@pytest.mark.parametrize("stride", [1, 2])
def test_bottleneck_starts_as_the_identity(stride):
    from fastclip.models.resnet import Bottleneck

    block = Bottleneck(32, 8, stride).eval()
    x = torch.rand(2, 32, 8, 8)
    expected = x if stride == 1 else F.relu(block.downsample(x))
    torch.testing.assert_close(block(x), expected)


def test_scale_and_bias_start_as_the_config_says():
    model = CLIP(SIGLIP)
    assert float(model.logit_scale.detach()) == pytest.approx(math.log(10))
    assert float(model.logit_bias.detach()) == -10
    assert "logit_bias" not in CLIP(VIT).state_dict()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda: replace(RESNET.vision, depths=(1, 2)), "depths must be four positive ints"),
        (lambda: replace(RESNET.vision, image_size=50), "image_size must be a multiple of 32"),
        (lambda: replace(RESNET.vision, heads=5), "32 · width a multiple of heads 5"),
        (lambda: with_vision(patch_dropout=1.0), r"patch_dropout must lie in \[0, 1\)"),
        (
            lambda: with_vision(projection=False),
            "embed_dim must be 48, the width of a tower without projection",
        ),
        (lambda: with_text(projection=False, projection_bias=True), "projection_bias must be False"),
        (lambda: with_vision(resize="pad"), "resize must be one of crop, squash"),
    ],
)
def test_configs_that_cannot_be_are_refused(change, message):
    with pytest.raises(ValueError, match=message):
        change()


@pytest.mark.slow
@pytest.mark.parametrize("config", [VIT, RESNET, SIGLIP], ids=["vit", "resnet", "siglip"])
def test_compiles_without_graph_breaks(config):
    model, (images, tokens) = make(config), inputs(config)
    compiled = torch.compile(model, fullgraph=True)
    for name, value in compiled(images, tokens).items():
        torch.testing.assert_close(value, model(images, tokens)[name], rtol=1e-4, atol=1e-5)
