"""Our text encoder in the place of transformers' and inside a diffusion pipeline: same call, same outputs."""

from __future__ import annotations

import copy
from dataclasses import replace

import pytest
import torch

from fastclip.models import TextEncoder, TextTower, load
from fastclip.models.vocabulary import write_vocabulary
from tests.models.tiny import SIGLIP, VIT, inputs, make, randomise

transformers = pytest.importorskip("transformers")

pytestmark = pytest.mark.usefixtures("one_thread")

TOKENS = inputs(VIT)[1]
CONFIG = dict(hidden_size=32, intermediate_size=64, num_hidden_layers=3, num_attention_heads=2, vocab_size=64,
              max_position_embeddings=12, bos_token_id=62, eos_token_id=63, pad_token_id=0,
              projection_dim=24)  # fmt: skip


def build(projection, **changes):
    name = "CLIPTextModelWithProjection" if projection else "CLIPTextModel"
    torch.manual_seed(0)
    return randomise(getattr(transformers, name)(transformers.CLIPTextConfig(**{**CONFIG, **changes})))


@pytest.fixture(scope="module", params=[False, True], ids=["CLIPTextModel", "WithProjection"])
def pair(request, tmp_path_factory):
    folder = tmp_path_factory.mktemp("theirs")
    theirs = build(request.param)
    theirs.save_pretrained(folder)
    return theirs, TextEncoder.from_pretrained(folder, projection=request.param)


def assert_same(ours, theirs):
    if isinstance(theirs, (tuple, list)):
        assert isinstance(ours, tuple) and len(ours) == len(theirs)
        for our, their in zip(ours, theirs, strict=True):
            assert_same(our, their)
    else:
        torch.testing.assert_close(ours, theirs, rtol=0, atol=1e-5)


MASK = torch.ones_like(TOKENS)
MASK[:, 8:] = 0
CALLS = {
    "plain": {},
    "hidden states": {"output_hidden_states": True},
    "mask": {"attention_mask": MASK},
    "no mask": {"attention_mask": None},
    "positions": {"position_ids": torch.arange(12).flip(0)[None]},
    "everything": {"attention_mask": MASK, "output_hidden_states": True},
}


@pytest.mark.parametrize("call", CALLS.values(), ids=CALLS)
@torch.no_grad()
def test_same_call_same_outputs(pair, call):
    theirs, ours = (model(TOKENS, **call) for model in pair)
    assert list(ours.keys()) == list(theirs.keys())
    for name in theirs:
        assert_same(getattr(ours, name), getattr(theirs, name))
        assert_same(ours[name], theirs[name])
    for key in (0, 1, -1, slice(None), slice(0, 2)):
        assert_same(ours[key], theirs[key])
    assert_same(ours.to_tuple(), theirs.to_tuple())
    assert ours.attentions is None and theirs.attentions is None
    assert len(ours) == len(theirs) and list(ours) == list(theirs)
    with pytest.raises(AttributeError):
        ours.logits  # noqa: B018
    assert_same(pair[1](TOKENS, **call, return_dict=False), pair[0](TOKENS, **call, return_dict=False))


def test_same_settings(pair):
    theirs, ours = pair
    for name in ("hidden_size", "num_hidden_layers", "num_attention_heads", "intermediate_size", "vocab_size",
                 "max_position_embeddings", "hidden_act", "eos_token_id", "model_type", "projection_dim"):  # fmt: skip
        if name != "projection_dim" or isinstance(theirs, transformers.CLIPTextModelWithProjection):
            assert getattr(ours.config, name) == getattr(theirs.config, name), name
    assert ours.config.to_dict()["hidden_size"] == 32
    assert not hasattr(ours.config, "use_attention_mask")
    assert (ours.dtype, ours.device) == (theirs.dtype, theirs.device)
    assert copy.deepcopy(ours).half().dtype == torch.float16
    assert torch.equal(ours.get_input_embeddings().weight, theirs.get_input_embeddings().weight)


