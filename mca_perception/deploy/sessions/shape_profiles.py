"""Which shapes a graph of a bundle is run with: engines that are built for shapes need to know beforehand."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from threading import Lock
from typing import Any, Generic, TypeVar

from numpy.typing import NDArray

from mca_perception.deploy.bundle import Bundle
from mca_perception.deploy.manifest import Manifest, TensorSpec
from mca_perception.errors import BundleError

__all__ = [
    "MAX_CROPS",
    "TYPICAL_CROPS",
    "OfUsualShapes",
    "Profile",
    "Shapes",
    "profiles_of",
    "usual_shapes_of",
]

MAX_CROPS = 64
"""Crops that a pipeline passes at once, at most."""

TYPICAL_CROPS = 8
"""Number of crops that engines are tuned for."""

Shape = tuple[int, ...]
Shapes = Mapping[str, Shape]
"""Shapes by the name of a graph's input."""

Opened = TypeVar("Opened")


@dataclass(frozen=True)
class Profile:
    """Smallest, typical and largest shape of every input."""

    shapes: Mapping[str, tuple[Shape, Shape, Shape]]

    def holds(self, shapes: Mapping[str, Sequence[int]]) -> bool:
        """Whether inputs of these shapes lie within."""
        return all(
            len(shape) == len(self.shapes[name][0])
            and all(
                low <= side <= high
                for low, side, high in zip(self.shapes[name][0], shape, self.shapes[name][2], strict=True)
            )
            for name, shape in shapes.items()
        )

    def as_lists(self) -> dict[str, list[list[int]]]:
        """For keys and messages."""
        return {name: [list(shape) for shape in shapes] for name, shapes in sorted(self.shapes.items())}


class OfUsualShapes(Generic[Opened]):
    """What a back end opens for single shapes, each when it comes for the first time; safe in several threads."""

    def __init__(self, usual: Sequence[Shapes], open_for: Callable[[Shapes], Opened]) -> None:
        """Open nothing yet.

        Args:
            usual: the shapes of all inputs that are worth it.
            open_for: opens the graph for such shapes.
        """
        self._usual = [dict(shapes) for shapes in usual]
        self._open_for = open_for
        self._opened: dict[frozenset[tuple[str, Shape]], Opened] = {}
        self._lock = Lock()

    def get(self, arrays: Mapping[str, NDArray[Any]]) -> Opened | None:
        """What was opened for the shapes of these inputs; None when they are not usual."""
        shapes = {name: array.shape for name, array in arrays.items()}
        if shapes not in self._usual:
            return None
        key = frozenset(shapes.items())
        with self._lock:
            if key not in self._opened:
                self._opened[key] = self._open_for(shapes)
            return self._opened[key]


def usual_shapes_of(bundle: Bundle, graph: str) -> list[Shapes]:
    """Shapes of a graph's inputs that come with every image, where height and width would be free.

    What a runtime finds out from them, such as the interpolated position table, it need not compute for every image.
    """
    if all(isinstance(side, int) for t in bundle.manifest.graphs[graph].inputs for side in t.shape[1:]):
        return []
    try:
        profiles = profiles_of(bundle, graph)
    except BundleError:  # the manifest does not tell
        return []
    return [
        {name: lowest for name, (lowest, _, _) in profile.shapes.items()}
        for profile in profiles
        if all(lowest == highest for lowest, _, highest in profile.shapes.values())
    ]


def profiles_of(bundle: Bundle, graph: str) -> list[Profile]:
    """Profiles of a graph: one image of every segmentation head's size, and up to 64 crops of every crop size.

    Raises:
        BundleError: an input has a dynamic side whose size the manifest does not tell, or an output's size depends on
            what the image shows.
    """
    manifest = bundle.manifest
    if not isinstance(manifest, Manifest):
        raise BundleError(f"{bundle.path} is no perception model; choose onnxruntime-cpu")
    spec = manifest.graphs[graph]
    heads = [head for head in (manifest.segmentation, *manifest.further_heads) if head is not None]
    if any(head.graph == graph and head.head == "cascade" for head in heads):
        raise BundleError(
            f"graph {graph!r} gives as many boxes as it finds, which a fixed buffer cannot take; choose "
            "onnxruntime-cuda for the cascade head, or the edge head"
        )
    crop_sizes = {part.crop_size for part in (manifest.identification, manifest.defects) if part is not None}
    scenes = [(head.input_size, (1, 1, 1)) for head in heads if graph in ("backbone", head.graph)]
    crops = [((side, side), (1, TYPICAL_CROPS, MAX_CROPS)) for side in sorted(crop_sizes)]
    names = {head.graph for head in heads}
    cases = scenes if graph in names else [*scenes, *crops] if graph == "backbone" else crops
    profiles = []
    for (height, width), batches in dict.fromkeys(cases):
        tokens = (height // manifest.backbone.patch_size) * (width // manifest.backbone.patch_size) + 1
        sides = {"images": (height, width), "features": (tokens,)}
        profiles.append(
            Profile({t.name: _shapes(bundle, graph, t, batches, sides.get(t.name, ())) for t in spec.inputs})
        )
    return profiles


def _shapes(
    bundle: Bundle, graph: str, tensor: TensorSpec, batches: Sequence[int], sides: Sequence[int]
) -> tuple[Shape, Shape, Shape]:
    """Shapes of an input for three batch sizes; the first side is the batch, ``sides`` are the next dynamic ones."""
    channels_or_fixed = list(tensor.shape[1:])
    channels_first = tensor.name == "images" and tensor.dtype != "uint8"
    for place, side in enumerate(sides):
        channels_or_fixed[place + 1 if channels_first else place] = side
    unknown = [side for side in channels_or_fixed if not isinstance(side, int)]
    if unknown:
        raise BundleError(
            f"{bundle.path}: side {unknown[0]!r} of input {tensor.name!r} of graph {graph!r} may have any size; "
            "choose onnxruntime-cuda for it"
        )
    rest = tuple(int(side) for side in channels_or_fixed)
    low, typical, high = ((batch, *rest) for batch in batches)
    return low, typical, high
