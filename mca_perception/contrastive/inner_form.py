"""The inner-form losses as one function of four numbers (specification of the contrastive methods, section 1.3)."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from mca_perception.contrastive.kernel import Anchors, Side, anchors_at, blocks, check_temperature, prepare
from mca_perception.errors import ContrastiveError


class Expectations(NamedTuple):
    """Logarithms of ``E_P`` and ``E_N`` per anchor, and where their floor was needed; all ``[m]``."""

    positive: Tensor
    negative: Tensor
    positive_floored: Tensor
    negative_floored: Tensor


@dataclass(frozen=True)
class InnerForm:
    """``-log(K E_P / (K E_P + N E_N))`` with tilted averages, corrected for wrong pairs.

    ``(beta_pos, beta_neg, eps_pos, eps_neg)`` of (0, 0, 0, 0) is ``L_in``, (0, 1, 0, 0) LACLN, anything else SCL-RHE.

    Attributes:
        T: temperature; the floor of a corrected average is ``exp(-1 / T)``, the least that ``exp(s)`` can be.
        beta_pos: tilt away from easy positives.
        beta_neg: tilt towards hard negatives.
        eps_pos: share of wrong pairs among the positives.
        eps_neg: share of wrong pairs among the negatives.
        detach_weights: no gradient through the weights ``exp(b s)``.
        log_k_constant: add ``log K_i``.
        sibling_views: one positive of each anchor is known to be right.
    """

    T: float
    beta_pos: float = 0.0
    beta_neg: float = 0.0
    eps_pos: float = 0.0
    eps_neg: float = 0.0
    detach_weights: bool = False
    log_k_constant: bool = False
    sibling_views: bool = False

    def __post_init__(self) -> None:
        check_temperature(self.T)
        for name in ("beta_pos", "beta_neg"):
            if not 0 <= getattr(self, name) < math.inf:
                raise ContrastiveError(
                    f"{name} is {getattr(self, name)}; a tilt must be 0 or more, usually up to 1"
                )
        for name in ("eps_pos", "eps_neg"):
            if not 0 <= getattr(self, name) < 1:
                raise ContrastiveError(
                    f"{name} is {getattr(self, name)}; a share of wrong pairs is at least 0, below 1"
                )

    def __call__(self, anchors: Anchors) -> Tensor:
        """Loss per anchor ``[m]``; each needs a positive and a negative."""
        expected = self.expectations(anchors)
        log_k = anchors.positives.size.log()
        log_ratio = anchors.negatives.size.log() + expected.negative - log_k - expected.positive
        loss = torch.logaddexp(log_ratio, torch.zeros_like(log_ratio))
        return loss + log_k if self.log_k_constant else loss

    def expectations(self, anchors: Anchors) -> Expectations:
        """Tilted and corrected averages over each anchor's positives and negatives."""
        eps_pos: Tensor | float = self.eps_pos
        if self.sibling_views:
            eps_pos = self.eps_pos * (anchors.positives.size - 1) / anchors.positives.size
        positives, negatives = anchors.positives, anchors.negatives
        positive, positive_floored = self._expectation(positives, negatives, -self.beta_pos, eps_pos)
        negative, negative_floored = self._expectation(negatives, positives, self.beta_neg, self.eps_neg)
        return Expectations(positive, negative, positive_floored, negative_floored)

    def _expectation(
        self, own: Side, other: Side, tilt: float, rate: Tensor | float
    ) -> tuple[Tensor, Tensor]:
        """Tilted average over one side, less what wrong pairs from the other side contribute to it."""
        average = self._log_tilted_mean(own, tilt)
        if isinstance(rate, float | int) and rate == 0:
            return average, torch.zeros_like(average, dtype=torch.bool)
        return self._corrected(average, self._log_tilted_mean(other, tilt), rate)

    def _log_tilted_mean(self, side: Side, tilt: float) -> Tensor:
        """``log(mean(e^((1 + tilt) s)) / mean(e^(tilt s)))`` over one side."""
        if not self.detach_weights:
            return _log_sum_exp(side, 1 + tilt) - _log_sum_exp(side, tilt)
        constant = side._replace(similarity=side.similarity.detach())
        weighted = side._replace(similarity=side.similarity + tilt * constant.similarity)
        return _log_sum_exp(weighted, 1.0) - _log_sum_exp(constant, tilt)

    def _corrected(self, own: Tensor, other: Tensor, rate: Tensor | float) -> tuple[Tensor, Tensor]:
        """``log max((e^own - rate e^other) / (1 - rate), e^(-1/T))`` without leaving logarithms."""
        rate = torch.as_tensor(rate, dtype=own.dtype, device=own.device)
        log_share = rate.log() + other - own
        # Where nothing is left there is no logarithm: a stand-in keeps the gradient finite, the floor replaces it.
        exists = log_share < 0
        remaining = torch.log(-torch.expm1(torch.where(exists, log_share, -1.0)))
        value = own + remaining - torch.log1p(-rate)
        floored = ~exists | (value < -1 / self.T)
        return torch.where(floored, -1 / self.T, value), floored


def _log_sum_exp(side: Side, factor: float) -> Tensor:
    """``log sum exp(factor s)`` over the members of each row; scaled before the rest is filled."""
    if factor == 0:
        return side.size.log()
    scaled = side.similarity if factor == 1 else factor * side.similarity
    return torch.where(side.members, scaled, -torch.inf).logsumexp(1)


class ContrastStatistics(NamedTuple):
    """What to log beside a loss (specification of the contrastive methods, section 8, items 5 and 11).

    Attributes:
        contrasts: rows that an anchor is compared with, its own included.
        valid: share of rows with a positive and a negative.
        positives: mean K_i over valid anchors.
        negatives: mean N_i over valid anchors.
        positive_floored: share of valid anchors that get no gradient from positives.
        negative_floored: share of valid anchors that get no gradient from negatives.
    """

    contrasts: int
    valid: float
    positives: float
    negatives: float
    positive_floored: float
    negative_floored: float


@torch.no_grad()
def contrast_statistics(x: Tensor, y: Tensor, form: InnerForm) -> ContrastStatistics:
    """Counts over this process's anchors, at the cost of another forward pass of the loss; zeros when none is valid.

    Args:
        x: ``[M, D]`` embeddings, normalised inside.
        y: ``[M]`` integer class ids.
        form: settings of the loss.
    """
    with torch.autocast(x.device.type, enabled=False):
        batch = prepare(x, y, needs_negatives=True)
        sums = x.new_zeros(4, dtype=torch.float64)
        for part in blocks(len(batch.anchors), len(batch.contrasts)):
            columns = batch.anchors[part]
            anchors = anchors_at(batch, batch.contrasts[columns], batch.contrasts, columns, form.T)
            expected = form.expectations(anchors)
            counts = (anchors.positives.size, anchors.negatives.size)
            floored = (expected.positive_floored, expected.negative_floored)
            sums += torch.stack([part.double().sum() for part in (*counts, *floored)])
    positives, negatives, positive_floored, negative_floored = (sums / max(1, len(batch.anchors))).tolist()
    valid = len(batch.anchors) / max(1, len(x))
    return ContrastStatistics(
        len(batch.contrasts), valid, positives, negatives, positive_floored, negative_floored
    )
