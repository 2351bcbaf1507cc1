"""The last block read at one token: the same features and gradients as of all tokens, for less."""

from __future__ import annotations

import pytest
import torch

from fastclip.models.transformer import Transformer, token_at


@pytest.mark.parametrize("causal", [False, True])
@pytest.mark.parametrize("masked", [False, True])
@pytest.mark.parametrize("checkpointed", [False, True])
@pytest.mark.parametrize("layers", [0, 1, 3])
def test_reading_one_token_is_reading_all_and_taking_one(
    causal: bool, masked: bool, checkpointed: bool, layers: int
) -> None:
    torch.manual_seed(0)
    tower = Transformer(16, layers, 4, 2.0, "gelu", causal=causal).double()
    tower.grad_checkpointing = checkpointed
    x = torch.randn(5, 7, 16, dtype=torch.float64)
    at = torch.tensor([0, 6, 3, 3, 1])
    mask = None
    if masked:
        mask = torch.rand(5, 7) < 0.6
        mask[:, 0] = True  # somebody to look at, under a causal mask, too
    weight = torch.randn(5, 16, dtype=torch.float64)
    found = []
    for read in (lambda x: token_at(tower(x, mask), at), lambda x: tower.read(x, at, mask)):
        tower.zero_grad()
        given = x.clone().requires_grad_()
        out = read(given)
        (out * weight).sum().backward()
        found.append([out, given.grad, *(parameter.grad for parameter in tower.parameters())])
    for whole, one in zip(*found, strict=True):
        torch.testing.assert_close(one, whole, rtol=1e-10, atol=1e-12)


def test_the_last_block_computes_little_for_the_tokens_that_are_not_read() -> None:
    """Counted: of the last block's products keys and values are left, a sixth; of the attention one row."""
    from torch.utils.flop_counter import FlopCounterMode

    tower, x = Transformer(64, 1, 4, 4.0, "gelu"), torch.randn(2, 50, 64)
    counts = []
    for run in (lambda: tower(x), lambda: tower.read(x, torch.tensor([0, 9]))):
        with FlopCounterMode(display=False) as counter:
            run()
        counts.append(counter.get_total_flops())
    assert counts[1] < 0.2 * counts[0]
