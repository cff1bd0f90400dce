from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from mca_perception.backbone.tokenizer import BEiT3Tokenizer
from mca_perception.datasets.pairs import read_pairs
from mca_perception.datasets.synth.caption_set import CaptionSettings, colours_of, write_captions
from mca_perception.errors import DatasetError


@pytest.mark.parametrize(
    ("rgb", "name"),
    [
        ((220, 20, 20), "red"),
        ((30, 160, 50), "green"),
        ((30, 60, 200), "blue"),
        ((240, 210, 30), "yellow"),
        ((10, 10, 10), "black"),
        ((120, 70, 30), "brown"),
        ((130, 130, 130), "grey"),
    ],
)
def test_colours_have_their_names(rgb, name: str) -> None:
    picture = np.full((80, 90, 3), 245, np.uint8)
    picture[20:60, 20:70] = rgb
    assert colours_of(picture) == [name]


def test_two_colours_are_both_named_and_specks_are_not() -> None:
    picture = np.full((96, 96, 3), 245, np.uint8)
    picture[12:60, 12:84] = (220, 20, 20)
    picture[60:84, 12:84] = (30, 60, 200)
    picture[14:18, 14:18] = (30, 160, 50)
    assert colours_of(picture) == ["red", "blue"]


def test_a_set_is_read_as_pairs_and_repeats(tmp_path: Path) -> None:
    settings = CaptionSettings(tmp_path / "set", 40, 3, validation_share=0.3)
    figures = write_captions(settings)
    assert (figures["products"], figures["pictures"]) == (40, 80)
    items = read_pairs(tmp_path / "set").items
    assert len(items) == 80
    assert {item.split for item in items} == {"train", "val"}
    assert all(1 <= len(item.texts) <= 3 for item in items)
    assert len({item.texts for item in items}) > 30
    tokenizer = BEiT3Tokenizer(tmp_path / "set" / "vocabulary.spm")
    assert tokenizer.vocab_size <= 1010
    assert tokenizer.unk_id not in tokenizer.encode(items[0].texts[0])
    again = CaptionSettings(tmp_path / "again", 40, 3, validation_share=0.3)
    write_captions(again)
    for name in ("pairs.jsonl", "vocabulary.spm"):
        assert (tmp_path / "again" / name).read_bytes() == (tmp_path / "set" / name).read_bytes()
    with pytest.raises(DatasetError, match="other settings"):
        write_captions(CaptionSettings(tmp_path / "set", 41, 3))


def test_settings_out_of_range_are_refused(tmp_path: Path) -> None:
    with pytest.raises(DatasetError, match="--val"):
        write_captions(CaptionSettings(tmp_path / "set", 5, 0, validation_share=1.0))
    with pytest.raises(DatasetError, match="--count"):
        write_captions(CaptionSettings(tmp_path / "set", 0, 0))
