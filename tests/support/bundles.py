"""A real model bundle that needs no training: it finds saturated colours on grey and embeds mean colour.

Its graphs have the names, inputs and outputs of a trained bundle and run in ONNX Runtime, so that everything
around the network can be proven against drawn truth.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import cv2
import numpy as np
import onnx
from numpy.typing import NDArray

from mca_perception.deploy.bundle import ModelBundle, write_bundle

PALETTE = {
    "red": (255, 0, 0),
    "green": (0, 255, 0),
    "blue": (0, 0, 255),
    "yellow": (255, 255, 0),
    "magenta": (255, 0, 255),
    "cyan": (0, 255, 255),
}
BACKGROUND = 127
_COLOURS = ", ".join(str(2.0 * (value > 0) - 1.0) for colour in PALETTE.values() for value in colour)

# A patch is its mean colour; the class token is the mean of the patches.
_TOKENS = """
<ir_version: 9, opset_import: ["" : 17]>
backbone (float[N, 3, H, W] images) => (float[N, L, 3] features) {
  patches = AveragePool <kernel_shape = [16, 16], strides = [16, 16]> (images)
  flat_shape = Constant <value = int64[3] {0, 0, -1}> ()
  flat = Reshape (patches, flat_shape)
  tokens = Transpose <perm = [0, 2, 1]> (flat)
  cls = ReduceMean <axes = [1], keepdims = 1> (tokens)
"""
_BACKBONE = f"""{_TOKENS}
  features = Concat <axis = 1> (cls, tokens)
}}
"""

# One mask per colour: the logit is linear in the covered part of a stride-4 cell, and 0 at half of it.
_SEGMENTATION = """
<ir_version: 9, opset_import: ["" : 17]>
segmentation (float[N, L, 3] features, float[N, 3, H, W] images)
    => (float[N, 6] scores, int64[N, 6] labels, float[N, 6, h, w] mask_logits) {
  colours = Constant <value = float[1, 6, 3, 1, 1] {COLOURS}> ()
  one_axis = Constant <value = int64[1] {1}> ()
  two_axis = Constant <value = int64[1] {2}> ()
  zero = Constant <value = float {0.0}> ()
  one = Constant <value = float {1.0}> ()
  half = Constant <value = float {1.5}> ()
  prior = Constant <value = float[6] {0.95, 0.9, 0.85, 0.8, 0.75, 0.7}> ()
  count = Constant <value = int64[1] {6}> ()
  nothing = Constant <value = int64 {0}> ()
  expanded = Unsqueeze (images, one_axis)
  difference = Sub (expanded, colours)
  magnitude = Abs (difference)
  distance = ReduceSum <keepdims = 0> (magnitude, two_axis)
  cells = AveragePool <kernel_shape = [4, 4], strides = [4, 4]> (distance)
  logits = Sub (half, cells)
  peak = ReduceMax <axes = [2, 3], keepdims = 0> (logits)
  presence = Clip (peak, zero, one)
  confidence = Mul (presence, prior)
  scores, order = TopK (confidence, count)
  index = Unsqueeze (order, two_axis)
  mask_logits = GatherND <batch_dims = 1> (logits, index)
  labels = Mul (order, nothing)
}
"""

_IDENTIFICATION = """
<ir_version: 9, opset_import: ["" : 17]>
identification (float[N, L, 3] features) => (float[N, 4] embeddings) {
  first = Constant <value = int64 {0}> ()
  pads = Constant <value = int64[4] {0, 0, 0, 1}> ()
  constant = Constant <value = float {0.05}> ()
  cls = Gather <axis = 1> (features, first)
  padded = Pad (cls, pads, constant)
  embeddings = LpNormalization <axis = 1, p = 2> (padded)
}
"""

# Two objects at fixed places, as a cascade's graph gives them: those above the threshold.
_CASCADE = """
<ir_version: 9, opset_import: ["" : 17]>
cascade (float[1, L, 3] features, float[1] score_threshold)
    => (float[M] scores, int64[M] labels, float[M, 4] boxes, float[M, 28, 28] masks) {
  every_score = Constant <value = float[2] {0.75, 0.5}> ()
  every_box = Constant <value = float[2, 4] {0.0, 0.0, 160.0, 128.0, 160.0, 128.0, 320.0, 256.0}> ()
  every_label = Constant <value = int64[2] {0, 0}> ()
  last = Constant <value = int64[1] {-1}> ()
  one = Constant <value = float {1.0}> ()
  side = Constant <value = int64[2] {28, 28}> ()
  confident = Greater (every_score, score_threshold)
  places = NonZero (confident)
  flat = Reshape (places, last)
  scores = Gather (every_score, flat)
  labels = Gather (every_label, flat)
  boxes = Gather (every_box, flat)
  count = Shape (scores)
  shape = Concat <axis = 0> (count, side)
  masks = Expand (one, shape)
}
"""

# The mean of the views that are present.
_FUSION = """
<ir_version: 9, opset_import: ["" : 17]>
fusion (float[N, 3, 4] embeddings, bool[N, 3] present) => (float[N, 4] fused) {
  axis = Constant <value = int64[1] {1}> ()
  last = Constant <value = int64[1] {2}> ()
  weights = Cast <to = 1> (present)
  column = Unsqueeze (weights, last)
  there = Mul (embeddings, column)
  total = ReduceSum <keepdims = 0> (there, axis)
  fused = LpNormalization <axis = 1, p = 2> (total)
}
"""

# Red is several products, blue an opened package, green nominal: the logits are the crop's mean colour, enlarged.
_DEFECTS = """
<ir_version: 9, opset_import: ["" : 17]>
defects (float[N, L, 3] features) => (float[N, 3] logits, float[N, 3] evidence) {
  first = Constant <value = int64 {0}> ()
  order = Constant <value = int64[3] {1, 0, 2}> ()
  scale = Constant <value = float {8.0}> ()
  cls = Gather <axis = 1> (features, first)
  evidence = Gather <axis = 1> (cls, order)
  logits = Mul (evidence, scale)
}
"""

# The largest evidence of the views that are present.
_DEFECT_VIEWS = """
<ir_version: 9, opset_import: ["" : 17]>
defect_views (float[N, V, 3] evidence, bool[N, V] present) => (float[N, 3] logits) {
  last = Constant <value = int64[1] {2}> ()
  axis = Constant <value = int64[1] {1}> ()
  least = Constant <value = float {-1.0}> ()
  scale = Constant <value = float {8.0}> ()
  there = Unsqueeze (present, last)
  counted = Where (there, evidence, least)
  largest = ReduceMax <axes = [1], keepdims = 0> (counted)
  logits = Mul (largest, scale)
}
"""

# The colour bundle's backbone. A scene whose last pixel is white takes it thousands of rounds of a loop; an image that
# is white all over makes it ask for 64 TiB.
_UNEVEN_BACKBONE = (
    _TOKENS
    + """
  plain = Concat <axis = 1> (cls, tokens)
  nearly = Constant <value = float {0.99}> ()
  one = Constant <value = int64[1] {1}> ()
  zero = Constant <value = float {0.0}> ()
  go_on = Constant <value = bool {1}> ()

  start = Constant <value = int64[3] {0, -1, -1}> ()
  end = Constant <value = int64[3] {1, 9223372036854775807, 9223372036854775807}> ()
  axes = Constant <value = int64[3] {0, 2, 3}> ()
  corner = Slice (images, start, end, axes)
  corner_least = ReduceMin <keepdims = 0> (corner)
  is_slow = Greater (corner_least, nearly)
  slow = Cast <to = 7> (is_slow)
  many = Constant <value = int64 {4000}> ()
  rounds = Mul (slow, many)
  idle = Loop (rounds, go_on, zero) <body = work (int64 i, bool go, float value) => (bool go_out, float value_out) {
    go_out = Identity (go)
    value_out = Sin (value)
  }>

  least = ReduceMin <keepdims = 0> (images)
  is_white = Greater (least, nearly)
  white = Cast <to = 7> (is_white)
  much = Constant <value = int64 {17592186044416}> ()
  more = Mul (white, much)
  length = Add (more, one)
  block = ConstantOfShape (length)
  nothing = ReduceSum <keepdims = 0> (block)
  busy = Add (nothing, idle)
  features = Add (plain, busy)
}
"""
)

OPERATING_POINTS = {0.01: 0.9, 0.05: 0.5}
"""Thresholds of the colour bundle's defect head by false-positive rate."""


