"""The driver: blocks and workspaces change nothing, blocks merge, and the similarity matrix is never there."""

from __future__ import annotations

import gc
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

import fastclip
from fastclip import blockwise
from fastclip.backends import Block, Problem, get_backend
from fastclip.objectives import Objective, Sums
from tests.formulas import NAMES, fused, run
from tests.places import BACKENDS, COMPILED_BACKENDS, CPU_BACKENDS
from tests.regimes import judge, random, unit

pytestmark = pytest.mark.usefixtures("one_thread", "poisoned_memory")

KEEPING = [name for name in CPU_BACKENDS if get_backend(name).keeps_products]


@contextmanager
def block_shape(backend: str, rows: int, cols: int) -> Iterator[None]:
    """Make a backend work in blocks of this shape."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(type(get_backend(backend)), "block_shape", lambda self, m, n: (rows, cols))
        yield


@pytest.mark.parametrize("shape", [(7, 13), (64, 5), (5, 512), (37, 131), (36, 130)])
@pytest.mark.parametrize(
    ("objective", "name"),
    [
        ("clip", "M < N, positives inside"),
        ("siglip", "M < N, positives last"),
        ("clip", "labels, M < N"),
        ("siglip_multi", "labels, M < N"),
        ("info_nce", "one row"),
        ("clip", "two clusters"),
        ("clip", "fits, margin 12"),
    ],
)
@pytest.mark.parametrize("backend", COMPILED_BACKENDS)
def test_any_block_shape(backend: str, objective: str, name: str, shape: tuple[int, int]) -> None:
    judged = judge(objective, name, torch.float32)
    with block_shape(backend, *shape):
        assert judged.violations(judged.run(fused(backend))) == []


@pytest.mark.parametrize("backend", COMPILED_BACKENDS)
def test_blocks_of_one_entry(backend: str) -> None:
    judged = judge("clip", "zero vectors", torch.float32)
    with block_shape(backend, 1, 1):
        assert judged.violations(judged.run(fused(backend))) == []


@pytest.mark.parametrize("backend", [backend for backend in BACKENDS if backend not in COMPILED_BACKENDS])
def test_any_block_shape_on_triton(backend: str) -> None:
    judged = judge("clip", "M < N, positives inside", torch.float32)
    with block_shape(backend, 32, 128):
        assert judged.violations(judged.run(fused(backend))) == []


@pytest.mark.parametrize(
    ("m", "n", "shape"), [(1, 1, (4, 4)), (10, 7, (3, 3)), (8, 8, (4, 8)), (5, 9, (100, 2))]
)
def test_blocks_cover_every_entry_once(m: int, n: int, shape: tuple[int, int]) -> None:
    covered = torch.zeros(m, n, dtype=torch.int64)
    with block_shape("reference", *shape):
        for block in blockwise.blocks(get_backend("reference"), m, n):
            covered[block.rows, block.cols] += 1
            assert block.shape == covered[block.rows, block.cols].shape
            assert max(block.shape) <= max(shape)
    assert (covered == 1).all()


# The workspace


@pytest.mark.parametrize("objective", ["clip", "siglip", "clip_multi", "siglip_multi", "info_nce"])
@pytest.mark.parametrize("backend", BACKENDS)
def test_the_workspace_changes_no_bit(backend: str, objective: str) -> None:
    """None, part, all of the products kept: the same numbers to the last bit."""
    judged = judge(objective, "labels, M < N", torch.float32)
    products = 30 * 71 * 4 / 2**20  # MiB
    with block_shape(backend, *((32, 128) if backend == "triton" else (8, 16))):
        expected = judged.run(fused(backend, workspace=0))
        for workspace in (products / 10, products / 2, products, 10 * products, None):
            result = judged.run(fused(backend, workspace=workspace))
            for name in NAMES:
                ours, theirs = getattr(result, name), getattr(expected, name)
                assert ours is theirs is None or torch.equal(ours, theirs), f"{name}, {workspace} MiB"


@pytest.mark.parametrize("backend", KEEPING)
def test_whole_blocks_are_kept_while_they_fit(backend: str) -> None:
    """The products of the first blocks stay, and only those: a block is kept whole or not at all."""
    x, y = unit(20, 8, 1).float(), unit(24, 8, 2).float()
    runner = get_backend(backend)
    with block_shape(backend, 10, 8):
        problem = pose(backend, x, y)
        kept = blockwise.statistics(runner, problem, torch.float32, columns=True, keep=3 * 80 + 79).products
    assert kept.shape == (319,)
    s = x @ y.T
    for i, block in enumerate((s[:10, :8], s[:10, 8:16], s[:10, 16:])):
        torch.testing.assert_close(kept[80 * i : 80 * (i + 1)].view(10, 8), block)
    assert kept[240:].isnan().all(), "no part of a fourth block (the memory is poisoned, so untouched)"


@pytest.mark.parametrize("backend", KEEPING)
def test_kept_products_are_used(backend: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """With everything kept the backward pass multiplies features no more: two products a block instead of three."""
    x, y = unit(20, 8, 1).float().requires_grad_(), unit(24, 8, 2).float().requires_grad_()
    counts = {}
    for workspace in (0, 1):
        loss = fastclip.clip_loss(x, y, 10.0, workspace=workspace, backend=backend)
        with counting() as watch:
            loss.backward()
        counts[workspace] = watch.products
    assert counts[0] - counts[1] == 1


@pytest.mark.parametrize("backend", KEEPING)
def test_nothing_is_kept_without_a_backward_pass(backend: str) -> None:
    x, y = unit(200, 8, 1).float(), unit(200, 8, 2).float()
    for features, grad in ((x, True), (x.clone().requires_grad_(), False)):
        with torch.set_grad_enabled(grad), counting() as watch, block_shape(backend, 20, 20):
            fastclip.clip_loss(features, y, 10.0, backend=backend)
        assert watch.largest < 200 * 200 / 4


# Merging


def pose(backend: str, x: Tensor, y: Tensor, objective: Objective = Objective.SOFTMAX) -> Problem:
    scale = torch.tensor(20.0, dtype=x.dtype)
    return blockwise.pose(get_backend(backend), x, y, scale, None, None, objective, False, None)


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("cut", [1, 30, 63])
def test_two_column_blocks_are_one(backend: str, cut: int) -> None:
    """Statistics of [y1; y2] are the merged statistics of y1 and of y2: what blocks and ranks rely on."""
    x, y = unit(40, 8, 1).float(), unit(64, 8, 2).float()
    runner = get_backend(backend)

    def statistics(columns: Tensor) -> blockwise.Statistics:
        return blockwise.statistics(runner, pose(backend, x, columns), x.dtype, columns=True, keep=0)

    whole, first, second = statistics(y), statistics(y[:cut]), statistics(y[cut:])
    first.rows.merge_(second.rows.shift, second.rows.sum)
    torch.testing.assert_close(first.rows.log_sum_exp(), whole.rows.log_sum_exp(), rtol=1e-6, atol=1e-6)
    assert first.cols is not None and second.cols is not None and whole.cols is not None
    cols = torch.cat([first.cols.log_sum_exp(), second.cols.log_sum_exp()])
    torch.testing.assert_close(cols, whole.cols.log_sum_exp(), rtol=1e-6, atol=1e-6)


def test_merging_is_exact_and_stable() -> None:
    """Against torch.logsumexp: any order, any magnitude, with empty sums among them."""
    z = torch.tensor([[-1e4, 3.0, 80.0], [500.0, -500.0, 499.0]], dtype=torch.float64)
    for order in ([0, 1, 2], [2, 0, 1], [1, 2, 0]):
        sums = Sums.empty(2, torch.float64, z.device)
        assert sums.log_sum_exp().eq(-torch.inf).all()
        for column in order:
            empty = Sums.empty(2, torch.float64, z.device)
            sums.merge_(empty.shift, empty.sum)
            sums.merge_(z[:, column], torch.ones(2, dtype=torch.float64))
        torch.testing.assert_close(sums.log_sum_exp(), torch.logsumexp(z, dim=1))
        balanced = sums.balanced()
        torch.testing.assert_close(balanced.log_sum_exp(), torch.logsumexp(z, dim=1))
        margin = sums.margin(z[:, 0])
        torch.testing.assert_close(margin, torch.logsumexp(z, dim=1) - z[:, 0])


def test_a_balanced_pair_has_its_shift_near_its_logits() -> None:
    far = Sums(
        torch.tensor([40.0], dtype=torch.float64), torch.exp(torch.tensor([-79.3], dtype=torch.float64))
    )
    balanced = far.balanced()
    assert abs(balanced.shift.item() - (40 - 79.3)) <= 0.5
    torch.testing.assert_close(balanced.log_sum_exp(), far.log_sum_exp())


# Memory


@contextmanager
def counting() -> Iterator[_Counting]:
    """Watch everything that losses do, inside their ops too."""
    watch = _Counting()
    with pytest.MonkeyPatch.context() as patch, watch:
        for name in ("pose", "statistics", "values", "gradients"):
            patch.setattr(blockwise, name, watch.wrap(getattr(blockwise, name)))
        yield watch


class _Counting(TorchDispatchMode):
    """Watches every tensor operation: products made, and the largest memory allocated, in elements."""

    def __init__(self) -> None:
        super().__init__()
        self.products = 0
        self.largest = 0

    def wrap(self, function: Callable) -> Callable:
        """Watch inside a function too: a mode does not look into an op by itself."""

        def watched(*args: object, **kwargs: object) -> object:
            with self:
                return function(*args, **kwargs)

        return watched

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):  # type: ignore[no-untyped-def]
        result = func(*args, **(kwargs or {}))
        self.products += func.overloadpacket._qualified_op_name in ("aten::mm", "aten::addmm", "aten::addmm_")
        for tensor in result if isinstance(result, (tuple, list)) else (result,):
            if isinstance(tensor, Tensor):
                self.largest = max(self.largest, tensor.untyped_storage().nbytes() // tensor.element_size())
        return result


@pytest.mark.parametrize(
    "options",
    [{}, {"labels": True}, {"label_smoothing": 0.1}, {"labels": True, "multi_positive": True}],
    ids=str,
)
@pytest.mark.parametrize("normalize", [False, True])
@pytest.mark.parametrize("backend", COMPILED_BACKENDS)
def test_nothing_of_the_matrix_s_size_is_allocated(backend: str, normalize: bool, options: dict) -> None:
    """Every allocation of a loss and its backward pass, with options, stays at O((M + N) D) and one block."""
    m = n = 500
    x, y = unit(m, 8, 1).float().requires_grad_(), unit(n, 8, 2).float().requires_grad_()
    options = options | ({"labels": torch.arange(n) // 2} if "labels" in options else {})
    with block_shape(backend, 100, 100), counting() as watch:
        loss = fastclip.clip_loss(x, y, 10.0, workspace=0, normalize=normalize, backend=backend, **options)
        loss.backward()
    assert 100 * 100 <= watch.largest < 2 * 100 * 100


MEASURE = """
import sys, torch, fastclip
torch.set_num_threads(1)
n, dim = int(sys.argv[1]), 16
function = getattr(fastclip, sys.argv[2])
def peak():
    return next(int(l.split()[1]) for l in open("/proc/self/status") if l.startswith("VmHWM")) / 1024
