"""The classifier on a bundle: ordinary posts, hostile posts, and bundles that do not fit."""

from __future__ import annotations

import struct
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from mca_perception.crisis.bundle import CrisisBundle
from mca_perception.crisis.classifier import CrisisClassifier
from mca_perception.crisis.evaluation import PREDICTIONS, compare, evaluate_posts, read_predictions
from mca_perception.crisis.features import MAX_CHARACTERS
from mca_perception.crisis.post_files import read_posts
from mca_perception.crisis.posts import CrisisReport, Post, priority_level
from mca_perception.datasets.crisismmd import read_split
from mca_perception.errors import BundleError, DatasetError, PostError
from tests.support.crisis import write_crisismmd

RESCUE = "Families trapped on roofs, volunteers needed to rescue them, bridge collapsed"


@pytest.fixture(scope="module")
def classifier(repository: Path) -> CrisisClassifier:
    return CrisisClassifier.from_bundle(repository / "models" / "crisis", threads=1)


def test_shipped_bundle_is_small(repository: Path) -> None:
    bundle = CrisisBundle.open(repository / "models" / "crisis")
    assert sum(file.bytes for file in bundle.manifest.files.values()) < 15_000_000


def test_a_report_says_what_it_is(classifier: CrisisClassifier) -> None:
    (report,) = classifier.classify([Post(RESCUE, post_id="7", event_id="flood")])
    assert isinstance(report, CrisisReport)
    assert (report.post_id, report.event_id) == ("7", "flood")
    assert sum(report.humanitarian_scores.values()) == pytest.approx(1, abs=1e-5)
    assert report.humanitarian.score == max(report.humanitarian_scores.values())
    expected = sum(classifier.labels.priority_of[name] * p for name, p in report.humanitarian_scores.items())
    assert report.priority_score == pytest.approx(expected, abs=1e-6)
    assert report.priority_level == priority_level(report.priority_score)
    assert report.alert == (report.priority_score >= classifier.labels.alert_threshold)
    assert report.uncalibrated
    assert report.modalities_used == ("text",)
    assert report.modal_agreement is None
    assert report.model == f"crisis@{classifier.bundle.fingerprint}"
    assert report.label_version == "1"
    assert not report.warnings


def test_urgent_posts_rank_above_idle_ones(classifier: CrisisClassifier) -> None:
    idle = Post("Enjoying my coffee and watching football tonight")
    reports = classifier.classify([Post(RESCUE), idle])
    assert [report.alert for report in reports if isinstance(report, CrisisReport)] == [True, False]


@pytest.mark.parametrize(
    ("score", "level"), [(0.25, "Low"), (0.26, "Medium"), (0.5, "Medium"), (0.75, "High"), (0.76, "Critical")]
)
def test_levels(score: float, level: str) -> None:
    assert priority_level(score) == level


@pytest.mark.parametrize(
    ("post", "warning"),
    [
        (Post("flood " * 200_000), f"only the first {MAX_CHARACTERS:,} of 1,200,000 characters"),
        (Post("\N{FIRE}" * 10_000), None),
        (Post("محتاجين مساعدة عاجلة flood"), None),
        (Post("half a pair \ud83d"), None),
        (Post("https://t.co/abc"), "nothing but links"),
    ],
)
def test_hostile_posts_get_an_answer(classifier: CrisisClassifier, post: Post, warning: str | None) -> None:
    (report,) = classifier.classify([post])
    assert isinstance(report, CrisisReport)
    assert np.isfinite(list(report.humanitarian_scores.values())).all()
    assert [warning in text for text in report.warnings] == [True] if warning else not report.warnings


def png(width: int, height: int) -> bytes:
    """Start of a PNG file that states a size."""
    return b"\x89PNG\r\n\x1a\n" + struct.pack(">I4sII", 13, b"IHDR", width, height)


@pytest.mark.parametrize(
    ("images", "warnings"),
    [
        ((png(640, 480),), ["images: 1 did not count"]),
        ((b"no image",), ["images: 1 did not count", "image 1 cannot be read: it is neither"]),
        ((b"",), ["images: 1 did not count", "image 1 cannot be read: it has 0 bytes"]),
        (
            (png(64, 64), png(100_000, 100_000)),
            ["images: 2 did not count", "image 2 cannot be read: it has 100000 x 100000 pixels"],
        ),
        ((bytes(20_000_001),), ["images: 1 did not count", "it has 20,000,001 bytes"]),
        ((png(64, 64),) * 50, ["images: 50 did not count", "only the first 8 of 50 were looked at"]),
    ],
)
def test_images_that_do_not_count_are_named(
    classifier: CrisisClassifier, images: tuple[bytes, ...], warnings: list[str]
) -> None:
    (report,) = classifier.classify([Post(RESCUE, images)])
    assert isinstance(report, CrisisReport)
    assert report.modalities_used == ("text",)
    assert len(report.warnings) == len(warnings)
    assert all(part in found for part, found in zip(warnings, report.warnings, strict=True))