def _graph(text: str) -> bytes:
    model = onnx.parser.parse_model(text.replace("COLOURS", _COLOURS))
    onnx.checker.check_model(model, full_check=True)
    return model.SerializeToString()


def _tensors(specs: dict[str, tuple[str, list[int | str]]]) -> list[dict[str, Any]]:
    return [{"name": name, "dtype": dtype, "shape": shape} for name, (dtype, shape) in specs.items()]


def manifest_fields(input_size: tuple[int, int] = (256, 320), crop_size: int = 32) -> dict[str, Any]:
    """Manifest of the colour bundle, as `write_bundle` takes it."""
    images = ("float32", ["N", 3, "H", "W"])
    features = ("float32", ["N", "L", 3])
    graphs = {
        "backbone": ({"images": images}, {"features": features}),
        "segmentation": (
            {"features": features, "images": images},
            {
                "scores": ("float32", ["N", 6]),
                "labels": ("int64", ["N", 6]),
                "mask_logits": ("float32", ["N", 6, "h", "w"]),
            },
        ),
        "identification": ({"features": features}, {"embeddings": ("float32", ["N", 4])}),
    }
    return {
        "name": "colours",
        "version": "1",
        "created": "2026-01-01T00:00:00Z",
        "licence": "Apache-2.0",
        "backbone": {
            "name": "mean-colour",
            "img_size": 224,
            "patch_size": 16,
            "embed_dim": 3,
            "parameters": 0,
        },
        "preprocessing": {"mean": [0.5] * 3, "std": [0.5] * 3, "channel_order": "RGB"},
        "graphs": {
            name: {"file": f"{name}.onnx", "inputs": _tensors(inputs), "outputs": _tensors(outputs)}
            for name, (inputs, outputs) in graphs.items()
        },
        "segmentation": {
            "input_size": list(input_size),
            "labels": ["Object"],
            "score_threshold": 0.3,
            "nms_iou": 0.5,
            "mask_threshold": 0.5,
            "max_objects": 100,
            "calibrated_on": "nothing",
        },
        "identification": {"crop_size": crop_size, "embedding_dim": 4, "margin": 0.1, "background": 127},
    }


