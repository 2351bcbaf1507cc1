"""Token-level outputs: which layer, which norm, which space."""

import pytest
import torch

from tests.models.tiny import RESNET, VIT, inputs, make


@pytest.fixture(scope="module")
def model():
    return make(VIT)


@pytest.fixture(scope="module")
def states(model):
    """Compute each layer's tokens by hand, block after block."""
    images, tokens = inputs(VIT)
    text = [model.token_embedding(tokens) + model.positional_embedding[: tokens.shape[1]]]
    for block in model.transformer.resblocks:
        text.append(block(text[-1]))
    visual = model.visual
    patches = visual.conv1(images).flatten(2).transpose(1, 2)
    patches = torch.cat([visual.class_embedding.expand(len(images), 1, -1), patches], dim=1)
    image = [visual.ln_pre(patches + visual.positional_embedding)]
    for block in visual.transformer.resblocks:
        image.append(block(image[-1]))
    return text, image


LAYERS = {"last": -1, "penultimate": -2, 0: 0, 1: 1, 2: 2, -1: -1, -3: -3}


@pytest.mark.parametrize(("layer", "index"), LAYERS.items())
def test_layers_count_as_hidden_states(model, states, layer, index):
    images, tokens = inputs(VIT)
    text = model.encode_text_tokens(tokens, layer, final_norm=False)
    image = model.encode_image_tokens(images, layer, final_norm=False)
    torch.testing.assert_close(text, states[0][index])
    torch.testing.assert_close(image, states[1][index])


def test_norm_and_projection_are_chosen(model, states):
    images, tokens = inputs(VIT)
    normed = model.ln_final(states[0][-2])
    torch.testing.assert_close(model.encode_text_tokens(tokens, "penultimate"), normed)
    projected = model.encode_text_tokens(tokens, "penultimate", projected=True)
    torch.testing.assert_close(projected, normed @ model.text_projection)
    bare = model.encode_image_tokens(images, final_norm=False, projected=True)
    torch.testing.assert_close(bare, states[1][-1] @ model.visual.proj)


def test_pooled_outputs_are_among_the_projected_tokens(model):
    images, tokens = inputs(VIT)
    end = tokens.argmax(dim=1)
    text = model.encode_text_tokens(tokens, projected=True)[torch.arange(len(tokens)), end]
    torch.testing.assert_close(text, model.encode_text(tokens))
    torch.testing.assert_close(
        model.encode_image_tokens(images, projected=True)[:, 0], model.encode_image(images)
    )


@pytest.mark.parametrize("layer", [3, -4, "first", 1.0, True])
def test_layers_that_are_not_there_are_named(model, layer):
    with pytest.raises(ValueError, match="layer must be 'last', 'penultimate' or an int from -3 to 2"):
        model.encode_text_tokens(inputs(VIT)[1], layer)


def test_resnet_gives_its_last_map():
    model, images = make(RESNET), inputs(RESNET)[0]
    tokens = model.encode_image_tokens(images)
    assert tokens.shape == (3, 4, 256)
    pooled = model.visual.attnpool(tokens.transpose(1, 2).reshape(3, 256, 2, 2))
    torch.testing.assert_close(pooled, model.encode_image(images))
    for wrong in ({"layer": "penultimate"}, {"projected": True}):
        with pytest.raises(ValueError, match="a ResNet's tokens are the last map's"):
            model.encode_image_tokens(images, **wrong)
