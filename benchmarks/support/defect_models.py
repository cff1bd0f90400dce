"""Models for the side-by-side training on defect images: torchvision's ResNets under our head, and any in one judge."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from mca_perception.backbone import Backbone, normalise
from mca_perception.backbone.protocol import Normalisation
from mca_perception.datasets.armbench_defects import LABELS
from mca_perception.defects.task import DefectTask
from mca_perception.deploy.manifest import DefectsSpec
from mca_perception.errors import BackboneError
from mca_perception.pipeline.inspection import MAX_CROPS_AT_ONCE, DefectInspector
from mca_perception.training.recipe import Recipe

IMAGENET = Normalisation((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))


class ResNet(Backbone):
    """A ResNet of torchvision from random weights; the cells of its last map are the patches, their mean the CLS."""

    modalities = ("vision",)
    normalisation = IMAGENET
    patch_size = 32

    def __init__(self, name: str, img_size: int) -> None:
        super().__init__()
        from torchvision import models

        whole = models.get_model(name, weights=None)
        self.embed_dim: int = whole.fc.in_features
        self.img_size = img_size
        self.body = nn.Sequential(*list(whole.children())[:-2])

    def forward(
        self,
        images: Tensor | None = None,
        text_ids: Tensor | None = None,
        text_padding_mask: Tensor | None = None,
    ) -> dict[str, Tensor]:
        """Encode images; see :meth:`.Backbone.forward`.

        Raises:
            BackboneError: there are no images.
        """
        if images is None:
            raise BackboneError("a ResNet reads images only")
        cells = self.body(images).flatten(2).transpose(1, 2)
        return {"encoder_out": torch.cat([cells.mean(dim=1, keepdim=True), cells], dim=1)}


class TrainedInspector(DefectInspector):
    """The inspector of a bundle, with modules in place of its graphs."""

    def __init__(self, backbone: Backbone, task: DefectTask, recipe: Recipe) -> None:
        self.backbone, self.head = backbone.eval(), task.head.eval()
        self.settings = DefectsSpec.model_validate(
            {
                "crop_size": task.config.crop_size,
                "embedding_dim": task.config.hidden_dim,
                "margin": task.config.margin,
                "background": task.config.background,
                "masked": task.config.masked,
                "labels": LABELS,
                "training": {"recipe": recipe.model_dump(mode="json")},
            }
        )

    def take(self, calibration: dict[str, Any]) -> None:
        """Decide with these temperatures and thresholds from now on."""
        self.settings = DefectsSpec.model_validate({**self.settings.model_dump(), **calibration})

    @torch.inference_mode()
    def judge_crops(self, crops: NDArray[np.uint8]) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
        """Logits and evidence of crops; see :meth:`.DefectInspector.judge_crops`."""
        device, parts = torch.device("cpu"), []
        for start in range(0, len(crops), MAX_CROPS_AT_ONCE):
            part = crops[start : start + MAX_CROPS_AT_ONCE].transpose(0, 3, 1, 2).copy()
            images = normalise(torch.from_numpy(part), device, self.backbone.normalisation)
            parts.append(self.head(self.backbone(images)["encoder_out"], images))
        logits, evidence = (torch.cat(rows).numpy() for rows in zip(*parts, strict=True))
        return logits, evidence

    @torch.inference_mode()
    def judge_views(self, evidence: Any) -> NDArray[np.float32]:
        """Logits of picks; see :meth:`.DefectInspector.judge_views`."""
        rows = nn.utils.rnn.pad_sequence([torch.from_numpy(part) for part in evidence], batch_first=True)
        present = torch.arange(rows.shape[1]) < torch.tensor([len(part) for part in evidence])[:, None]
        return np.asarray(self.head.views(rows, present).numpy(), np.float32)