def test_posts_without_anything_to_read_do_not_disturb_others(classifier: CrisisClassifier) -> None:
    posts = [Post(RESCUE), Post(), Post(images=(b"x",)), Post(" \n\t"), Post("storm")]
    answers = classifier.classify(posts)
    assert [isinstance(answer, PostError) for answer in answers] == [False, True, True, True, False]
    assert "the post is empty" in str(answers[1])
    assert "images only" in str(answers[2])
    assert answers[0] == classifier.classify([Post(RESCUE)])[0]


def test_batches_equal_single_posts(classifier: CrisisClassifier) -> None:
    texts = [f"{word} in town {i}" for i in range(300) for word in ("flood",)]
    together = classifier.probabilities(texts, "humanitarian")
    assert together[[0, 150, 299]] == pytest.approx(
        np.concatenate([classifier.probabilities([texts[i]], "humanitarian") for i in (0, 150, 299)]),
        abs=1e-6,
    )
    assert classifier.probabilities([], "informative").shape == (0, 2)
    with pytest.raises(DatasetError, match="no task 'damage'"):
        classifier.probabilities(texts, "damage")


def test_no_torch_is_needed(repository: Path) -> None:
    script = (
        "import sys; from mca_perception.crisis.classifier import CrisisClassifier as C; "
        "from mca_perception.crisis.posts import Post; C.from_bundle('models/crisis').classify([Post('flood')]); "
        "print([m for m in ('torch', 'sklearn', 'scipy', 'onnx') if m in sys.modules])"
    )
    run = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, cwd=repository, timeout=120
    )
    assert run.stdout.strip() == "[]", run.stderr


def test_a_perception_bundle_is_refused(repository: Path) -> None:
    with pytest.raises(BundleError, match="'text' is not valid"):
        CrisisClassifier.from_bundle(repository / "models" / "nano")


def test_evaluation_and_comparison(classifier: CrisisClassifier, tmp_path: Path) -> None:
    data = write_crisismmd(tmp_path / "data", rows=40)
    split = read_split(data, "informative", "dev")
    result = evaluate_posts(classifier, split)
    assert result.metrics["n"] == len(split.posts)
    assert sum(event["n"] for event in result.metrics["events"].values()) == len(split.posts)
    (tmp_path / PREDICTIONS).write_text(result.to_csv())
    assert (
        list(read_predictions(tmp_path / PREDICTIONS, split.label_names).values())
        == result.predictions.tolist()
    )
    against = compare(result, tmp_path, seed=0)
    assert (against["weighted_f1_difference"], against["resamples"]) == (0, 10_000)
    other = evaluate_posts(classifier, read_split(data, "informative", "test"))
    with pytest.raises(DatasetError, match="is of other posts"):
        compare(other, tmp_path, seed=0)


@pytest.mark.parametrize(
    ("lines", "message"),
    [
        ("image_id,prediction\n1,maybe\n", "'maybe' is not one of"),
        ("image_id,prediction\n1,a\n1,a\n", "comes twice"),
        ("text\nhello\n", "'' is not one of"),
    ],
)
def test_damaged_predictions(tmp_path: Path, lines: str, message: str) -> None:
    (tmp_path / PREDICTIONS).write_text(lines)
    with pytest.raises(DatasetError, match=message):
        read_predictions(tmp_path / PREDICTIONS, ("a", "b"))


def test_bad_lines_are_answered(tmp_path: Path) -> None:
    (tmp_path / "a.jpg").write_bytes(b"x")
    lines = [
        b'{"text": "flood", "post_id": "1", "image": "a.jpg"}',
        b"",
        b"{",
        b"[1]",
        b'{"text": 3}',
        b'{"text": "x", "images": ["absent.jpg"]}',
        b'{"text": "x", "images": 5}',
        b'{"images": ["a.jpg", "a.jpg", "a.jpg", "a.jpg", "a.jpg", "a.jpg", "a.jpg", "a.jpg", "a.jpg"]}',
        b'{"text": "caf\xe9"}',
        b'{"text": "' + b"x" * 9_000_000 + b'"}',
        b'{"text": "last"}',
    ]
    (tmp_path / "posts.jsonl").write_bytes(b"\n".join(lines))
    found = dict(read_posts(tmp_path / "posts.jsonl"))
    assert list(found) == [1, 3, 4, 5, 6, 7, 8, 9, 10, 11]
    assert found[1] == Post("flood", (b"x",), post_id="1")
    assert found[9] == Post("caf\N{REPLACEMENT CHARACTER}")
    assert found[11] == Post("last")
    expected = {
        3: "not JSON",
        4: "no object",
        5: "text must be a string",
        6: "absent.jpg cannot be read",
        7: "list of paths",
        8: "9 images, at most 8",
        10: "more than 8,000,000 bytes",
    }
    for number, message in expected.items():
        assert isinstance(found[number], PostError)
        assert message in str(found[number])
        assert f"line {number}" in str(found[number])
