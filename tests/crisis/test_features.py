"""Features of ordinary and hostile text."""

from __future__ import annotations

import pytest

from mca_perception.crisis.features import MAX_CHARACTERS, NgramConfig, NgramFeatures, normalise_text

SMALL = NgramConfig(words=2, characters=(2, 3), buckets=1 << 12)


def test_links_users_case_and_space_do_not_matter() -> None:
    assert normalise_text(" Flood  in\nTown https://t.co/x1 @Bob ") == "flood in town @user"
    features = NgramFeatures(SMALL)
    assert features.count("FLOOD in town http://a.b") == features.count("flood in  town https://c.d/e")


def test_counts_by_hand() -> None:
    features = NgramFeatures(NgramConfig(words=2, characters=(2, 2), buckets=1 << 20))
    counts = features.count("aa aa")
    # Words: "aa" twice, "aa aa" once. Characters of " aa " twice: " a", "aa", "a ".
    assert sorted(counts.values()) == [1, 2, 2, 2, 2]
    assert sum(name < 1 << 20 for name in counts) == 2


def test_batches_are_padded_beyond_the_last_feature() -> None:
    batch = NgramFeatures(SMALL).batch(["storm surge", "", "storm"])
    assert batch.ids.shape == batch.counts.shape
    assert (batch.ids[1] == SMALL.size).all()
    assert not batch.counts[1].any()
    assert ((batch.ids == SMALL.size) == (batch.counts == 0)).all()


@pytest.mark.parametrize("words", [1, 2, 3])
@pytest.mark.parametrize("characters", [None, (1, 1), (2, 5)])
def test_ids_are_in_range(words: int, characters: tuple[int, int] | None) -> None:
    config = NgramConfig(words=words, characters=characters, buckets=64)
    batch = NgramFeatures(config).batch(["The bridge collapsed!", "سیلاب in Chennai", "\N{FIRE}" * 50])
    assert batch.ids.min() >= 0
    assert batch.ids.max() <= config.size


@pytest.mark.parametrize(
    "text",
    [
        "x" * 1_000_000,
        "\N{FIRE}" * 10_000,
        "مساعدة عاجلة " * 300,
        "mixed עברית and العربية ‮reversed",
        "half a pair \ud83d and \udc00",
        "\x00\x01\x7f",
        "a\N{COMBINING ACUTE ACCENT}" * 5000,
    ],
)
def test_hostile_text_is_bounded(text: str) -> None:
    features = NgramFeatures(SMALL)
    counts = features.count(text)
    assert 0 < len(counts) <= SMALL.size
    assert counts == features.count(text[:MAX_CHARACTERS])


@pytest.mark.parametrize(
    "changes", [{"buckets": 1000}, {"characters": (3, 2)}, {"words": 0}, {"characters": (1, 20)}]
)
def test_settings_are_checked(changes: dict[str, object]) -> None:
    with pytest.raises(ValueError, match="validation error"):
        NgramConfig.model_validate(changes)