def run(n):
    x, y = (torch.randn(n, dim).requires_grad_() for _ in range(2))
    function(x, y, 10.0, normalize=True, workspace=0, backend="cpu", logit_bias=-10.0).backward()
run(2100)
before = peak()
run(n)
print(peak() - before)
"""


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="reads the peak memory from Linux")
@pytest.mark.skipif("cpu" not in CPU_BACKENDS, reason="the C++ extension is not there")
@pytest.mark.parametrize("function", ["clip_loss", pytest.param("siglip_loss", marks=pytest.mark.slow)])
def test_measured_memory(function: str) -> None:
    """What the process really takes, C++ included: 8192 x 8192 floats would be 256 MiB."""
    done = subprocess.run(
        [sys.executable, "-c", MEASURE, "8192", function], capture_output=True, text=True, check=True
    )
    assert float(done.stdout) < 24


@pytest.mark.parametrize("backend", KEEPING)
def test_kept_products_die_with_their_graph(backend: str) -> None:
    """The workspace is never global: after the backward pass nothing of it is left."""
    x, y = unit(300, 8, 1).float().requires_grad_(), unit(300, 8, 2).float().requires_grad_()

    def large_tensors() -> int:
        gc.collect()
        return sum(type(t) is Tensor and t.numel() >= 300 * 300 for t in gc.get_objects())

    before = large_tensors()
    loss = fastclip.clip_loss(x, y, 10.0, backend=backend)
    loss.backward()
    del loss
    assert large_tensors() == before


def test_same_features_are_packed_once() -> None:
    x = unit(5, 8, 1).float()
    problem = pose("reference", x, x)
    assert problem.x is problem.y
    assert len(problem.x) == 5
    assert Block(slice(1, 3), slice(0, 5)).shape == (2, 5)


@pytest.mark.parametrize("backend", COMPILED_BACKENDS)
def test_a_contrastive_loss_of_a_view_with_itself(backend: str) -> None:
    """x and y may be the same tensor: both of its roles add to its gradient."""
    x = unit(12, 8, 1).float().requires_grad_()
    other = x.detach().clone().requires_grad_()
    fastclip.clip_loss(x, x, 10.0, backend=backend).backward()
    fastclip.clip_loss(other, other.clone(), 10.0, backend=backend).backward()
    torch.testing.assert_close(x.grad, other.grad)
    case = random(12, 12, 8)
    assert run(fused(backend), case, torch.float32).loss > 0
