"""The classifier of names: weights, ranks, ties, confusion; and that it meets clip_benchmark's loader contract."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
import torch.nn.functional as F

from fastclip.models import load
from fastclip.space import TEMPLATES, ClassFolder, Encoder, ZeroShotClassifier, zero_shot_classifier
from tests.tiny_model import COLOURS, write_model, write_pictures


def encode(texts: list[str]) -> torch.Tensor:
    return torch.stack(
        [torch.randn(6, generator=torch.Generator().manual_seed(sum(text.encode()))) for text in texts]
    )


def test_a_weight_is_the_mean_over_templates() -> None:
    templates = ["a {}", "the {} again"]
    classifier = zero_shot_classifier(encode, ["cat", "dog"], templates, batch_size=3)
    prompts = F.normalize(encode(["a cat", "the cat again"]), dim=1)
    torch.testing.assert_close(classifier.weights[0], F.normalize(prompts.mean(0), dim=0))


def test_shares_ranks_and_confusion() -> None:
    weights = torch.eye(6)
    classifier = ZeroShotClassifier(tuple("abcdef"), weights)
    images = torch.eye(6)[[0, 1, 2, 3]] + 0.5 * torch.eye(6)[[5, 0, 0, 0]]
    labels = torch.tensor([0, 1, 0, 5])
    result = classifier.evaluate(images, labels)
    assert (result.top1, result.top5, result.pictures) == (
        0.5,
        0.75,
        4,
    )  # the last: its class ties with others at 0
    assert (result.chance1, result.chance5) == pytest.approx((1 / 6, 5 / 6))
    assert result.confusion[0].tolist() == [1, 0, 1, 0, 0, 0]
    assert result.confusion[5, 3] == 1
    assert result.per_class[0] == 0.5 and result.per_class[2].isnan()
    assert result.to_dict()["per_class"]["c"]["top1"] is None
    assert classifier.predict(images, 2).tolist()[0] == [0, 5]


def test_a_model_that_maps_all_to_one_point_scores_zero() -> None:
    classifier = ZeroShotClassifier(("a", "b"), torch.ones(2, 3))
    result = classifier.evaluate(torch.ones(4, 3), torch.tensor([0, 1, 0, 1]))
    assert result.top1 == 0
    assert result.confusion.diagonal().sum() == 0


@pytest.mark.parametrize(
    ("names", "templates", "error", "said"),
    [
        (["cat"], ["{}"], ValueError, "at least two"),
        (["cat", "cat"], ["{}"], ValueError, '"cat" stands there twice'),
        (["cat", "dog"], ["a picture"], ValueError, "must contain {} once"),
        (["cat", "dog"], [], ValueError, "templates is empty"),
        (["cat", "dog"], "a {}", TypeError, "several strings"),
    ],
)
def test_names_and_templates_that_cannot_work(names: list, templates: list, error: type, said: str) -> None:
    with pytest.raises(error, match=said):
        zero_shot_classifier(encode, names, templates)


def test_all_sets_of_templates_have_a_place_for_the_name() -> None:
    for templates in TEMPLATES.values():
        assert len(zero_shot_classifier(encode, ["cat", "dog"], templates).names) == 2
        assert len(set(templates)) == len(templates)


def test_the_loader_contract_of_clip_benchmark(tmp_path: Path) -> None:
    """Go through (model, transform, tokenizer) as clip_benchmark's zero-shot metric does, and as we do: one answer."""
    from PIL import Image

    model, transform, tokenizer = load(write_model(tmp_path / "model"))
    write_pictures(tmp_path / "pictures")
    folder = ClassFolder(tmp_path / "pictures", 16)
    assert folder.names == tuple(sorted(COLOURS))
    with torch.no_grad():
        weights = []
        for name in folder.names:
            points = F.normalize(
                model.encode_text(tokenizer([t.format(name) for t in TEMPLATES["general"]])), dim=-1
            )
            weights.append(F.normalize(points.mean(0), dim=0))
        pictures = torch.stack([transform(Image.open(file)) for file in folder.files])
        assert pictures.shape == (9, 3, 16, 16) and pictures.dtype == torch.float32
        logits = 100 * F.normalize(model.encode_image(pictures), dim=-1) @ torch.stack(weights, 1)
    theirs = (logits.argmax(1) == folder.labels).float().mean().item()

    encoder = Encoder(model, tokenizer)
    classifier = zero_shot_classifier(encoder.texts, folder.names)
    result = classifier.evaluate_batches(encoder.images, folder.batches(4))
    assert result.top1 == pytest.approx(theirs)
    torch.testing.assert_close(classifier(encoder.images(pictures)), logits / 100, atol=1e-5, rtol=0)
