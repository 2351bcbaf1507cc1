"""The GPU command on machines without one: its checks on the CPU backends, and its order: right first, then fast."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

import fastclip
from benchmarks import __main__ as program
from benchmarks import accuracy, gpu, gpu_checks, loss, measure, oracle, throughput
from benchmarks.cases import Case, Inputs, Series
from benchmarks.contenders import Contender, Loss, step
from benchmarks.oracle import QUESTIONS, Finding, Question, solved
from benchmarks.report import Row
from tests.places import COMPILED_BACKENDS

pytestmark = pytest.mark.usefixtures("one_thread")

BACKEND = COMPILED_BACKENDS[0]


def small(question: Question) -> Question:
    """Return a question of the same kind that takes no time."""
    m, n = (150, 150) if question.m == question.n else (140, 300)
    return replace(question, m=m, n=n, d=32, diagonal=min(question.diagonal, n - m))


@pytest.mark.parametrize("question", QUESTIONS, ids=lambda q: q.label)
def test_what_is_right_passes(question: Question, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(oracle, "RUN", 16)  # a sample, not all
    findings = solved(small(question), "cpu", BACKEND)
    assert {f.name for f in findings} == {
        *("loss", "dscale", "dx, worst row", "dx, whole", "dy, worst row", "dy, whole")
    }
    assert [f for f in findings if not f.passed] == []


@pytest.mark.parametrize("question", [QUESTIONS[0], QUESTIONS[3], QUESTIONS[6]], ids=lambda q: q.label)
def test_what_is_wrong_by_a_hundredth_does_not(question: Question, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("clip_loss", "siglip_loss"):
        right = getattr(fastclip, name)
        monkeypatch.setattr(fastclip, name, lambda *a, right=right, **k: 1.01 * right(*a, **k))
    broken = {f.name for f in solved(small(question), "cpu", BACKEND) if not f.passed}
    assert {"loss", "dx, whole", "dy, whole", "dscale"} <= broken | {"dscale" if question.scale < 11 else ""}


def test_one_wrong_row_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    right = fastclip.clip_loss

    def wrong(x: torch.Tensor, *args: object, **kwargs: object) -> torch.Tensor:
        kept = x.new_ones(len(x), 1)
        kept[7] = 0
        return right(x * kept + (x * (1 - kept)).detach(), *args, **kwargs)

    monkeypatch.setattr(fastclip, "clip_loss", wrong)
    broken = {f.name for f in solved(small(QUESTIONS[0]), "cpu", BACKEND) if not f.passed}
    assert broken >= {"dx, worst row"} and not broken & {"loss", "dy, whole", "dy, worst row"}


def test_samples_reach_from_first_to_last() -> None:
    assert oracle._runs(100) == [slice(0, 100)]
    runs = oracle._runs(65536)
    assert (runs[0].start, runs[-1].stop, len(runs)) == (0, 65536, 4)
    assert all(run.stop - run.start == 64 for run in runs)


def test_nan_passes_nothing() -> None:
    assert not Finding("loss", float("nan")).passed
    assert not Finding("loss", 1.01).passed
    assert Finding("loss", 1.0).passed


def test_the_memory_bound_is_the_issues() -> None:
    case = Case("softmax", 2**20, 512, torch.bfloat16, "cuda")
    gib = 2**30
    assert gpu_checks.memory_bound(case) == 2 * gib + 2 * gib + 2 * gib + 768 * 2**20


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_distillation_is_held_against_float64(dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch) -> None:
    case, who = Case("softmax", 40, 16, dtype), f"fastclip {BACKEND}"
    assert all(finding.passed for finding in gpu_checks.distilled(case, who))
    right = fastclip.distill_loss

    def wrong(*args: Any, backend: str, **options: Any) -> torch.Tensor:
        return right(*args, backend=backend, **options) * (1 if backend == "reference" else 1.02)

    monkeypatch.setattr(fastclip, "distill_loss", wrong)
    assert not any(finding.passed for finding in gpu_checks.distilled(case, who))


# The command.


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_without_a_gpu_nothing_is_done(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert program.main(["gpu", "--output", str(tmp_path)]) == 2
    assert "this torch sees no GPU" in capsys.readouterr().err
    assert list(tmp_path.iterdir()) == []


@pytest.fixture
def calls(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Pretend that there is a GPU, and that all is right and fast."""
    called: list[str] = []
    case = Case("softmax", 32768, 512, torch.bfloat16, "cuda")

    def recorded(name: str, answer: object) -> object:
        def function(*args: object, **kwargs: object) -> object:
            called.append(name)
            return answer

        return function

    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(accuracy, "main", recorded("regimes", 0))
    monkeypatch.setattr(gpu, "check", recorded("check", [("clip: loss", Finding("loss", 0.5))]))
    monkeypatch.setattr(gpu, "timed", recorded("timed", [Row(case, gpu.OURS, 0.007, 0.0, 5, 0.8)]))
    monkeypatch.setattr(gpu, "small", recorded("small", []))
    monkeypatch.setattr(gpu, "million", recorded("million", []))
    monkeypatch.setattr(throughput, "on_gpu", recorded("throughput", 0))
    return called


