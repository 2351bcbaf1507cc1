"""The ranking loss with `gather_across_devices`, on several processes: run in each of them, theirs against ours."""

from __future__ import annotations

import torch
from torch import Tensor, nn

BATCH, WIDTH = 5, 12


def compare_gathered(rank: int, ranks: int, store: str) -> None:
    """Raise unless both losses and the gradients of this rank's embeddings agree in float64."""
    from sentence_transformers import SentenceTransformer
    from sentence_transformers.sentence_transformer import losses

    import fastclip.sentence_transformers as ours

    torch.set_num_threads(1)
    torch.distributed.init_process_group("gloo", init_method=f"file://{store}", rank=rank, world_size=ranks)
    try:
        model = SentenceTransformer(modules=[nn.Identity()], device="cpu")
        both = ("query_to_doc", "doc_to_query")
        for options in (
            {},
            {"directions": both, "partition_mode": "per_direction"},
            {"directions": (*both, "query_to_query", "doc_to_doc")},
            {"directions": both, "hardness_mode": "all_negatives", "hardness_strength": 9.0},
        ):
            theirs, mine = (
                module.MultipleNegativesRankingLoss(model, gather_across_devices=True, **options)
                for module in (losses, ours)
            )
            torch.testing.assert_close(_step(mine, rank), _step(theirs, rank), rtol=1e-10, atol=1e-12)
    finally:
        torch.distributed.destroy_process_group()


def _step(loss: nn.Module, rank: int) -> list[Tensor]:
    generator = torch.Generator().manual_seed(rank)
    columns = [torch.randn(BATCH, WIDTH, generator=generator, dtype=torch.float64) for _ in range(3)]
    value = loss.compute_loss_from_embeddings([c.requires_grad_() for c in columns], None)  # type: ignore[operator]
    value.backward()
    return [value.detach(), *(column.grad for column in columns)]  # type: ignore[list-item]
