"""Contrastive losses, large batches by gradient caching, measures of embeddings. It knows embeddings, not models."""

from mca_perception.contrastive.gradient_cache import cached_backward
from mca_perception.contrastive.inner_form import ContrastStatistics, InnerForm, contrast_statistics
from mca_perception.contrastive.label_errors import PairErrors, expected_pair_errors, measured_pair_errors
from mca_perception.contrastive.paired import InfoNCE, SigmoidLoss, info_nce, n_pair, sigmoid_loss, simclr
from mca_perception.contrastive.supervised import (
    clce,
    lacln,
    lacvit,
    scl_rhe,
    supcon_in,
    supcon_out,
    triplet_semi_hard,
    two_views,
)

__all__ = [
    "ContrastStatistics",
    "InfoNCE",
    "InnerForm",
    "PairErrors",
    "SigmoidLoss",
    "cached_backward",
    "clce",
    "contrast_statistics",
    "expected_pair_errors",
    "info_nce",
    "lacln",
    "lacvit",
    "measured_pair_errors",
    "n_pair",
    "scl_rhe",
    "sigmoid_loss",
    "simclr",
    "supcon_in",
    "supcon_out",
    "triplet_semi_hard",
    "two_views",
]
