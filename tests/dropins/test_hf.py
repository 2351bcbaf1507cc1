"""`fastclip.hf` against transformers' own CLIP models, tiny and with random weights."""

from __future__ import annotations

import copy
import inspect
import pickle
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import fastclip.hf
from tests.dropins.shapes import Shapes
from tests.dropins.steps import Step, compare, differences, model_step

transformers = pytest.importorskip("transformers")

pytestmark = pytest.mark.usefixtures("one_thread")

PAIRS, VOCABULARY, TOKENS = 9, 64, 12
TEXT = {
    "hidden_size": 32,
    "intermediate_size": 64,
    "num_hidden_layers": 1,
    "num_attention_heads": 2,
    "vocab_size": VOCABULARY,
    "max_position_embeddings": TOKENS,
    "bos_token_id": 1,
    "eos_token_id": VOCABULARY - 1,
    "pad_token_id": 0,
}
VISION = {
    "hidden_size": 32,
    "intermediate_size": 64,
    "num_hidden_layers": 1,
    "num_attention_heads": 2,
    "image_size": 32,
    "patch_size": 16,
}
#: transformers 4 makes CLIP's attention mask in a way that float64 does not survive.
VERSION = int(transformers.__version__.split(".")[0])


def clip() -> nn.Module:
    config = transformers.CLIPConfig(text_config=TEXT, vision_config=VISION, projection_dim=24)
    return transformers.CLIPModel(config)


def siglip() -> nn.Module:
    model = transformers.SiglipModel(transformers.SiglipConfig(text_config=TEXT, vision_config=VISION))
    with torch.no_grad():  # SigLIP's initial values; transformers draws them
        model.logit_scale.fill_(2.3)
        model.logit_bias.fill_(-10.0)
    return model


def siglip2() -> nn.Module:
    vision = {**VISION, "num_patches": 4}
    return transformers.Siglip2Model(transformers.Siglip2Config(text_config=TEXT, vision_config=vision))


def metaclip_2() -> nn.Module:
    config = transformers.MetaClip2Config(text_config=TEXT, vision_config=VISION, projection_dim=24)
    return transformers.MetaClip2Model(config)


def chinese_clip() -> nn.Module:
    config = transformers.ChineseCLIPConfig(text_config=TEXT, vision_config=VISION, projection_dim=24)
    return transformers.ChineseCLIPModel(config)


def build(make: Any) -> nn.Module:
    torch.manual_seed(0)
    return make().eval()


def batch(dtype: torch.dtype = torch.float32, model: Any = None, pairs: int = PAIRS) -> dict[str, Any]:
    generator = torch.Generator().manual_seed(1)
    tokens = torch.randint(2, VOCABULARY - 1, (pairs, TOKENS), generator=generator)
    tokens[:, -1] = VOCABULARY - 1
    images = torch.randn(pairs, 3, 32, 32, generator=generator).to(dtype)
    inputs = {"input_ids": tokens, "attention_mask": torch.ones_like(tokens), "return_loss": True}
    if model is not None and model.config.model_type == "siglip2":  # takes patches
        patches = images.unfold(2, 16, 16).unfold(3, 16, 16).permute(0, 2, 3, 4, 5, 1).reshape(pairs, 4, -1)
        shapes = torch.full((pairs, 2), 2)
        return {
            **inputs,
            "pixel_values": patches,
            "pixel_attention_mask": torch.ones(pairs, 4),
            "spatial_shapes": shapes,
        }
    return {**inputs, "pixel_values": images}


def one_step(model: nn.Module, dtype: torch.dtype, **more: Any) -> Step:
    model = copy.deepcopy(model).to(dtype)
    return model_step(model, lambda: model(**batch(dtype, model), **more).loss)


@pytest.mark.parametrize("make", [clip, siglip])
def test_a_step_is_theirs(make: Any) -> None:
    model = build(make)
    fused = fastclip.hf.fuse(copy.deepcopy(model))
    if VERSION < 5 and make is clip:
        pytest.skip("transformers 4's CLIPModel cannot run in float64")
    z_max = 14.3 if make is clip else 20.0
    found = compare(lambda dtype: one_step(model, dtype), lambda dtype: one_step(fused, dtype), z_max)
    assert found == []


