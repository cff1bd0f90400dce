"""Sections of a bundle's ``manifest.json``, checked when they are read."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field

__all__ = [
    "EMBEDDING_GRAPHS",
    "BackboneSpec",
    "CommonManifest",
    "DefectOperatingPoint",
    "DefectsSpec",
    "FileSpec",
    "GraphSpec",
    "IdentificationCalibration",
    "IdentificationSpec",
    "Manifest",
    "PrecisionSpec",
    "Preprocessing",
    "SegmentationSpec",
    "TensorSpec",
    "graph_of_head",
]

# What the embedding of a reference image, and of a product with several, is computed by.
EMBEDDING_GRAPHS = ("backbone", "identification", "references", "reference_fusion")

_Probability = Annotated[float, Field(ge=0, le=1)]
_Side = Annotated[int, Field(gt=0, le=8192)]


def graph_of_head(head: str) -> str:
    """Name of the graph of a segmentation head: the default kind's is named after the task."""
    return "segmentation" if head == "edge" else head


class _Section(BaseModel):
    """A part of the manifest. Further keys are kept, so that a newer writer may say more."""

    model_config = ConfigDict(extra="allow", frozen=True)


class TensorSpec(_Section):
    """Name, dtype and shape of a graph input or output; dynamic sides are names."""

    name: str
    dtype: str
    shape: list[int | str]


class GraphSpec(_Section):
    """One ONNX graph."""

    file: str
    inputs: list[TensorSpec] = Field(min_length=1)
    outputs: list[TensorSpec] = Field(min_length=1)


class BackboneSpec(_Section):
    """The backbone's configuration."""

    name: str
    img_size: int = Field(gt=0, le=8192)
    patch_size: int = Field(gt=0, le=64)
    embed_dim: int = Field(gt=0, le=8192)
    parameters: int = Field(ge=0)


class Preprocessing(_Section):
    """``(image / 255 - mean) / std`` on the given channel order.

    ``fused``: the graphs do it themselves and take uint8 ``[N, H, W, 3]``.
    """

    mean: tuple[float, float, float]
    std: tuple[float, float, float]
    channel_order: Literal["RGB"]
    fused: bool = False


class SegmentationSpec(_Section):
    """Input size ``(height, width)``, labels and thresholds of a segmentation head.

    The graph of a ``cascade`` removes duplicates and gives mask probabilities itself: there, ``nms_iou`` and
    ``mask_threshold`` state what it does, while those of an ``edge`` head are applied to its outputs.
    """

    head: Literal["edge", "cascade"] = "edge"
    input_size: tuple[_Side, _Side]
    labels: tuple[str, ...] = Field(min_length=1)
    score_threshold: _Probability
    nms_iou: _Probability
    mask_threshold: float = Field(gt=0, lt=1)
    max_objects: int = Field(gt=0, le=1000)
    calibrated_on: str

    @property
    def graph(self) -> str:
        """Name of the head's graph."""
        return graph_of_head(self.head)


class IdentificationCalibration(_Section):
    """When the best product of a query is accepted, and how sure the answer is.

    ``views`` and ``gallery`` say for which queries it holds: images per query, and whether a container's manifest or
    all products are searched. A product is accepted above the similarity ``threshold``; then unknown products pass
    with a rate of at most ``false_accept``, with probability ``confidence``. ``temperature`` turns similarities into
    probabilities.
    """

    views: int = Field(ge=1, le=16)
    gallery: Literal["container", "all"]
    threshold: float = Field(ge=-1.01, le=1.01)
    temperature: float = Field(gt=0)
    false_accept: float = Field(gt=0, lt=1)
    confidence: float = Field(gt=0, lt=1)
    calibrated_on: str


class IdentificationSpec(_Section):
    """How crops for the identification graph are made, the width of its embeddings, and how answers are judged.

    ``views`` is the number of embeddings that the graph ``fusion`` takes, where there is one; ``temperature`` that of
    the training loss.
    """

    crop_size: int = Field(gt=0, le=2048)
    embedding_dim: int = Field(gt=0, le=8192)
    margin: _Probability
    background: int = Field(ge=0, le=255)
    views: int | None = Field(default=None, ge=2, le=16)
    reference_fusion: Literal["mean", "attention"] | None = None
    temperature: float | None = Field(default=None, gt=0)
    calibration: tuple[IdentificationCalibration, ...] = ()

    def calibration_for(self, views: int, *, within_manifest: bool) -> IdentificationCalibration | None:
        """The calibration for queries of so many views, or of the next larger number; None where there is none."""
        gallery = "container" if within_manifest else "all"
        fitting = [c for c in self.calibration if c.gallery == gallery and c.views >= views]
        return min(fitting, key=lambda c: c.views, default=None)

    def settings(self) -> dict[str, Any]:
        """What changes embeddings; how answers are judged does not."""
        judging = {"calibration", "temperature", "fusion_training"}
        return self.model_dump(mode="json", exclude=judging, exclude_none=True)


