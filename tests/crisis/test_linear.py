"""The linear model beside scikit-learn's own TF-IDF, its graph, its run folder and its bundle."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
import pytest

from mca_perception.crisis.bundle import CrisisBundle
from mca_perception.crisis.cross_event import cross_event
from mca_perception.crisis.features import NgramConfig, NgramFeatures
from mca_perception.crisis.graph import linear_graph
from mca_perception.crisis.linear import (
    LinearSettings,
    count_terms,
    fit_linear,
    fit_temperature,
    softmax,
    tf_idf,
)
from mca_perception.crisis.linear_run import attach_metrics, bundle_linear_run, is_crisis_bundle, train_linear
from mca_perception.crisis.recipe import LinearRecipe, load_linear_recipe
from mca_perception.errors import BundleError, DatasetError, RecipeError
from tests.support.crisis import EVENTS, write_crisismmd

pytest.importorskip("sklearn")
CONFIG = NgramConfig(words=1, characters=(2, 3), buckets=1 << 14)
TEXTS = [
    "flood in town",
    "flood flood rescue",
    "football in town",
    "lunch and football",
    "rescue boats",
    "lunch",
]
LABELS = np.array([0, 0, 1, 1, 0, 1])
SETTINGS = LinearSettings(c=1.0, min_documents=1, folds=2)


def recipe(data: Path, **changes: Any) -> LinearRecipe:
    section = {"data": data, "features": {"buckets": 1 << 12}, "folds": 2, **changes}
    return LinearRecipe.model_validate({"name": "crisis", "crisis_linear": section})


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> CrisisBundle:
    folder = tmp_path_factory.mktemp("linear")
    train_linear(recipe(write_crisismmd(folder / "data")), folder / "run")
    return bundle_linear_run(folder / "run", folder / "bundle", version="0.0.1")


def test_words_are_weighted_as_scikit_learn_does() -> None:
    from sklearn.feature_extraction.text import TfidfVectorizer

    terms = count_terms(TEXTS, CONFIG)
    documents = np.bincount(terms.matrix.indices, minlength=CONFIG.size)
    idf = (np.log((1 + len(TEXTS)) / (1 + documents)) + 1).astype(np.float32)
    ours = tf_idf(terms, idf).toarray()[:, : CONFIG.buckets]
    theirs = TfidfVectorizer(sublinear_tf=True).fit_transform(TEXTS).toarray()
    assert np.sort(ours[ours > 0]) == pytest.approx(np.sort(theirs[theirs > 0]), abs=1e-6)
    assert ours @ ours.T == pytest.approx(theirs @ theirs.T, abs=1e-6)


@pytest.mark.parametrize("classes", [2, 3])
def test_graph_equals_the_model(classes: int) -> None:
    labels = np.arange(len(TEXTS)) % classes
    model = fit_linear(count_terms(TEXTS, CONFIG), labels, classes, SETTINGS)[0].rounded()
    texts = [*TEXTS, "unseen words", "", "\N{FIRE}" * 3]
    batch = NgramFeatures(CONFIG).batch(texts)
    session = onnxruntime.InferenceSession(linear_graph(model).SerializeToString())
    (found,) = session.run(None, {"feature_ids": batch.ids, "feature_counts": batch.counts})
    assert found == pytest.approx(model.probabilities(count_terms(texts, CONFIG)), abs=1e-5)
    assert found.sum(1) == pytest.approx(np.ones(len(texts)), abs=1e-6)


def test_temperature_has_the_least_loss() -> None:
    generator = np.random.default_rng(0)
    labels = generator.integers(0, 3, 500)
    margins = (4 * generator.normal(size=(500, 3)) + 3 * np.eye(3)[labels]).astype(np.float32)

    def loss(temperature: float) -> float:
        return float(-np.log(softmax(margins / temperature)[np.arange(500), labels]).mean())

    best = fit_temperature(margins, labels)
    assert loss(best) <= min(map(loss, np.linspace(0.2, 20, 200))) + 1e-6


def test_balance_favours_the_rare_class() -> None:
    texts = ["flood here"] * 20 + ["lunch here"] * 18 + ["flood lunch"] * 2
    labels = np.array([0] * 20 + [1] * 18 + [2] * 2)
    terms = count_terms([*texts, "flood lunch"], CONFIG)
    rare = [
        fit_linear(
            terms[np.arange(40)], labels, 3, LinearSettings(c=0.01, balance=b, min_documents=1, folds=2)
        )[0].margins(terms)[-1, 2]
        for b in (0.0, 1.0)
    ]
    assert rare[1] > rare[0]


def test_too_little_data_is_refused() -> None:
    with pytest.raises(DatasetError, match="add data"):
        fit_linear(count_terms(TEXTS, CONFIG), LABELS, 3, SETTINGS)


def test_run_becomes_a_bundle_without_pickles(bundle: CrisisBundle) -> None:
    names = {path.name for path in bundle.path.iterdir()}
    assert names == {"manifest.json", "README.md", "labels.yaml", "informative.onnx", "humanitarian.onnx"}
    labels = bundle.labels()
    assert labels.labels_of("humanitarian")[0] == "affected_individuals"
    assert 0.3 <= labels.alert_threshold <= 0.75
    assert is_crisis_bundle(bundle.path)
    assert not is_crisis_bundle(bundle.path.parent)
    assert "0.8644" in (bundle.path / "README.md").read_text()


def test_fingerprint_follows_labels_and_features(bundle: CrisisBundle, tmp_path: Path) -> None:
    manifest = bundle.manifest.model_copy(
        update={"text": bundle.manifest.text.model_copy(update={"features": NgramConfig(words=1)})}
    )
    assert CrisisBundle(bundle.path, manifest).fingerprint != bundle.fingerprint


def test_metrics_are_added(bundle: CrisisBundle, tmp_path: Path) -> None:
    path = tmp_path / "metrics.json"
    path.write_text(
        '{"task": "crisismmd-informative-dev", "n": 3, "weighted_f1": 0.5, "macro_f1": 0.4, "accuracy": 1}'
    )
    again = attach_metrics(bundle, tmp_path / "bundle", [path])
    assert again.manifest.metrics["crisismmd-informative-dev"]["weighted_f1"] == 0.5
    assert "crisismmd-informative-dev | 3 | 0.5000" in (again.path / "README.md").read_text()
    assert again.fingerprint == bundle.fingerprint
    path.write_text("[]")
    with pytest.raises(BundleError, match=r"no metrics\.json"):
        attach_metrics(bundle, tmp_path / "bundle", [path])


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("version: '1'\n", "informative is not valid"),
        ("[", "cannot be read"),
    ],
)
def test_damaged_label_files(bundle: CrisisBundle, tmp_path: Path, content: str, message: str) -> None:
    (tmp_path / "labels.yaml").write_text(content)
    with pytest.raises(BundleError, match=message):
        CrisisBundle(tmp_path, bundle.manifest).labels()


def test_a_run_is_not_overwritten(tmp_path: Path) -> None:
    (tmp_path / "recipe.yaml").write_text("")
    with pytest.raises(RecipeError, match="holds a run already"):
        train_linear(recipe(tmp_path), tmp_path)
    with pytest.raises(RecipeError, match=r"linear\.safetensors"):
        bundle_linear_run(tmp_path, tmp_path / "bundle", version="1")


def test_cross_event_leaves_each_event_out(tmp_path: Path) -> None:
    tables = cross_event(recipe(write_crisismmd(tmp_path)))["tasks"]
    assert all(sorted(rows) == sorted(EVENTS) for rows in tables.values())
    # The words tell the class in every event, so that an unseen event costs nothing.
    assert all(
        row["weighted_f1"] > 0.9 > row["majority_f1"] for rows in tables.values() for row in rows.values()
    )


def test_recipe_of_the_repository(repository: Path) -> None:
    settings = load_linear_recipe(repository / "recipes" / "crisis_linear.yaml", ["crisis_linear.folds=7"])
    assert settings.crisis_linear.folds == 7


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["crisis_linear.folds=1"], r"crisis_linear\.folds"),
        (["crisis_linear.features.buckets=3"], r"power of two|greater"),
        (["colour=red"], "colour"),
        (["folds"], "not of the form"),
        (["name.x=1"], "cannot be used"),
    ],
)
def test_damaged_recipes(repository: Path, overrides: list[str], message: str) -> None:
    with pytest.raises(RecipeError, match=message):
        load_linear_recipe(repository / "recipes" / "crisis_linear.yaml", overrides)
