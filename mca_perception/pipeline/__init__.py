"""The pipeline from an image to its objects."""

from mca_perception.geometry import Letterbox
from mca_perception.objects import Objects
from mca_perception.pipeline.pipeline import PerceptionPipeline
from mca_perception.pipeline.segmenting import Tiling

__all__ = ["Letterbox", "Objects", "PerceptionPipeline", "Tiling"]
