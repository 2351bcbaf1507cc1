"""The commands, at sizes where nothing takes long: what they print, write and refuse."""

from __future__ import annotations

import json
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path

import pytest
import torch

from benchmarks import __main__ as program
from benchmarks import loss, peers, probe
from benchmarks.cases import Case
from benchmarks.contenders import Contender, contender
from benchmarks.probe import Outcome
from benchmarks.report import Row, duration, percent, size, table

SMALL = ["-n", "24", "40", "--seconds", "0", "--device", "cpu", "--only", "fastclip reference", "torch"]


@pytest.fixture
def in_process(monkeypatch: pytest.MonkeyPatch) -> None:
    """Try contenders without a process each, but with their answers."""

    def answer(who: Contender, cases: list[Case], *, patience: float) -> list[Outcome]:
        return [Outcome(memory=case.n * 1000, seconds=0.01) for case in cases]

    monkeypatch.setattr(loss, "probe", answer)


@pytest.mark.usefixtures("in_process")
def test_loss_prints_and_writes(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert program.main(["loss", *SMALL, "-d", "16", "--output", str(tmp_path)]) == 0
    said = capsys.readouterr()
    assert "softmax, N = 24, D = 16, float32: matmul alone" in said.out
    assert "fastclip reference" in said.out
    document = json.loads((tmp_path / "loss-cpu-custom.json").read_text())
    assert document["command"].startswith("python -m benchmarks loss -n 24 40")
    assert str(tmp_path) not in document["command"]  # results travel; folders do not
    assert {"date", "cpu", "versions", "load_average"} <= set(document)
    rows = {(row["contender"], row["n"]): row for row in document["rows"]}
    assert set(rows) == {(c, n) for c in ("matmul", "fastclip reference", "torch") for n in (24, 40)}
    ours = rows["fastclip reference", 40]
    assert ours["memory"] == 40_000 and ours["memory_share"] == 1.0 and ours["turns"] == 3
    assert ours["seconds"] > 0 and ours["speedup"] > 0 and ours["floor_share"] > 0
    pytest.importorskip("matplotlib")
    chart = tmp_path / "loss-cpu-custom-softmax-float32-d16.png"
    assert chart.read_bytes().startswith(b"\x89PNG")
    chart.unlink()
    assert program.main(["chart", str(tmp_path / "loss-cpu-custom.json")]) == 0
    assert chart.exists()


@pytest.mark.usefixtures("in_process")
def test_peers_measures_errors(tmp_path: Path) -> None:
    options = [*SMALL, "Inf-CL", "-d", "16", "--objective", "softmax", "--output", str(tmp_path)]
    assert program.main(["peers", *options]) == 0
    rows = json.loads((tmp_path / "peers-cpu.json").read_text())["rows"]
    for row in rows:
        if row["contender"] in ("torch", "fastclip reference"):
            assert set(row["errors"]) == {"loss", "dx", "dy", "dscale"}
            assert all(error < 1e-5 for error in row["errors"].values())
    assert {row["failure"] for row in rows if row["contender"] == "Inf-CL"} == {"needs CUDA"}


def test_peers_oracle_is_the_formula() -> None:
    case = Case("sigmoid", 20, 8)
    assert peers.Oracle().errors(contender("torch"), case)["dx"] < 1e-5
    assert peers.Oracle().errors(contender("torch"), case.of_size(10**6)) is None


def test_a_process_of_its_own_measures_memory_and_loses_patience() -> None:
    cases = [Case("softmax", n, 64) for n in (1024, 4096)]
    first, second = probe.probe(contender("torch"), cases, patience=0.0)
    assert first.failure is None and first.seconds is not None
    if sys.platform.startswith("linux"):  # several matrices of 4 MiB
        assert first.memory is not None and 8 * 2**20 < first.memory < 64 * 2**20
    assert second.failure is not None and second.failure.startswith("not tried: about")


def test_what_cannot_run_is_not_started() -> None:
    outcomes = probe.probe(contender("memeff"), [Case("softmax", 8, 8)] * 2, patience=1.0)
    assert outcomes == [Outcome(failure="needs CUDA")] * 2


@pytest.mark.parametrize(
    ("status", "stderr", "reason"),
    [
        (-9, "", "killed by the system: out of memory"),
        (-11, "", "died of SIGSEGV"),
        (1, "Traceback\nRuntimeError: broken\n", "RuntimeError: broken"),
        (3, "", "ended with status 3"),
    ],
)
def test_how_a_process_ended(status: int, stderr: str, reason: str) -> None:
    assert probe._reason(subprocess.CompletedProcess([], status, "", stderr)) == reason


def test_every_command_is_there() -> None:
    assert {module for module, _ in program.COMMANDS.values() if find_spec(module) is None} == set()


def test_help_lists_the_commands(capsys: pytest.CaptureFixture[str]) -> None:
    assert program.main(["--help"]) == 0
    listed = capsys.readouterr().out.split()
    assert set(program.COMMANDS) <= set(listed)


def test_an_unknown_command_is_refused(capsys: pytest.CaptureFixture[str]) -> None:
    assert program.main(["lost"]) == 2
    assert "no benchmark is called 'lost'; there are loss" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("arguments", "complaint"),
    [
        (["--only", "tensorflow"], "no contender is called 'tensorflow'"),
        (["--suite", "huge"], "invalid choice: 'huge'"),
        (["--colour"], "unrecognized arguments: --colour"),
    ],
)
def test_loss_refuses(arguments: list[str], complaint: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        program.main(arguments)
    assert complaint in capsys.readouterr().err


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_a_gpu_that_is_not_there_is_refused() -> None:
    with pytest.raises(SystemExit, match="this torch sees no GPU"):
        program.main(["loss", "--device", "cuda"])


def test_a_row_without_numbers_says_why() -> None:
    case = Case("softmax", 8, 8)
    text = table(
        [Row(case, "torch", 1.5, 0.02, 3, 0.5, 1.0, 2**30, 1.0), Row(case, "other", failure="needs CUDA")]
    )
    assert "1.50 s  2.0 %       50 %     1.00   1.00 GiB     100 %" in text
    assert text.splitlines()[-1].split() == ["other", "–", "needs", "CUDA"]


def test_units() -> None:
    assert [duration(t) for t in (12.34, 0.01234, 1.2e-5, None)] == ["12.3 s", "12.3 ms", "12.0 µs", "–"]
    assert [size(n) for n in (3 * 2**30, 12.5 * 2**20, None)] == ["3.00 GiB", "12.5 MiB", "–"]
    assert [percent(share) for share in (1.234, 0.071, None)] == ["123 %", "7.1 %", "–"]
