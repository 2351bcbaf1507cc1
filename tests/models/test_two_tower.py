"""Two modules of any kind meet in one space."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from fastclip.models import ImageTower, Pooled, TextTower, TwoTower
from tests.models.tiny import VIT, inputs, make


class ImageNet(nn.Module):
    """A user's tower, with what must not move when it is locked."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 5, 4, stride=4)
        self.norm = nn.BatchNorm2d(5)
        self.drop = nn.Dropout(0.5)

    def forward(self, images):
        return self.drop(self.norm(self.conv(images))).mean(dim=(2, 3))


def build(**options):
    torch.manual_seed(0)
    text = nn.EmbeddingBag(50, 7)
    return TwoTower(ImageNet(), text, **{"image_width": 5, "text_width": 7, "embed_dim": 4, **options})


IMAGES, TOKENS = torch.randn(3, 3, 8, 8), torch.randint(0, 50, (6, 9))


@pytest.mark.parametrize("hidden", [None, 11])
def test_it_encodes_and_contrasts_as_a_clip_does(hidden):
    model = build(hidden=hidden, init_logit_bias=-10.0).eval()
    output = model(IMAGES, TOKENS)
    assert set(output) == {"image_features", "text_features", "logit_scale", "logit_bias"}
    assert output["image_features"].shape == (3, 4) and output["text_features"].shape == (6, 4)
    torch.testing.assert_close(output["text_features"].norm(dim=1), torch.ones(6))
    torch.testing.assert_close(output["image_features"], model.encode_image(IMAGES, normalize=True))
    features = model.image_projection(model.image_tower(IMAGES))
    torch.testing.assert_close(model.encode_image(IMAGES), features)
    assert set(model(tokens=TOKENS)) == {"text_features", "logit_scale", "logit_bias"}
    model.clamp_logit_scale_()


def test_locked_towers_stay_while_projections_learn():
    model = build().train()
    model.lock(image=True, text=True)
    model.train()
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    output = model(IMAGES, TOKENS[:3])
    loss = (output["image_features"] * output["text_features"]).sum() * output["logit_scale"]
    loss.backward()
    torch.optim.SGD([p for p in model.parameters() if p.requires_grad], lr=1.0).step()
    moved = {name for name, tensor in model.state_dict().items() if not torch.equal(tensor, before[name])}
    assert moved == {"image_projection.weight", "text_projection.weight", "logit_scale"}
    torch.testing.assert_close(model.encode_image(IMAGES), model.encode_image(IMAGES))  # no dropout


def test_features_of_locked_towers_serve_in_their_place():
    model = build().eval()
    bare = TwoTower(None, None, image_width=5, text_width=7, embed_dim=4)
    bare.load_state_dict({name: t for name, t in model.state_dict().items() if "tower" not in name})
    with torch.no_grad():
        images, texts = model.image_tower(IMAGES), model.text_tower(TOKENS)
        for name, value in model(IMAGES, TOKENS).items():
            torch.testing.assert_close(bare(images, texts)[name], value)
    bare.lock(image=True, text=True)  # there is nothing to lock
    assert all(p.requires_grad for p in bare.parameters())


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"image_width": 6}, r"image_tower gave \(3, 5\) where \(B, 6\) is expected; set image_width"),
        ({"image_width": 0}, "image_width must be at least 1, got 0"),
    ],
)
def test_towers_of_another_width_are_named(options, message):
    with pytest.raises(ValueError, match=message):
        build(**options)(IMAGES, TOKENS)


def test_features_of_another_width_are_named():
    bare = TwoTower(None, None, image_width=5, text_width=7, embed_dim=4)
    with pytest.raises(
        ValueError, match=r"there is no text_tower, and features came as \(2, 5\) where \(B, 7\)"
    ):
        bare.encode_text(torch.zeros(2, 5))


def test_our_own_towers_fit():
    images, tokens = inputs(VIT)
    clip = make(VIT)
    image, text = ImageTower(VIT.image_tower).eval(), TextTower(VIT.text_tower).eval()
    for tower in (image, text):
        tower.load_state_dict({name: clip.state_dict()[name] for name in tower.state_dict()})
    model = TwoTower(image, text, image_width=24, text_width=24, embed_dim=4).eval()
    torch.testing.assert_close(model.encode_image(images), model.image_projection(clip.encode_image(images)))
    torch.testing.assert_close(model.encode_text(tokens), model.text_projection(clip.encode_text(tokens)))


def test_transformers_models_are_pooled():
    transformers = pytest.importorskip("transformers")
    torch.manual_seed(0)
    bert = transformers.BertModel(transformers.BertConfig(vocab_size=50, hidden_size=16, num_hidden_layers=2,
        num_attention_heads=2, intermediate_size=32, max_position_embeddings=12)).eval()  # fmt: skip
    vit = transformers.ViTModel(transformers.ViTConfig(hidden_size=16, num_hidden_layers=1, num_attention_heads=2,
        intermediate_size=32, image_size=8, patch_size=4), add_pooling_layer=False).eval()  # fmt: skip
    model = TwoTower(
        Pooled(vit, "first"), Pooled(bert, pad_id=0), image_width=16, text_width=16, embed_dim=4
    ).eval()
    tokens = torch.tensor([[4, 9, 5, 0, 0], [4, 9, 8, 7, 5]])
    with torch.no_grad():
        alone = bert(tokens[:1, :3]).last_hidden_state.mean(dim=1)
        torch.testing.assert_close(model.text_tower(tokens)[:1], alone)  # padding has no influence
        torch.testing.assert_close(model.image_tower(IMAGES), vit(IMAGES).last_hidden_state[:, 0])
        torch.testing.assert_close(Pooled(vit)(IMAGES), vit(IMAGES).last_hidden_state.mean(dim=1))
        assert model(IMAGES, tokens)["text_features"].shape == (2, 4)
        unit = Pooled(bert, pad_id=0, normalize=True)(tokens)
    torch.testing.assert_close(unit.norm(dim=1), torch.ones(2))
    with pytest.raises(ValueError, match="pool must be 'mean' or 'first', got 'max'"):
        Pooled(vit, "max")
    with pytest.raises(ValueError, match=r"image_tower gave \w+ where \(B, 16\) is expected.*Pooled"):
        TwoTower(vit, None, image_width=16, text_width=16, embed_dim=4).encode_image(IMAGES)
