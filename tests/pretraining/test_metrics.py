"""Image-text retrieval: hand-made similarities with several captions per image, and ties."""

from __future__ import annotations

import numpy as np
import pytest

from mca_perception.errors import DatasetError
from mca_perception.pretraining.metrics import image_text_recall

# Images 0, 1, 2 with two, one and two captions.
OWNER = [0, 0, 1, 2, 2]
SIMILARITY = np.array(
    [
        [0.9, 0.1, 0.3, 0.5, 0.2],
        [0.2, 0.4, 0.8, 0.1, 0.6],
        [0.1, 0.3, 0.8, 0.7, 0.0],
    ]
)


def test_several_captions_per_image() -> None:
    # Captions: 0 right; 1 third (0.4, 0.3 before it); 2 tied with image 2, so second; 3 right; 4 third.
    # Images: 0 right (0.9); 1 right (0.8 before 0.6); 2 beaten by caption 2 (0.8 before 0.7).
    result = image_text_recall(SIMILARITY, OWNER, ks=(1, 2, 3))
    assert result == {
        "ir@1": pytest.approx(2 / 5),
        "ir@2": pytest.approx(3 / 5),
        "ir@3": 1.0,
        "tr@1": pytest.approx(2 / 3),
        "tr@2": 1.0,
        "tr@3": 1.0,
    }


@pytest.mark.parametrize("value", [0.0, -np.inf, 7.0])
def test_equal_scores_earn_nothing(value: float) -> None:
    assert set(image_text_recall(np.full((3, 5), value), OWNER, ks=(1, 2)).values()) == {0.0}


def test_perfect_scores() -> None:
    scores = np.arange(3)[:, None] == np.array(OWNER)[None]
    assert set(image_text_recall(scores.astype(np.float32), OWNER).values()) == {1.0}


def test_order_of_images_and_captions_does_not_matter() -> None:
    rng = np.random.default_rng(0)
    owner = np.repeat(np.arange(20), 5)
    scores = np.round(rng.normal(size=(20, 100)), 1)  # rounded: many ties
    rows, columns = rng.permutation(20), rng.permutation(100)
    shuffled = image_text_recall(scores[rows][:, columns], np.argsort(rows)[owner[columns]])
    assert shuffled == image_text_recall(scores, owner)


@pytest.mark.parametrize(
    ("scores", "owner", "message"),
    [
        (SIMILARITY, [0, 0, 1], "one image row per caption"),
        (SIMILARITY, [0.0, 0.0, 1.0, 2.0, 2.0], "one image row per caption"),
        (SIMILARITY, [0, 0, 1, 2, 3], "rows 0 to 3 of 3"),
        (SIMILARITY, [0, 0, 1, 1, 1], "1 of 3 images have no caption"),
        (np.zeros((0, 0)), np.zeros(0, np.int64), "no caption"),
        (np.full((3, 5), np.nan), OWNER, "not numbers"),
    ],
)
def test_bad_input_is_named(scores: np.ndarray, owner: object, message: str) -> None:
    with pytest.raises(DatasetError, match=message):
        image_text_recall(scores, owner)  # type: ignore[arg-type]
