"""A model bundle that sees nothing and takes no time: what remains is transport and conversion. Needs onnx."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from mca_perception.deploy.bundle import write_bundle

_BACKBONE = """
<ir_version: 9, opset_import: ["" : 17]>
backbone (float[N, 3, H, W] images) => (float[N, L, 3] features) {
  start = Constant <value = int64[2] {0, 0}> ()
  end = Constant <value = int64[2] {1, 1}> ()
  axes = Constant <value = int64[2] {2, 3}> ()
  corner = Slice (images, start, end, axes)
  shape = Constant <value = int64[3] {0, 1, 3}> ()
  features = Reshape (corner, shape)
}
"""
_SEGMENTATION = """
<ir_version: 9, opset_import: ["" : 17]>
segmentation (float[N, L, 3] features, float[N, 3, H, W] images)
    => (float[N, 1] scores, int64[N, 1] labels, float[N, 1, h, w] mask_logits) {
  zero = Constant <value = float {0.0}> ()
  one_axis = Constant <value = int64[1] {1}> ()
  none = Mul (features, zero)
  sum = ReduceSum <keepdims = 0> (none, one_axis)
  scores = ReduceMax <axes = [1], keepdims = 1> (sum)
  labels = Cast <to = 7> (scores)
  start = Constant <value = int64[3] {0, 0, 0}> ()
  end = Constant <value = int64[3] {1, 64, 80}> ()
  axes = Constant <value = int64[3] {1, 2, 3}> ()
  mask_logits = Slice (images, start, end, axes)
}
"""


def write_null_model(folder: Path) -> Path:
    """Write the bundle; its input is that of nano, 256 x 320."""
    import onnx

    images = {"name": "images", "dtype": "float32", "shape": ["N", 3, "H", "W"]}
    features = {"name": "features", "dtype": "float32", "shape": ["N", "L", 3]}
    outputs = [
        {"name": "scores", "dtype": "float32", "shape": ["N", 1]},
        {"name": "labels", "dtype": "int64", "shape": ["N", 1]},
        {"name": "mask_logits", "dtype": "float32", "shape": ["N", 1, "h", "w"]},
    ]
    fields: dict[str, Any] = {
        "name": "null",
        "version": "1",
        "created": "2026-01-01T00:00:00Z",
        "licence": "Apache-2.0",
        "backbone": {"name": "null", "img_size": 224, "patch_size": 16, "embed_dim": 3, "parameters": 0},
        "preprocessing": {"mean": [0.5] * 3, "std": [0.5] * 3, "channel_order": "RGB"},
        "graphs": {
            "backbone": {"file": "backbone.onnx", "inputs": [images], "outputs": [features]},
            "segmentation": {"file": "segmentation.onnx", "inputs": [features, images], "outputs": outputs},
        },
        "segmentation": {
            "input_size": [256, 320],
            "labels": ["Object"],
            "score_threshold": 0.5,
            "nms_iou": 0.5,
            "mask_threshold": 0.5,
            "max_objects": 100,
            "calibrated_on": "nothing",
        },
    }
    files = {
        "backbone.onnx": onnx.parser.parse_model(_BACKBONE).SerializeToString(),
        "segmentation.onnx": onnx.parser.parse_model(_SEGMENTATION).SerializeToString(),
        "weights.safetensors": b"none",
        "README.md": b"# Null\n",
    }
    return write_bundle(folder, fields, files).path