@pytest.mark.parametrize("make", [siglip2, metaclip_2, chinese_clip])
def test_other_models_are_theirs(make: Any) -> None:
    if VERSION < 5:
        pytest.skip("of transformers 4 CLIP and SigLIP are supported")
    model = build(make)
    fused = fastclip.hf.fuse(copy.deepcopy(model))
    assert differences(one_step(model, torch.float64), one_step(fused, torch.float64)) == []


def test_outputs_are_theirs_without_logits() -> None:
    model = build(clip)
    theirs = model(**batch())
    fused = fastclip.hf.fuse(model)
    ours = fused(**batch())
    assert type(ours) is type(theirs)
    assert ours.logits_per_image is None and ours.logits_per_text is None
    torch.testing.assert_close(ours.image_embeds, theirs.image_embeds)
    torch.testing.assert_close(ours.text_embeds, theirs.text_embeds)
    torch.testing.assert_close(fused(**batch(), return_dict=False)[0], theirs.loss)
    positional = fused(batch()["input_ids"], batch()["pixel_values"], return_loss=True)
    torch.testing.assert_close(positional.loss, theirs.loss)


def test_nothing_is_as_large_as_the_logits() -> None:
    model, pairs = build(clip), 41
    with Shapes() as theirs:
        model(**batch(pairs=pairs)).loss.backward()
    with Shapes() as ours:
        fastclip.hf.fuse(model)(**batch(pairs=pairs)).loss.backward()
    assert (pairs, pairs) in theirs.seen
    assert (pairs, pairs) not in ours.seen


def test_without_a_loss_the_model_answers_as_ever() -> None:
    model = build(clip)
    inputs = {**batch(), "return_loss": None}
    theirs = model(**inputs)
    ours = fastclip.hf.fuse(model)(**inputs)
    assert ours.loss is None
    torch.testing.assert_close(ours.logits_per_image, theirs.logits_per_image)


def test_pairs_that_share_an_id_are_no_negatives() -> None:
    model = fastclip.hf.fuse(build(clip))
    ids = torch.arange(PAIRS) // 2
    out = model(**batch(), pair_ids=ids)
    z = model.logit_scale.exp() * out.image_embeds @ out.text_embeds.T
    shared = (ids[:, None] == ids) & ~torch.eye(PAIRS, dtype=torch.bool)
    z, target = z.masked_fill(shared, -torch.inf), torch.arange(PAIRS)
    expected = (F.cross_entropy(z, target) + F.cross_entropy(z.T, target)) / 2
    torch.testing.assert_close(out.loss, expected)


def test_a_fused_model_is_still_its_class(tmp_path: Path) -> None:
    fused = fastclip.hf.fuse(build(clip))
    assert isinstance(fused, transformers.CLIPModel)
    fused.save_pretrained(tmp_path)
    loaded = transformers.CLIPModel.from_pretrained(tmp_path)
    assert loaded.config.architectures == ["CLIPModel"]
    assert type(loaded) is transformers.CLIPModel
    for mine, theirs in zip(fused.parameters(), loaded.parameters(), strict=True):
        assert torch.equal(mine, theirs)
    wanted = set(inspect.signature(transformers.CLIPModel.forward).parameters)
    assert set(inspect.signature(type(fused).forward).parameters) == wanted | {"pair_ids"}


@pytest.mark.parametrize("duplicate", [copy.deepcopy, lambda model: pickle.loads(pickle.dumps(model))])
def test_copies_stay_fused(duplicate: Any) -> None:
    fused = fastclip.hf.fuse(build(clip))
    again = duplicate(fused)
    assert again(**batch()).logits_per_image is None
    assert torch.equal(again(**batch()).loss, fused(**batch()).loss)
    assert next(again.parameters()) is not next(fused.parameters())


def test_options_reach_the_loss() -> None:
    fused = fastclip.hf.fuse(build(clip), workspace=0, backend="reference")
    assert fused.fused_loss.keywords == {"normalize": True, "workspace": 0, "backend": "reference"}
    with pytest.raises(ValueError, match="nonesuch"):
        fastclip.hf.fuse(fused, backend="nonesuch")(**batch())


def test_it_compiles() -> None:
    fused = fastclip.hf.fuse(build(clip))
    compiled = torch.compile(fused, backend="eager", fullgraph=True)
    torch.testing.assert_close(compiled(**batch()).loss, fused(**batch()).loss)


