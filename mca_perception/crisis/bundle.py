"""The bundle of a crisis model: one graph per task, and the one YAML file with its labels and thresholds.

``labels.yaml`` holds what an operator may want to read or change: the order of the labels, the alert threshold and the
rule for priorities. Its version goes into every answer.
"""

from __future__ import annotations

from typing import Annotated, Any

import yaml
from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from mca_perception.crisis.features import NgramConfig
from mca_perception.deploy.bundle import Bundle
from mca_perception.deploy.manifest import CommonManifest
from mca_perception.errors import BundleError

__all__ = ["LABELS_FILE", "CrisisBundle", "CrisisManifest", "LabelSettings", "TextModelSpec"]

LABELS_FILE = "labels.yaml"
MAX_LABELS_BYTES = 1_000_000
_Share = Annotated[float, Field(ge=0, le=1)]


class LabelSettings(BaseModel):
    """Contents of ``labels.yaml``.

    Attributes:
        version: of this file; in every answer.
        informative: labels in the order of the model's outputs.
        humanitarian: likewise.
        priority_of: urgency of each humanitarian label. A rule over categories, not a trained priority: answers say so.
        alert_threshold: a post whose priority reaches it is an alert.
        alert_threshold_chosen_on: data and measure by which it was chosen.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    version: str = Field(min_length=1, max_length=40)
    informative: tuple[str, ...] = Field(min_length=2)
    humanitarian: tuple[str, ...] = Field(min_length=2)
    priority_of: dict[str, _Share]
    alert_threshold: _Share
    alert_threshold_chosen_on: str

    @model_validator(mode="after")
    def _consistent(self) -> LabelSettings:
        if set(self.priority_of) != set(self.humanitarian):
            raise ValueError("priority_of must name exactly the humanitarian labels")
        return self

    def labels_of(self, task: str) -> tuple[str, ...]:
        """Labels of ``informative`` or ``humanitarian``."""
        return self.informative if task == "informative" else self.humanitarian


class TextModelSpec(BaseModel):
    """How text becomes the inputs of the graphs."""

    model_config = ConfigDict(extra="allow", frozen=True)

    kind: str
    features: NgramConfig


class CrisisManifest(CommonManifest):
    """Contents of ``manifest.json`` of a crisis model."""

    text: TextModelSpec


class CrisisBundle(Bundle):
    """A bundle whose graphs ``informative`` and ``humanitarian`` turn text features into probabilities."""

    manifest_type = CrisisManifest
    manifest: CrisisManifest

    def settings(self) -> dict[str, Any]:
        """How text becomes features."""
        return {"text": self.manifest.text.model_dump(mode="json")}

    def training_shares(self) -> dict[str, float] | None:
        """Training posts of every humanitarian category; None when the manifest does not tell."""
        report = self.manifest.training.get("humanitarian", {})
        classes = report.get("out_of_fold", {}).get("classes", {})
        names = self.labels().humanitarian
        return {name: float(classes[name]["n"]) for name in names} if set(classes) == set(names) else None

    def labels(self) -> LabelSettings:
        """Labels and thresholds.

        Raises:
            BundleError: the file is missing, too large or not valid.
        """
        path = self.path / LABELS_FILE
        if (
            LABELS_FILE not in self.manifest.files
            or self.manifest.files[LABELS_FILE].bytes > MAX_LABELS_BYTES
        ):
            raise BundleError(f"{self.path} has no usable {LABELS_FILE}; export the bundle again")
        try:
            return LabelSettings.model_validate(yaml.safe_load(path.read_text(encoding="utf-8")))
        except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
            raise BundleError(f"{path} cannot be read ({error}); export the bundle again") from error
        except ValidationError as error:
            first = error.errors()[0]
            field = ".".join(map(str, first["loc"])) or "file"
            raise BundleError(f"{path}: {field} is not valid ({first['msg']}); correct it") from error
