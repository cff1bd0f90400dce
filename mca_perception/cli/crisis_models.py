"""Models that `mca eval crisismmd` takes: a bundle, or the run folder of a neural model."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from mca_perception.crisis.classifier import CrisisClassifier
from mca_perception.crisis.evaluation import PostClassifier
from mca_perception.datasets.crisismmd import CrisisSplit, LabelledPost
from mca_perception.errors import RecipeError

if TYPE_CHECKING:
    from mca_perception.backbone import Backbone
    from mca_perception.crisis.networks.task import CrisisTask

RECIPE = "recipe.yaml"


class RunClassifier:
    """A trained neural model, in torch."""

    def __init__(self, backbone: Backbone, task: CrisisTask) -> None:
        self.backbone, self.task = backbone, task

    def predict(self, posts: Sequence[LabelledPost], split: CrisisSplit) -> NDArray[np.float32]:
        """Probabilities ``[N, C]`` of posts of a split.

        Raises:
            RecipeError: the model is of the other task.
        """
        from mca_perception.training.hardware import select_device

        if split.task != self.task.recipe.task:
            raise RecipeError(
                f"the run was trained for {self.task.recipe.task}; give --task {self.task.recipe.task}"
            )
        return self.task.predict(posts, split, self.backbone, select_device("auto"))


def open_model(path: Path) -> tuple[PostClassifier, dict[str, Any]]:
    """Open a bundle or a run folder.

    Returns:
        The classifier, and what it is for the report: name, version, fingerprint.

    Raises:
        BundleError: the folder is neither.
        RecipeError: it is a run of another kind of model.
    """
    if not (path / RECIPE).is_file():
        classifier = CrisisClassifier.from_bundle(path)
        manifest = classifier.bundle.manifest
        facts = {
            "name": manifest.name,
            "version": manifest.version,
            "fingerprint": classifier.bundle.fingerprint,
        }
        return classifier, facts
    return _open_run(path)


def _open_run(path: Path) -> tuple[RunClassifier, dict[str, Any]]:
    import hashlib

    from mca_perception.training.checkpoints import WEIGHTS
    from mca_perception.training.hardware import select_device
    from mca_perception.training.run import load_run

    recipe, model, tasks, _ = load_run(path)
    found = [task for task in tasks if task.name == "crisis"]
    if not found:
        raise RecipeError(f"{path} is a run without a crisis model; give one of recipes/crisis_*.yaml")
    model.to(select_device("auto")).eval()
    digest = hashlib.sha256((path / WEIGHTS).read_bytes()).hexdigest()[:16]
    facts = {"name": recipe.name, "version": f"run, seed {recipe.seed}", "fingerprint": digest}
    return RunClassifier(model.backbone, found[0]), facts  # type: ignore[arg-type]
