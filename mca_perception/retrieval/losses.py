"""The symmetric contrastive loss of retrieval on a batch of document-image pairs."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F


def document_image_loss(texts: Tensor, images: Tensor, scale: Tensor, same: Tensor) -> Tensor:
    """Mean of both directions' cross-entropy over in-batch pairs (specification of retrieval, section 2).

    The standard form, not the printed equation 4.3 of the thesis, which is no cross-entropy.

    Args:
        texts: ``[B, D]`` vectors of length 1.
        images: ``[B, D]`` likewise; row i belongs to text i.
        scale: scalar factor on cosines, ``exp(tau)``.
        same: ``[B, B]`` bool, True where text i and image j must not repel each other: rows that share a text or an
            image. The diagonal does not matter.

    Returns:
        A scalar; 0 for a batch of one.
    """
    own = torch.eye(len(texts), dtype=torch.bool, device=texts.device)
    logits = (scale * texts.float() @ images.float().T).masked_fill(same & ~own, -torch.inf)
    target = torch.arange(len(texts), device=texts.device)
    return (F.cross_entropy(logits, target) + F.cross_entropy(logits.T, target)) / 2