def bundle_files() -> dict[str, bytes]:
    """Content of the colour bundle's files by name."""
    return {
        "backbone.onnx": _graph(_BACKBONE),
        "segmentation.onnx": _graph(_SEGMENTATION),
        "identification.onnx": _graph(_IDENTIFICATION),
        "weights.safetensors": b"none",
        "README.md": b"# Colours\n",
    }


def write_colour_bundle(directory: Path, **sections: dict[str, Any]) -> ModelBundle:
    """Write the colour bundle; ``sections`` change single keys of a manifest section."""
    fields = manifest_fields()
    for section, changes in sections.items():
        fields[section] = {**fields[section], **changes}
    return write_bundle(directory, fields, bundle_files())


def write_uneven_bundle(directory: Path, *, name: str = "colours") -> ModelBundle:
    """Write the colour bundle for 96 x 160; slow where the last pixel is white, without memory for white images."""
    files = {**bundle_files(), "backbone.onnx": _graph(_UNEVEN_BACKBONE)}
    return write_bundle(directory, {**manifest_fields((96, 160)), "name": name}, files)


def write_two_headed_bundle(directory: Path) -> ModelBundle:
    """Write the colour bundle with a cascade head beside its own; it finds two boxes whatever the image."""
    fields = manifest_fields()
    fields["graphs"]["cascade"] = {
        "file": "cascade.onnx",
        "inputs": _tensors(
            {"features": ("float32", [1, "L", 3]), "score_threshold": ("float32", [1])},
        ),
        "outputs": _tensors(
            {
                "scores": ("float32", ["M"]),
                "labels": ("int64", ["M"]),
                "boxes": ("float32", ["M", 4]),
                "masks": ("float32", ["M", 28, 28]),
            }
        ),
    }
    fields["further_heads"] = [{**fields["segmentation"], "head": "cascade", "score_threshold": 0.6}]
    return write_bundle(directory, fields, {**bundle_files(), "cascade.onnx": _graph(_CASCADE)})


