"""Retrieval figures of validation, where several images may share a text."""

from __future__ import annotations

import pytest
import torch

from mca_perception.pretraining.evaluation import Tally, retrieval_metrics


def unit(*rows: list[float]) -> torch.Tensor:
    return torch.nn.functional.normalize(torch.tensor(rows), dim=-1)


def test_images_that_share_a_text() -> None:
    """Three images of two texts: the second image of text 0 looks like text 1."""
    texts = unit([1.0, 0.0], [1.0, 0.0], [0.0, 1.0])
    images = unit([1.0, 0.1], [0.1, 1.0], [0.2, 1.0])
    metrics = retrieval_metrics(images, texts, torch.tensor([7, 7, 3]))
    assert metrics["tr@1"] == pytest.approx(2 / 3)  # images 0 and 2 find their text among two
    assert metrics["ir@1"] == pytest.approx(
        1 / 2
    )  # text 0 finds image 0, text 1 finds image 1, which is not its own
    assert metrics["tr@5"] == metrics["ir@5"] == 1.0
    assert metrics["tr_chance@1"] == pytest.approx(1 / 2)
    assert metrics["ir_chance@1"] == pytest.approx((2 / 3 + 1 / 3) / 2)


def test_pairs_of_their_own() -> None:
    eye = torch.eye(4)
    metrics = retrieval_metrics(eye, eye.roll(1, dims=0), torch.arange(4))
    assert metrics["tr@1"] == metrics["ir@1"] == 0.0
    assert metrics["tr_chance@1"] == metrics["ir_chance@1"] == pytest.approx(0.25)


def test_tally_states_the_majority_beside_the_accuracy() -> None:
    tally = Tally()
    tally.add("mlm", torch.eye(3), torch.tensor([0, 0, 2]))
    tally.add("mlm", torch.eye(3)[:1], torch.tensor([0]))
    assert tally.metrics() == {"mlm_accuracy": 0.75, "mlm_majority": 0.75}