def test_what_it_saves_is_theirs(pair, tmp_path):
    theirs, ours = pair
    ours.save_pretrained(tmp_path)
    again = type(theirs).from_pretrained(tmp_path).eval()
    with torch.no_grad():
        assert_same(again(TOKENS).to_tuple(), theirs(TOKENS).to_tuple())


def test_it_shares_the_weights_of_a_clip_and_leaves_the_pictures_out():
    model = make(VIT)
    encoder = TextEncoder(model, projection=True)
    assert type(encoder.tower) is TextTower
    assert not any("visual" in name for name in encoder.state_dict())
    assert encoder.tower.token_embedding.weight.data_ptr() == model.token_embedding.weight.data_ptr()
    output = encoder(TOKENS)
    torch.testing.assert_close(output.text_embeds, model.encode_text(TOKENS))
    torch.testing.assert_close(output.last_hidden_state, model.encode_text_tokens(TOKENS))
    torch.testing.assert_close(TextEncoder(model)(TOKENS).last_hidden_state, output.last_hidden_state)


def test_what_cannot_be_is_refused():
    with pytest.raises(ValueError, match="tower must be like CLIP's"):
        TextEncoder(make(SIGLIP))
    without = TextTower(replace(VIT.text_tower, text=replace(VIT.text, projection=False), embed_dim=32))
    with pytest.raises(ValueError, match="projection is True, but the tower has no projection"):
        TextEncoder(without, projection=True)
    with pytest.raises(ValueError, match="output_attentions must be False"):
        TextEncoder(without)(TOKENS, output_attentions=True)


@pytest.mark.slow
@pytest.mark.parametrize("clip_skip", [None, 1])
def test_a_pipeline_draws_the_same_picture(clip_skip, tmp_path):
    """Stable Diffusion, tiny and random, with either text encoder."""
    diffusers = pytest.importorskip("diffusers")
    write_vocabulary(tmp_path)
    tokenizer = transformers.CLIPTokenizer.from_pretrained(tmp_path)
    theirs = build(
        False, vocab_size=49408, max_position_embeddings=77, bos_token_id=49406, eos_token_id=49407
    )
    theirs.save_pretrained(tmp_path / "text_encoder")
    torch.manual_seed(0)
    unet = diffusers.UNet2DConditionModel(
        block_out_channels=(4, 8), layers_per_block=1, sample_size=8, in_channels=4, out_channels=4,
        down_block_types=("DownBlock2D", "CrossAttnDownBlock2D"), up_block_types=("CrossAttnUpBlock2D", "UpBlock2D"),
        cross_attention_dim=32, norm_num_groups=2, attention_head_dim=2,
    )  # fmt: skip
    vae = diffusers.AutoencoderKL(
        block_out_channels=(4, 8), down_block_types=("DownEncoderBlock2D",) * 2, norm_num_groups=2,
        up_block_types=("UpDecoderBlock2D",) * 2, latent_channels=4, sample_size=16,
    )  # fmt: skip

    scheduler = diffusers.DDIMScheduler(clip_sample=False, steps_offset=1)

    def draw(encoder):
        pipe = diffusers.StableDiffusionPipeline(
            vae=vae, text_encoder=encoder, tokenizer=tokenizer, unet=unet, scheduler=scheduler,
            safety_checker=None, feature_extractor=None, requires_safety_checker=False,
        )  # fmt: skip
        pipe.set_progress_bar_config(disable=True)
        return pipe("a photo of a cat", negative_prompt="blurry", num_inference_steps=2, output_type="pt", height=16,
                    width=16, clip_skip=clip_skip, generator=torch.Generator().manual_seed(0)).images  # fmt: skip

    # Where pipelines look for the final norm when they skip layers; transformers 5 has it no more.
    object.__setattr__(theirs, "text_model", theirs)
    ours = draw(TextEncoder.from_pretrained(tmp_path / "text_encoder"))
    torch.testing.assert_close(ours, draw(theirs), rtol=0, atol=1e-4)
    other = load(tmp_path / "text_encoder", towers="text").model
    with torch.no_grad():
        other.token_embedding.weight.mul_(-1)
    assert (ours - draw(TextEncoder(other))).abs().max() > 1e-3  # the picture does depend on the text
