"""`fastclip.sentence_transformers` against sentence-transformers' own losses, on embeddings and on a tiny model."""

from __future__ import annotations

import copy
import itertools
import sys
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from tests.dropins.shapes import Shapes
from tests.dropins.steps import Step, compare, differences, model_step, step

pytest.importorskip("sentence_transformers")

import sentence_transformers
from sentence_transformers import util
from sentence_transformers.sentence_transformer import losses

import fastclip.sentence_transformers as ours
from tests.dropins import gathering

pytestmark = pytest.mark.usefixtures("one_thread")

DIRECTIONS = ("query_to_query", "doc_to_query", "doc_to_doc")
MODES = (None, "in_batch_negatives", "hard_negatives", "all_negatives")
CASES = [
    {"directions": ("query_to_doc", *more), "partition_mode": partition, "hardness_mode": mode}
    for count in range(4)
    for more in itertools.combinations(DIRECTIONS, count)
    for partition in ("joint", "per_direction")
    for mode in MODES
    if partition == "joint" or not {"query_to_query", "doc_to_doc"} & set(more)
]
#: As many as sentence-transformers has, or no test could be sure to have met the one that differs.
assert len(CASES) == 40


def embeddings(columns: int, batch: int = 33) -> Tensor:
    """Return float32 embeddings (columns, B, D): queries, positives, hard negatives."""
    return torch.randn(columns, batch, 24, generator=torch.Generator().manual_seed(0))


@pytest.fixture(scope="module")
def no_model() -> nn.Module:
    return sentence_transformers.SentenceTransformer(modules=[nn.Identity()], device="cpu")


def on_embeddings(loss: Any, given: Tensor, dtype: torch.dtype) -> Step:
    columns, batch, width = given.shape
    leaf = given.to(dtype).reshape(columns * batch, width).clone().requires_grad_()
    return step(
        lambda: loss.compute_loss_from_embeddings(list(leaf.chunk(columns)), None), {"embeddings": leaf}
    )


@pytest.mark.parametrize("columns", [2, 4], ids=["pairs", "hard negatives"])
@pytest.mark.parametrize("similarity", [util.cos_sim, util.dot_score])
@pytest.mark.parametrize("case", CASES, ids=lambda case: "-".join(map(str, case.values())))
def test_every_option_is_theirs(
    no_model: nn.Module, case: dict, similarity: Callable[..., Tensor], columns: int
) -> None:
    scale, strength = (20.0, 9.0) if similarity is util.cos_sim else (0.7, 0.3)
    options = {**case, "scale": scale, "hardness_strength": strength, "similarity_fct": similarity}
    their_loss = losses.MultipleNegativesRankingLoss(no_model, **options)
    our_loss = ours.MultipleNegativesRankingLoss(no_model, **options)
    given = embeddings(columns)
    largest = 1.0 if similarity is util.cos_sim else given.norm(dim=2).max().item() ** 2
    theirs, mine = partial(on_embeddings, their_loss, given), partial(on_embeddings, our_loss, given)
    assert compare(theirs, mine, (scale + strength) * largest, ["embeddings"]) == []


@pytest.mark.parametrize("directions", [("query_to_doc",), ("query_to_doc", *DIRECTIONS)])
def test_a_batch_of_one(no_model: nn.Module, directions: tuple[str, ...]) -> None:
    their_loss = losses.MultipleNegativesRankingLoss(no_model, directions=directions)
    our_loss = ours.MultipleNegativesRankingLoss(no_model, directions=directions)
    given = embeddings(3, batch=1)
    theirs, mine = (on_embeddings(loss, given, torch.float64) for loss in (their_loss, our_loss))
    assert differences(theirs, mine) == []


@pytest.mark.parametrize("directions", [("query_to_doc",), ("query_to_doc", *DIRECTIONS)])
def test_nothing_is_as_large_as_the_similarities(no_model: nn.Module, directions: tuple[str, ...]) -> None:
    seen = []
    for module in (losses, ours):
        loss = module.MultipleNegativesRankingLoss(no_model, directions=directions)
        with Shapes() as shapes:
            on_embeddings(loss, embeddings(2, batch=41), torch.float32)
        seen.append(shapes.seen)
    assert (41, 41) in seen[0]
    assert (41, 41) not in seen[1]


@pytest.mark.parametrize(
    "options", [{}, {"directions": ("query_to_doc", *DIRECTIONS)}], ids=["default", "all"]
)
def test_bfloat16_gradients_meet_before_they_are_rounded(no_model: nn.Module, options: dict) -> None:
    given = embeddings(3).bfloat16()
    loss = ours.MultipleNegativesRankingLoss(no_model, **options)
    exact, rounded = (on_embeddings(loss, given, dtype) for dtype in (torch.float64, torch.bfloat16))
    x = exact["embeddings"]
    assert (rounded["embeddings"] - x).norm() <= 4e-3 * x.norm()


