"""All who are measured compute the same loss and the same gradients, or say why they cannot run."""

from __future__ import annotations

import importlib.util

import pytest
import torch

from benchmarks import baselines
from benchmarks.cases import OBJECTIVES, SUITES, Case
from benchmarks.contenders import CONTENDERS, PEERS, Contender, Unavailable, contender, contenders, fitting

RUNNABLE = [
    pytest.param(objective, who, id=f"{objective}-{who.name}", marks=pytest.mark.slow if who.compiles else ())
    for objective in OBJECTIVES
    for who in fitting(PEERS, objective, "cpu")
]


@pytest.mark.parametrize(("objective", "who"), RUNNABLE)
def test_loss_and_gradients_are_those_of_the_formula(
    objective: str, who: Contender, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(baselines, "CHUNK", 16)  # the loop's last chunk is ragged
    case = Case(objective, n=40, d=24)
    try:
        loss = who.loss(case)
    except Unavailable as reason:
        assert str(reason)
        pytest.skip(str(reason))
    inputs, wide = case.inputs(), case.inputs().double()
    ours = loss(*inputs)
    exact = (baselines.clip if objective == "softmax" else baselines.siglip)(*wide)
    ours.backward()
    exact.backward()
    torch.testing.assert_close(ours.double(), exact, rtol=1e-6, atol=0)
    for ours_in, wide_in in zip(inputs, wide, strict=True):
        if wide_in is not None:
            torch.testing.assert_close(ours_in.grad.double(), wide_in.grad, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("objective", OBJECTIVES)
def test_the_loop_takes_16_bit_features(objective: str, dtype: torch.dtype) -> None:
    case = Case(objective, n=24, d=16, dtype=dtype)
    inputs, wide = case.inputs(), case.inputs().double()
    contender("torch, chunked loop").loss(case)(*inputs).backward()
    (baselines.clip if objective == "softmax" else baselines.siglip)(*wide).backward()
    torch.testing.assert_close(
        inputs.text_features.grad.double(), wide.text_features.grad, rtol=0.1, atol=2e-3
    )


def test_a_package_that_is_not_there_is_named() -> None:
    if importlib.util.find_spec("open_clip") is not None:
        pytest.skip("open_clip is installed")
    with pytest.raises(Unavailable, match="pip install --no-deps open_clip_torch"):
        contender("open_clip").loss(Case("softmax", 8, 8))


@pytest.mark.parametrize("who", [who for who in PEERS if who not in CONTENDERS and not who.compiles])
def test_peers_say_that_they_need_cuda(who: Contender) -> None:
    with pytest.raises(Unavailable, match="CUDA"):
        who.loss(Case(who.objectives[0], 8, 8))


def test_a_matrix_that_does_not_fit_is_not_tried() -> None:
    with pytest.raises(Unavailable, match="GiB of memory"):
        contender("torch").loss(Case("softmax", 10**7, 8))


def test_contenders_are_chosen_by_name() -> None:
    assert [c.name for c in contenders(["torch"])] == ["torch"]
    assert {c.name for c in contenders(["torch,"])} < {c.name for c in CONTENDERS}
    with pytest.raises(ValueError, match="no contender is called 'tensorflow'; there are fastclip"):
        contenders(["tensorflow"])


def test_cases_survive_json_and_draw_equal_inputs() -> None:
    case = Case("sigmoid", 12, 8, torch.bfloat16)
    again = Case.from_dict(case.to_dict())
    assert again == case
    for first, second in zip(case.inputs(3), again.inputs(3), strict=True):
        assert first is not None and second is not None
        assert torch.equal(first, second)
    assert not torch.equal(case.inputs(0).image_features, case.inputs(1).image_features)


def test_suites_hold_cases() -> None:
    for suite in SUITES.values():
        for series in suite:
            assert [case.n for case in series.cases("cpu")] == sorted(series.sizes)
