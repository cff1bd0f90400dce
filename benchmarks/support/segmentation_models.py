"""Models for the side-by-side training: ours and torchvision's, each with its data, losses, instances and latency."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from mca_perception.backbone import create_backbone, normalise
from mca_perception.datasets.loading import training_loader
from mca_perception.deploy.manifest import graph_of_head
from mca_perception.deploy.session import OnnxSession
from mca_perception.geometry import Letterbox, Size
from mca_perception.segmentation.cascade.data import DetectionDataset, collate
from mca_perception.segmentation.cascade.postprocess import paste_masks
from mca_perception.segmentation.cascade.targets import DetectionTargets
from mca_perception.segmentation.heads import create_task
from mca_perception.segmentation.loading import open_splits
from mca_perception.segmentation.postprocess import resize_masks, select_instances
from mca_perception.segmentation.recipe import SegmentationRecipe
from mca_perception.segmentation.validation import MIN_SCORE, Found
from mca_perception.training.graphs import export_graphs
from mca_perception.training.model import PerceptionModel
from mca_perception.training.recipe import BackboneSection, BudgetSection, OptimiserSection, Recipe

BACKBONE = "beit3_nano_patch16"
MAX_OBJECTS = 100
NMS_IOU = 0.5
# The largest object of a tote is about as large as the image: torchvision's own 32 to 512 are for 800 px.
ANCHOR_SIZES = (16, 32, 64, 128, 256)
# What torchvision's exporter supports; the dynamo exporter fails in its NMS.
TORCHVISION_OPSET = 17

Images = NDArray[np.uint8]
"""``[N, 3, H, W]`` RGB."""
Detect = Callable[[Images], list[Found]]


class Candidate(Protocol):
    """A model from random weights with its data."""

    module: nn.Module
    optimiser: OptimiserSection
    note: str
    validation: DetectionDataset

    def batches(self, seed: int) -> Iterable[Any]:
        """One pass over the training scenes."""

    def loss(self, batch: Any, device: torch.device) -> Tensor:
        """Sum of the losses of a batch."""

    def detect(self, images: Tensor) -> list[Found]:
        """Instances in uint8 images, masks at their pixels."""

    def export(self, folder: Path, threads: int) -> Detect:
        """The trained model as ONNX Runtime runs it, its graphs written to ``folder``."""


class Nano:
    """Our small BEiT-3 with the edge or the cascade head, through the tasks that ``mca train`` uses."""

    def __init__(self, recipe: SegmentationRecipe, optimiser: OptimiserSection, seed: int) -> None:
        self.recipe = recipe
        self.size: Size = recipe.input_size
        self.optimiser = optimiser
        self.backbone = create_backbone(BACKBONE)
        self.task = create_task(recipe, self.backbone.embed_dim, seed)
        self.head: Any = self.task.head
        self.is_edge = recipe.head == "edge"
        self.module = PerceptionModel(self.backbone, {"segmentation": self.task.head})
        validation = self.task.validation
        self.validation = (
            validation if isinstance(validation, DetectionDataset) else DetectionDataset(validation)
        )
        self.batches = self.task.batches
        self.note = f"{BACKBONE}, AdamW {optimiser.lr:g}"

    def loss(self, batch: Any, device: torch.device) -> Tensor:
        """Sum of the task's losses."""
        return torch.stack(list(self.task.losses(self.backbone, batch, device).values())).sum()

    def detect(self, images: Tensor) -> list[Found]:
        """Instances of the head."""
        device = next(self.backbone.parameters()).device
        pixels = normalise(images, device, self.backbone.normalisation)
        features = self.backbone(pixels)["encoder_out"]
        if self.is_edge:
            outputs = (output.cpu().numpy() for output in self.head.predict(features, pixels))
            return [edge_instances(*arrays, self.size) for arrays in zip(*outputs, strict=True)]
        return [
            (
                found.scores.cpu().numpy(),
                found.labels.cpu().numpy(),
                paste_masks(found.masks.cpu().numpy(), found.boxes.cpu().numpy(), self.size),
            )
            for found in self.head.detect(features, self.size)
        ]

    def export(self, folder: Path, threads: int) -> Detect:
        """The graphs of a model bundle: the backbone, and the head with its tokens as input."""
        recipe = Recipe(
            name="nano",
            backbone=BackboneSection(name=BACKBONE),
            segmentation=self.recipe,
            budget=BudgetSection(max_steps=1),
        )
        entries, _ = export_graphs(recipe, self.module, folder)
        backbone, head = (
            OnnxSession(
                folder / entries[name]["file"],
                providers=["CPUExecutionProvider"],
                intra_op_threads=threads,
            )
            for name in ("backbone", graph_of_head(self.recipe.head))
        )
        normalisation = self.backbone.normalisation
        mean, std = (np.asarray(values, np.float32)[:, None, None] * 255 for values in normalisation)

        def detect(images: Images) -> list[Found]:
            pixels = ((images - mean) / std).astype(np.float32)
            features = backbone.run({"images": pixels})["features"]
            if self.is_edge:
                found = head.run({"features": features, "images": pixels})
                outputs = (found[name] for name in ("scores", "labels", "mask_logits"))
                return [edge_instances(*arrays, self.size) for arrays in zip(*outputs, strict=True)]
            threshold = np.full(1, MIN_SCORE, np.float32)
            found = head.run({"features": features, "score_threshold": threshold})
            return [
                (found["scores"], found["labels"], paste_masks(found["masks"], found["boxes"], self.size))
            ]

        return detect