class DefectOperatingPoint(_Section):
    """A threshold on a defect score with the false-positive rate that it keeps at the stated confidence.

    ``unit`` is what is judged, a single image or all images of a pick; an alarm is a score above ``threshold``.
    """

    unit: Literal["image", "pick"]
    score: Literal["multi_pick", "package_defect", "combined"]
    threshold: _Probability
    fpr: float = Field(gt=0, lt=1)
    confidence: float = Field(gt=0, lt=1)
    negatives: int = Field(ge=1)
    false_alarms: int = Field(ge=0)
    fpr_bound: _Probability


class DefectsSpec(_Section):
    """How crops for the defect graphs are made, and how their logits are judged.

    ``temperature`` by unit turns logits into probabilities; ``clear_below`` by unit is the score below which a pick
    passes without another view. ``calibrated_on`` and ``calibration`` tell on what and how both were found,
    ``training`` how the head came about: its recipe among others.
    """

    crop_size: int = Field(gt=0, le=2048)
    embedding_dim: int = Field(gt=0, le=8192)
    margin: _Probability
    background: int = Field(ge=0, le=255)
    masked: bool
    labels: tuple[str, ...] = Field(min_length=2)
    temperature: dict[str, float] = Field(default_factory=dict)
    operating_points: tuple[DefectOperatingPoint, ...] = ()
    clear_below: dict[str, float] = Field(default_factory=dict)
    calibrated_on: str = ""
    calibration: dict[str, Any] = Field(default_factory=dict)
    training: dict[str, Any] = Field(default_factory=dict)

    def points(self, unit: str, score: str = "combined") -> tuple[DefectOperatingPoint, ...]:
        """Operating points of a unit and a score, the strictest first."""
        fitting = (point for point in self.operating_points if (point.unit, point.score) == (unit, score))
        return tuple(sorted(fitting, key=lambda point: point.fpr))

    def points_of(self, unit: str) -> dict[str, tuple[DefectOperatingPoint, ...]]:
        """:meth:`points` of a unit by score."""
        return {
            point.score: self.points(unit, point.score)
            for point in self.operating_points
            if point.unit == unit
        }


class PrecisionSpec(_Section):
    """How the graphs were changed from the float32 ones that they came from.

    ``reference`` is the fingerprint of the bundle with those, ``converted`` lists the graphs' files that were changed.
    ``calibration`` names the file with the images that the
    ranges of int8 were found on. ``gate`` holds what the accuracy gate measured; ``regression`` is set where it failed
    and the bundle was written nevertheless.
    """

    kind: Literal["fp32", "fp16", "bf16", "int8"]
    reference: str
    converted: tuple[str, ...] = ()
    settings: dict[str, Any] = Field(default_factory=dict)
    calibration: str | None = None
    gate: dict[str, Any] = Field(default_factory=dict)
    regression: bool = False


class FileSpec(_Section):
    """Hash and size of one file."""

    sha256: str = Field(pattern=r"^[0-9a-f]{64}$")
    bytes: int = Field(ge=0)


class CommonManifest(_Section):
    """What ``manifest.json`` of every kind of bundle holds."""

    schema_version: int
    name: str = Field(min_length=1)
    version: str
    created: str
    licence: str
    graphs: dict[str, GraphSpec]
    training: dict[str, Any] = Field(default_factory=dict)
    metrics: dict[str, Any] = Field(default_factory=dict)
    files: dict[str, FileSpec]


class Manifest(CommonManifest):
    """Contents of ``manifest.json`` of a perception model."""

    backbone: BackboneSpec
    preprocessing: Preprocessing
    segmentation: SegmentationSpec | None = None
    further_heads: tuple[SegmentationSpec, ...] = ()
    identification: IdentificationSpec | None = None
    defects: DefectsSpec | None = None
    precision: PrecisionSpec | None = None
