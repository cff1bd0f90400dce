"""The same weights for another input size of the scene."""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import cast

import torch

from mca_perception.deploy.bundle import ModelBundle, write_bundle
from mca_perception.errors import BundleError
from mca_perception.training.graphs import Predict, export_segmentation
from mca_perception.training.torch_sessions import built_module

__all__ = ["resize_bundle"]

GRAPH = "segmentation"
MAX_SIDE = 2048


def resize_bundle(bundle: ModelBundle, input_size: tuple[int, int], directory: Path) -> ModelBundle:
    """Write a bundle whose segmentation sees scenes at another size; everything else stays as it is.

    Position tables are interpolated. Neither the weights nor the score threshold were made for the new size: measured
    figures are left out of the new bundle, and where its threshold comes from is said.

    Args:
        bundle: with the graph and the weights of an edge head.
        input_size: ``(height, width)`` of the network in pixels, multiples of the patch size.
        directory: bundle folder to write, replaced as a whole.

    Raises:
        BundleError: the bundle has no edge head, or its weights cannot be used.
        RecipeError: the graph does not reproduce the model.
    """
    manifest = bundle.manifest
    if manifest.segmentation is None or GRAPH not in manifest.graphs:
        raise BundleError(f"{bundle.path} has no edge head to make for another size; train one for that size")
    _check_size(input_size, manifest.backbone.patch_size)
    backbone, head = built_module(bundle, "backbone"), cast(Predict, built_module(bundle, GRAPH))
    fields = manifest.model_dump(mode="json", exclude_none=True, exclude={"files", "schema_version"})
    old = manifest.segmentation.input_size
    with tempfile.TemporaryDirectory() as folder:
        images = torch.rand(2, 3, *input_size) * 2 - 1
        entry, _ = export_segmentation(backbone, head, images, Path(folder))
        fields["graphs"][GRAPH] = entry
        fields["segmentation"]["input_size"] = list(input_size)
        fields["segmentation"]["calibrated_on"] += f", at {old[1]} x {old[0]}"
        fields["training"]["recipe"]["segmentation"]["input_size"] = list(input_size)
        fields["metrics"] = {}
        files: dict[str, str | Path | bytes] = {file: bundle.path / file for file in manifest.files}
        files[entry["file"]] = Path(folder) / entry["file"]
        return write_bundle(directory, fields, files)


def _check_size(input_size: tuple[int, int], patch: int) -> None:
    for side in input_size:
        if not (2 * patch <= side <= MAX_SIDE and side % patch == 0):
            raise BundleError(
                f"input size {input_size[1]} x {input_size[0]}: sides must be multiples of {patch} from {2 * patch} to "
                f"{MAX_SIDE}"
            )
