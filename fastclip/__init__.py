"""fastclip: CLIP's contrastive losses as fused kernels that never build the similarity matrix.

    loss = fastclip.clip_loss(image_features, text_features, logit_scale.exp(), normalize=True)

See `python -m fastclip.info` for what this installation can run and `python -m fastclip.train` for the trainer.
"""

from fastclip.backends import available_backends
from fastclip.distillation import distill_loss
from fastclip.functional import clip_loss, info_nce_loss, siglip_loss
from fastclip.losses import ClipLoss, NTXentLoss, SigLipLoss
from fastclip.models import CLIP, CLIPConfig, Tokenizer
from fastclip.retrieval import retrieval_ranks, similarity_topk

__version__ = "0.1.0"

__all__ = [
    "CLIP",
    "CLIPConfig",
    "ClipLoss",
    "NTXentLoss",
    "SigLipLoss",
    "Tokenizer",
    "__version__",
    "available_backends",
    "clip_loss",
    "distill_loss",
    "info_nce_loss",
    "retrieval_ranks",
    "siglip_loss",
    "similarity_topk",
]
