"""A loss over the shards of several ranks, exactly: what `group=` on the losses runs.

Every rank holds some pairs. Only texts (their features and labels) and gradients of texts move; each rank computes its
images against all texts, so that every logit is computed once over all ranks, in either pass.

    ranks        who takes part, and the check that all mean the same loss
    collectives  torch.distributed's, named, for shards of any size, counted
    exchange     the two ways texts get around: gather and ring
    driver       a rank's images against everybody's texts, piece by piece, on the blockwise driver
    strips       the same as a function that autograd knows
    distilling   the strip of a student against that of its teacher
    sums         sums over ranks, and the terms that are linear in the logits

What comes back: with reduction "mean" or "sum" the loss of the whole batch, the same number on every rank; with "none"
the values of this rank's own pairs. What the gradients are: those of features belong to the sum over ranks of what is
back-propagated, so R ranks that all back-propagate the whole batch's mean get R times its gradient, and averaging
parameters' gradients over the R ranks, as DDP and FSDP do, leaves the exact one. Scale and bias get the exact gradient
on every rank, which averaging leaves as it is.
"""

from fastclip.distributed.collectives import CollectiveError, traffic
from fastclip.distributed.distilling import distill
from fastclip.distributed.driver import Spec
from fastclip.distributed.ranks import MODES, Ranks, together, world
from fastclip.distributed.strips import contrastive
from fastclip.distributed.sums import positive_means, reduce, shared, smoothing, spreads, total

__all__ = [
    "MODES",
    "CollectiveError",
    "Ranks",
    "Spec",
    "contrastive",
    "distill",
    "positive_means",
    "reduce",
    "shared",
    "smoothing",
    "spreads",
    "together",
    "total",
    "traffic",
    "world",
]