def edge_instances(
    scores: NDArray[np.float32], labels: NDArray[np.int64], logits: NDArray[np.float32], size: Size
) -> Found:
    """The edge head's outputs without duplicates, masks ``[K, H, W]`` at the input's pixels."""
    labels = labels.astype(np.int64)
    kept = select_instances(
        scores, labels, logits, score_threshold=MIN_SCORE, nms_iou=NMS_IOU, max_objects=MAX_OBJECTS
    )
    masks = np.zeros((len(kept), *size), np.bool_)
    windows = resize_masks(logits[kept], Letterbox.fit(size, size))
    for mask, (rows, columns, values) in zip(masks, windows, strict=True):
        mask[rows, columns] = values > 0
    return scores[kept], labels[kept], masks


class MaskRcnn:
    """Torchvision's Mask R-CNN from random weights, its batch normalisation trained, its input never resized."""

    def __init__(
        self, backbone: str, recipe: SegmentationRecipe, optimiser: OptimiserSection, seed: int, rois: int
    ) -> None:
        self.recipe = recipe
        self.optimiser = optimiser
        self.module = build_mask_rcnn(backbone, recipe, rois)
        splits = open_splits(recipe, seed)
        self.dataset, self.validation = DetectionDataset(splits.train), DetectionDataset(splits.validation)
        self.note = (
            f"{backbone}, FPN, BatchNorm trained, anchors {ANCHOR_SIZES[0]}-{ANCHOR_SIZES[-1]} px, "
            f"{rois} regions per image in training, AdamW {optimiser.lr:g}"
        )

    def batches(self, seed: int) -> Iterable[tuple[Tensor, list[DetectionTargets]]]:
        """The same scenes in the same order as ours."""
        return training_loader(
            self.dataset,
            self.recipe.batch_size,
            seed=seed,
            workers=self.recipe.workers,
            collate=collate,
        )

    def loss(self, batch: tuple[Tensor, list[DetectionTargets]], device: torch.device) -> Tensor:
        """Sum of torchvision's losses; its class 0 is background."""
        images, truths = batch
        targets = [
            {"boxes": truth.boxes, "labels": truth.labels + 1, "masks": truth.masks.to(torch.uint8)}
            for truth in (truth.to(device) for truth in truths)
        ]
        return torch.stack(list(self.module(self._inputs(images, device), targets).values())).sum()

    def detect(self, images: Tensor) -> list[Found]:
        """Instances above the score threshold that all models share."""
        device = next(self.module.parameters()).device
        return [
            torchvision_instances(*(found[name].cpu().numpy() for name in ("scores", "labels", "masks")))
            for found in self.module(self._inputs(images, device))
        ]

    @staticmethod
    def _inputs(images: Tensor, device: torch.device) -> list[Tensor]:
        return list(images.to(device).float() / 255)

    def export(self, folder: Path, threads: int) -> Detect:
        """One graph with torchvision's NMS, RoIAlign and mask pasting inside."""
        path = folder / "mask_rcnn.onnx"
        names = ["boxes", "labels", "scores", "masks"]
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            torch.onnx.export(
                self.module,
                ([torch.rand(3, *self.recipe.input_size)],),
                str(path),
                input_names=["image"],
                output_names=names,
                opset_version=TORCHVISION_OPSET,
                dynamo=False,
            )
        session = OnnxSession(path, providers=["CPUExecutionProvider"], intra_op_threads=threads)

        def detect(images: Images) -> list[Found]:
            outputs = [session.run({"image": image.astype(np.float32) / 255}) for image in images]
            return [torchvision_instances(o["scores"], o["labels"], o["masks"]) for o in outputs]

        return detect


def torchvision_instances(
    scores: NDArray[np.float32], labels: NDArray[np.int64], masks: NDArray[np.float32]
) -> Found:
    """Torchvision's detections with labels from 0 and binary masks."""
    return scores, labels - 1, masks[:, 0] > 0.5


def build_mask_rcnn(backbone: str, recipe: SegmentationRecipe, rois: int) -> nn.Module:
    """Torchvision's detector for a fixed input size; it has no Mask R-CNN on MobileNet ready-made."""
    from torchvision.models.detection import MaskRCNN
    from torchvision.models.detection.anchor_utils import AnchorGenerator
    from torchvision.models.detection.backbone_utils import mobilenet_backbone, resnet_fpn_backbone
    from torchvision.models.detection.transform import GeneralizedRCNNTransform

    class SameSize(GeneralizedRCNNTransform):  # type: ignore[misc]
        """Normalises and stacks; scenes have the network's size already."""

        def resize(self, image: Tensor, target: Any = None) -> tuple[Tensor, Any]:
            return image, target

    if backbone == "resnet50":
        sizes: tuple[tuple[int, ...], ...] = tuple((size,) for size in ANCHOR_SIZES)
        body = resnet_fpn_backbone(
            backbone_name=backbone, weights=None, norm_layer=nn.BatchNorm2d, trainable_layers=5
        )
    else:
        sizes = (
            ANCHOR_SIZES,
        ) * 3  # as torchvision's Faster R-CNN on it: every size on each of its three maps
        body = mobilenet_backbone(
            backbone_name=backbone, weights=None, fpn=True, norm_layer=nn.BatchNorm2d, trainable_layers=6
        )
    model = MaskRCNN(
        body,
        num_classes=1 + len(recipe.labels),
        rpn_anchor_generator=AnchorGenerator(sizes, ((0.5, 1.0, 2.0),) * len(sizes)),
        box_batch_size_per_image=rois,
        box_score_thresh=MIN_SCORE,
        box_nms_thresh=NMS_IOU,
        box_detections_per_img=MAX_OBJECTS,
    )
    old = model.transform
    model.transform = SameSize(old.min_size, old.max_size, old.image_mean, old.image_std)
    return model