def write_fusing_bundle(directory: Path) -> ModelBundle:
    """Write the colour bundle with a graph that joins three views to their mean."""
    fields, files = manifest_fields(), {**bundle_files(), "fusion.onnx": _graph(_FUSION)}
    fields["identification"]["views"] = 3
    inputs = {"embeddings": ("float32", ["N", 3, 4]), "present": ("bool", ["N", 3])}
    fields["graphs"]["fusion"] = {
        "file": "fusion.onnx",
        "inputs": _tensors(inputs),
        "outputs": _tensors({"fused": ("float32", ["N", 4])}),
    }
    return write_bundle(directory, fields, files)


def write_inspecting_bundle(directory: Path, *, only: bool = False, name: str = "") -> ModelBundle:
    """Write the colour bundle with a calibrated defect head: red is a multi-pick, blue a package defect.

    Args:
        directory: bundle folder.
        only: leave out the heads that find and identify objects.
        name: of the model, to tell it from others that do the same.
    """
    fields = manifest_fields()
    fields["name"] = name or fields["name"]
    outputs = {"logits": ("float32", ["N", 3]), "evidence": ("float32", ["N", 3])}
    graphs = {
        "defects": ({"features": ("float32", ["N", "L", 3])}, outputs),
        "defect_views": (
            {"evidence": ("float32", ["N", "V", 3]), "present": ("bool", ["N", "V"])},
            {"logits": ("float32", ["N", 3])},
        ),
    }
    for name, (inputs, results) in graphs.items():
        fields["graphs"][name] = {
            "file": f"{name}.onnx",
            "inputs": _tensors(inputs),
            "outputs": _tensors(results),
        }
    facts = {"confidence": 0.95, "negatives": 1000, "false_alarms": 1}
    fields["defects"] = {
        "crop_size": fields["identification"]["crop_size"],
        "embedding_dim": 3,
        "margin": fields["identification"]["margin"],
        "background": BACKGROUND,
        "masked": True,
        "labels": ["nominal", "multi_pick", "package_defect"],
        "temperature": {"image": 1.0, "pick": 1.0},
        "operating_points": [
            {
                "unit": unit,
                "score": "combined",
                "threshold": threshold,
                "fpr": fpr,
                "fpr_bound": fpr,
                **facts,
            }
            for unit in ("image", "pick")
            for fpr, threshold in OPERATING_POINTS.items()
        ],
        "clear_below": {"pick": 0.3, "image": 0.3},
    }
    files = {"defects.onnx": _graph(_DEFECTS), "defect_views.onnx": _graph(_DEFECT_VIEWS), **bundle_files()}
    for head in ("segmentation", "identification") if only else ():
        del fields[head], fields["graphs"][head], files[f"{head}.onnx"]
    return write_bundle(directory, fields, files)


def draw_tote(
    image_size: tuple[int, int], rectangles: dict[str, tuple[float, float, float, float]]
) -> tuple[NDArray[np.uint8], dict[str, NDArray[np.bool_]]]:
    """Draw colour rectangles, given as fractions x1, y1, x2, y2 of the image, on grey.

    Returns:
        The image uint8 ``[H, W, 3]`` RGB and the mask of every colour.
    """
    height, width = image_size
    image = np.full((height, width, 3), BACKGROUND, np.uint8)
    masks = {}
    for name, (x1, y1, x2, y2) in rectangles.items():
        mask = np.zeros(image_size, bool)
        mask[round(y1 * height) : round(y2 * height), round(x1 * width) : round(x2 * width)] = True
        image[mask] = PALETTE[name]
        masks[name] = mask
    return image, masks


def reference_photo(name: str, side: int = 60) -> NDArray[np.uint8]:
    """A product of one colour, round, on white."""
    image = np.full((side, side, 3), 255, np.uint8)
    cv2.circle(image, (side // 2, side // 2), side // 3, PALETTE[name], -1)
    return image