def test_distributed_data_parallel_reduces_its_gradients(tmp_path: Path) -> None:
    fused = fastclip.hf.fuse(build(clip))
    fused(**batch()).loss.backward()
    expected = {name: parameter.grad.clone() for name, parameter in fused.named_parameters()}
    fused.zero_grad()
    torch.distributed.init_process_group("gloo", init_method=f"file://{tmp_path}/store", rank=0, world_size=1)
    try:
        nn.parallel.DistributedDataParallel(fused)(**batch()).loss.backward()
    finally:
        torch.distributed.destroy_process_group()
    for name, parameter in fused.named_parameters():
        torch.testing.assert_close(parameter.grad, expected[name])


# With Trainer


class _Samples(torch.utils.data.Dataset):
    def __init__(self) -> None:
        self.inputs = batch(pairs=16)

    def __len__(self) -> int:
        return 16

    def __getitem__(self, index: int) -> dict[str, Tensor]:
        names = ("input_ids", "attention_mask", "pixel_values")
        return {name: self.inputs[name][index] for name in names}


def _collate(samples: list[dict[str, Tensor]]) -> dict[str, Any]:
    return {**torch.utils.data.default_collate(samples), "return_loss": True}


def _train(trainer_class: type, model: nn.Module, folder: Path, collate: Any) -> tuple[nn.Module, dict]:
    arguments = transformers.TrainingArguments(
        output_dir=str(folder),
        per_device_train_batch_size=4,
        per_device_eval_batch_size=8,
        gradient_accumulation_steps=2,
        max_steps=2,
        optim="sgd",  # Adam makes steps of the rounding where a gradient is 0
        learning_rate=0.1,
        report_to=[],
        use_cpu=True,
        disable_tqdm=True,
        save_strategy="no",
        seed=0,
    )
    samples = _Samples()
    trainer = trainer_class(
        model=model, args=arguments, train_dataset=samples, eval_dataset=samples, data_collator=collate
    )
    trainer.train()
    return model, trainer.evaluate()


@pytest.fixture(scope="module")
def trained_on_their_loss(tmp_path_factory: pytest.TempPathFactory) -> tuple[nn.Module, dict]:
    pytest.importorskip("accelerate")
    return _train(transformers.Trainer, build(clip).train(), tmp_path_factory.mktemp("theirs"), _collate)


@pytest.mark.parametrize("with_mixin", [False, True], ids=["fused model", "mixin"])
def test_trainer_trains_as_on_their_loss(
    with_mixin: bool, trained_on_their_loss: tuple[nn.Module, dict], tmp_path: Path
) -> None:
    trainer, (theirs, their_report) = transformers.Trainer, trained_on_their_loss
    if with_mixin:
        mixed = type("Mixed", (fastclip.hf.ContrastiveTrainerMixin, trainer), {})
        ours, our_report = _train(mixed, build(clip).train(), tmp_path, torch.utils.data.default_collate)
    else:
        ours, our_report = _train(trainer, fastclip.hf.fuse(build(clip).train()), tmp_path, _collate)
    assert isinstance(ours, fastclip.hf._Fused)
    assert our_report["eval_loss"] == pytest.approx(their_report["eval_loss"], rel=1e-5)
    start = build(clip)
    for mine, their, before in zip(ours.parameters(), theirs.parameters(), start.parameters(), strict=True):
        moved = (their - before).abs().max().item()
        torch.testing.assert_close(mine, their, rtol=0, atol=1e-4 * moved + 1e-7)


def test_the_mixin_fuses_what_model_init_makes(tmp_path: Path) -> None:
    pytest.importorskip("accelerate")
    mixed = type("Mixed", (fastclip.hf.ContrastiveTrainerMixin, transformers.Trainer), {})
    arguments = transformers.TrainingArguments(output_dir=str(tmp_path), use_cpu=True, report_to=[])
    trainer = mixed(model_init=lambda: build(clip), args=arguments)
    assert isinstance(trainer.model, fastclip.hf._Fused)


# Refusals


class _OwnForward(transformers.CLIPModel):
    def forward(self, *args: Any, **kwargs: Any) -> Any:
        return super().forward(*args, **kwargs)


@pytest.mark.parametrize("model", [nn.Linear(2, 2), nn.DataParallel(nn.Linear(2, 2))])
def test_other_modules_are_refused(model: nn.Module) -> None:
    with pytest.raises(TypeError, match="two towers"):
        fastclip.hf.fuse(model)


def test_a_forward_of_ones_own_is_not_replaced() -> None:
    own = _OwnForward(clip().config)
    with pytest.raises(TypeError, match="_OwnForward has a forward pass of its own"):
        fastclip.hf.fuse(own)
