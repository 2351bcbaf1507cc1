"""fastclip: CLIP's contrastive losses as fused kernels that never build the similarity matrix.

    loss = fastclip.clip_loss(image_features, text_features, logit_scale.exp(), normalize=True)

See `python -m fastclip.info` for what this installation can run and `python -m fastclip.train` for the trainer.
"""

from fastclip.backends import available_backends
from fastclip.functional import clip_loss, siglip_loss
from fastclip.losses import ClipLoss, SigLipLoss

__version__ = "0.1.0"

__all__ = ["ClipLoss", "SigLipLoss", "__version__", "available_backends", "clip_loss", "siglip_loss"]