def test_right_first_then_fast(calls: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert gpu.main(["--output", str(tmp_path)]) == 0
    assert calls == ["regimes", "check", "timed", "small", "million", "throughput"]
    document = json.loads((tmp_path / "gpu.json").read_text())
    assert document["checks"] == [{"what": "clip: loss", "share_of_bound": 0.5, "passed": True}]
    assert document["rows"][0]["seconds"] == 0.007
    assert "80 % of the matmul rate; goal 75% on an H100: reached" in capsys.readouterr().out


@pytest.mark.parametrize("wrong", ["regimes", "check"])
def test_nothing_wrong_is_timed(
    calls: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, wrong: str
) -> None:
    if wrong == "regimes":
        monkeypatch.setattr(accuracy, "main", lambda arguments: 1)
    else:
        monkeypatch.setattr(
            gpu,
            "check",
            lambda questions, clock, keep: [("clip: dx, whole", Finding("dx, whole", float("nan")))],
        )
    assert gpu.main(["--output", str(tmp_path)]) == 1
    assert not {"timed", "small", "million"} & set(calls)
    assert json.loads((tmp_path / "gpu.json").read_text())["rows"] == []


def test_all_that_has_a_goal_gets_a_verdict() -> None:
    bf16 = Case("softmax", 32768, 512, torch.bfloat16, "cuda")
    rows = [
        Row(bf16, gpu.OURS, 0.010, 0.0, 5, 0.8),
        Row(bf16.of_size(65536), gpu.OURS, 0.041, 0.0, 5, 0.7),
        Row(bf16.of_size(2**20), gpu.OURS, 0.010 * 32**2 * 1.2, 0.0, 1, 0.6),
        Row(replace(bf16, dtype=torch.float32), gpu.OURS, 0.030, 0.0, 5, 0.8),
        Row(bf16, "memeff", 0.020, 0.0, 5),
        Row(bf16, "Inf-CL", 0.200, 0.0, 5),
        Row(bf16, "open_clip", failure="out of memory"),
    ]
    assert gpu.goals(rows) == [
        "softmax, N = 32,768, D = 512, bfloat16: 80 % of the matmul rate; goal 75% on an H100: reached",
        "softmax, N = 65,536, D = 512, bfloat16: 70 % of the matmul rate; goal 75% on an H100: NOT reached",
        "softmax, N = 32,768, D = 512, float32: 3.00x bfloat16's time; goal at most 3.2x: reached",
        "softmax, N = 32,768, D = 512, bfloat16: 2.0x as fast as memeff; goal 2.5x: NOT reached",
        "softmax, N = 32,768, D = 512, bfloat16: 20.0x as fast as Inf-CL; goal 10x: reached",
        "time per N², N = 32,768, 65,536, 1,048,576: within 20%; goal 10%: NOT reached",
    ]
    share = {"model": "ViT-B-32", "batch": 4096, "loss_share": 0.04}
    assert throughput.goals([share, {"failure": "out of memory"}]) == [
        "ViT-B-32, batch 4,096: 4.0 % of the step in the loss; goal below 3.0 %: NOT reached"
    ]


def test_training_steps_that_do_not_fit_the_time_are_left_out() -> None:
    rows = list(throughput.measured(left=lambda: 1.0))
    assert [row["failure"] for row in rows] == ["left out for want of time"] * len(throughput.BATCHES)


def test_checks_that_do_not_fit_the_time_are_left_out(capsys: pytest.CaptureFixture[str]) -> None:
    assert gpu.check(QUESTIONS, gpu.Clock.of(0.1), 60) == []
    assert f"left out for want of time: {QUESTIONS[0].label}" in capsys.readouterr().err


def test_a_check_that_cannot_run_is_broken(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def fail(*args: object) -> list[Finding]:
        raise RuntimeError("an illegal memory access")

    monkeypatch.setattr(oracle, "solved", fail)
    for name in ("repeatable", "labelled", "unsynced", "replayed", "bounded", "distilled"):
        monkeypatch.setattr(gpu_checks, name, fail)
    checks = gpu.check(QUESTIONS)
    assert len(checks) == len(QUESTIONS) + 8
    assert not any(finding.passed for _, finding in checks)
    assert "BROKEN  clip, N = 4,096" in capsys.readouterr().out


def test_what_does_not_fit_the_time_is_left_out(capsys: pytest.CaptureFixture[str]) -> None:
    assert list(gpu.Clock.of(1).while_time([1, 2], 30, str)) == [1, 2]
    assert list(gpu.Clock.of(0.1).while_time([1, 2], 30, str)) == []
    assert "left out for want of time: 1" in capsys.readouterr().err


def test_the_quick_run_asks_for_every_kind_at_the_largest_size_too() -> None:
    assert {q.features for q in gpu.QUICK_QUESTIONS} == {"pairs", "far", "fitted"}
    assert {q.objective for q in gpu.QUICK_QUESTIONS} == {"clip", "siglip"}
    assert max(q.n for q in gpu.QUICK_QUESTIONS) == 65536


def test_every_regime_of_the_quick_run_exists() -> None:
    assert set(gpu.QUICK_REGIMES) <= {name for _, name in accuracy.CASES}


@pytest.fixture
def pretended(monkeypatch: pytest.MonkeyPatch) -> None:
    """Run what a GPU would on the CPU: another backend, other clocks, and steps where graphs would be replayed."""

    def on_cpu(objective: str, n: int, d: int, dtype: torch.dtype, device: str) -> Case:
        return Case(objective, n, 16, dtype, "cpu")

    def stepping(loss: Loss, inputs: Inputs) -> object:
        return lambda: step(loss, inputs)

    monkeypatch.setattr(gpu, "Case", on_cpu)
    monkeypatch.setattr(gpu, "OURS", f"fastclip {BACKEND}")
    monkeypatch.setattr(gpu, "SMALL", (24, 40))
    monkeypatch.setattr(gpu, "SMALL_SECONDS", 0.0)
    monkeypatch.setattr(gpu_checks, "captured", stepping)
    monkeypatch.setattr(measure, "_cuda_seconds", measure._cpu_seconds)


@pytest.mark.usefixtures("pretended")
def test_small_batches_beside_plain_torch(monkeypatch: pytest.MonkeyPatch) -> None:
    rows = gpu.small(gpu.Clock.of(5))
    names = (gpu.OURS, f"{gpu.OURS}, CUDA graph", "torch", "torch, CUDA graph")
    assert {(row.contender, row.case.n) for row in rows} == {(name, n) for name in names for n in (24, 40)}
    assert all(row.seconds and row.speedup and row.failure is None for row in rows)

    def failing(loss: object, inputs: object) -> object:
        raise RuntimeError("operation not permitted when stream is capturing")

    monkeypatch.setattr(gpu_checks, "captured", failing)
    failed = {row.contender for row in gpu.small(gpu.Clock.of(5)) if row.failure is not None}
    assert failed == {f"{gpu.OURS}, CUDA graph", "torch, CUDA graph"}
    assert gpu.small(gpu.Clock.of(0.1)) == []


@pytest.mark.usefixtures("pretended")
def test_series_beside_the_peers(monkeypatch: pytest.MonkeyPatch) -> None:
    asked = []

    def measured(series: Series, device: str, who: list[Contender], **options: float) -> list[Row]:
        asked.append((series, [c.name for c in who]))
        return [Row(case, gpu.OURS, 1.0) for case in series.cases(device)]

    monkeypatch.setattr(loss, "measure_series", measured)
    rows = list(gpu.timed(gpu.SERIES, gpu.Clock.of(5)))
    assert len(rows) == sum(len(series.sizes) for series in gpu.SERIES)
    assert asked[0][1] == [gpu.OURS, *gpu.BESIDE]
    assert list(gpu.timed(gpu.SERIES, gpu.Clock.of(1))) == []


@pytest.mark.usefixtures("pretended")
def test_replays_are_compared_with_steps(monkeypatch: pytest.MonkeyPatch) -> None:
    case = Case("softmax", 24, 16)

    def captured(loss: Loss, inputs: Inputs) -> object:
        def replay() -> torch.Tensor:
            inputs.clear_gradients()
            value = loss(*inputs)
            value.backward()
            return value.detach()

        return replay

    monkeypatch.setattr(gpu_checks, "captured", captured)
    assert all(f.passed for f in gpu_checks.replayed(case, gpu.OURS))
    assert all(f.passed for f in gpu_checks.repeatable(case, gpu.OURS))
    assert len(gpu_checks.labelled(case, gpu.OURS)) == 15
    assert all(f.passed for f in gpu_checks.labelled(case, gpu.OURS))
    # A graph that has not seen the new inputs.
    old = gpu_checks.contender(gpu.OURS).loss(case)(*case.inputs())
    monkeypatch.setattr(gpu_checks, "captured", lambda loss, inputs: lambda: (step(loss, inputs), old)[1])
    broken = [f.name for f in gpu_checks.replayed(case, gpu.OURS) if not f.passed]
    assert broken == ["CUDA graph, loss"]