# On a model


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> nn.Module:
    """Return a sentence-transformer with a BERT of one layer and a vocabulary of 40 words, random weights."""
    tokenizers = pytest.importorskip("tokenizers")
    import transformers

    folder = str(tmp_path_factory.mktemp("bert"))
    words = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *(f"w{i}" for i in range(35))]
    vocabulary = {word: i for i, word in enumerate(words)}
    tokenizer = tokenizers.Tokenizer(tokenizers.models.WordLevel(vocabulary, unk_token="[UNK]"))
    tokenizer.pre_tokenizer = tokenizers.pre_tokenizers.Whitespace()
    transformers.PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, pad_token="[PAD]", unk_token="[UNK]", model_max_length=16
    ).save_pretrained(folder)
    torch.manual_seed(0)
    config = transformers.BertConfig(
        vocab_size=len(words),
        hidden_size=32,
        num_hidden_layers=1,
        num_attention_heads=2,
        intermediate_size=64,
        max_position_embeddings=16,
    )
    transformers.BertModel(config).save_pretrained(folder)
    modules = sentence_transformers.sentence_transformer.modules
    transformer = modules.Transformer(folder)
    return sentence_transformers.SentenceTransformer(
        modules=[transformer, modules.Pooling(transformer.get_embedding_dimension())], device="cpu"
    ).eval()


def features(model: Any, columns: int, batch: int = 10) -> list[dict[str, Tensor]]:
    generator = torch.Generator().manual_seed(2)
    lengths = [[int(n) for n in torch.randint(2, 9, (batch,), generator=generator)] for _ in range(columns)]
    texts = [
        [" ".join(f"w{int(i)}" for i in torch.randint(0, 35, (n,), generator=generator)) for n in column]
        for column in lengths
    ]
    return [model.preprocess(column) for column in texts]


def on_model(make: Callable[[Any], nn.Module], model: Any, columns: int, dtype: torch.dtype) -> Step:
    model = copy.deepcopy(model).to(dtype)
    loss = make(model)
    return model_step(model, lambda: loss(features(model, columns), None))


@pytest.mark.parametrize("columns", [2, 3], ids=["pairs", "hard negatives"])
@pytest.mark.parametrize("directions", [("query_to_doc",), ("query_to_doc", *DIRECTIONS)])
def test_a_step_is_theirs(tiny: Any, directions: tuple[str, ...], columns: int) -> None:
    theirs, mine = (
        partial(on_model, partial(module.MultipleNegativesRankingLoss, directions=directions), tiny, columns)
        for module in (losses, ours)
    )
    assert compare(theirs, mine, 20.0) == []


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"directions": ("query_to_doc", "doc_to_query"), "partition_mode": "per_direction"},
        {
            "directions": ("query_to_doc", *DIRECTIONS),
            "hardness_mode": "all_negatives",
            "hardness_strength": 5.0,
        },
    ],
    ids=["default", "symmetric", "everything"],
)
def test_a_cached_step_is_theirs(tiny: Any, options: dict) -> None:
    grads = {}
    for name, module in (("theirs", losses), ("ours", ours)):
        model = copy.deepcopy(tiny).double().train()  # with dropout, which both draw alike
        loss_fn = module.CachedMultipleNegativesRankingLoss(model, mini_batch_size=4, **options)
        torch.manual_seed(3)
        loss = loss_fn(features(model, 3), None)
        loss.backward()
        grads[name] = {"loss": loss.detach()}
        grads[name] |= {n: p.grad for n, p in model.named_parameters() if p.grad is not None}
    assert differences(grads["theirs"], grads["ours"]) == []
    assert grads["theirs"].keys() == grads["ours"].keys()


def test_a_cached_loss_without_gradients_is_theirs(tiny: Any) -> None:
    with torch.no_grad():
        values = [
            module.CachedMultipleNegativesRankingLoss(tiny, mini_batch_size=4)(features(tiny, 2), None)
            for module in (losses, ours)
        ]
    torch.testing.assert_close(*values)


@pytest.mark.parametrize("name", ours.__all__)
def test_the_model_card_is_theirs(tiny: Any, name: str) -> None:
    options = {"scale": 30.0, "directions": ("query_to_doc", "doc_to_query")}
    their_loss, our_loss = (getattr(module, name)(tiny, **options) for module in (losses, ours))
    assert our_loss.get_config_dict() == their_loss.get_config_dict()
    assert our_loss.citation == their_loss.citation
    our_loss.scale = 5.0
    assert our_loss.get_config_dict()["scale"] == 5.0


@pytest.mark.slow
def test_gathering_is_theirs(tmp_path: Path) -> None:
    torch.multiprocessing.spawn(gathering.compare_gathered, args=(2, str(tmp_path / "store")), nprocs=2)


# Refusals


def manhattan(a: Tensor, b: Tensor) -> Tensor:
    return -torch.cdist(a, b, p=1)


@pytest.mark.parametrize("name", ours.__all__)
def test_other_similarities_are_refused(tiny: Any, name: str) -> None:
    with pytest.raises(ValueError, match=r"similarity_fct must be .* got manhattan"):
        getattr(ours, name)(tiny, similarity_fct=manhattan)


def test_one_column_is_refused(no_model: nn.Module) -> None:
    with pytest.raises(ValueError, match="at least 2"):
        ours.MultipleNegativesRankingLoss(no_model).compute_loss_from_embeddings(list(embeddings(1)), None)


def test_without_the_package_the_extra_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delitem(sys.modules, "fastclip.sentence_transformers")
    monkeypatch.setitem(sys.modules, "sentence_transformers", None)
    with pytest.raises(ModuleNotFoundError, match=r"fastclip-kernels\[sentence-transformers\]"):
        import fastclip.sentence_transformers  # noqa: F401
