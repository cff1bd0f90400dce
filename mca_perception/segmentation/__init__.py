"""Segmentation: which pixels belong to which object. Importing this package does not import torch."""

from mca_perception.segmentation.postprocess import Candidates, compose_instance_mask, select_instances

__all__ = ["Candidates", "compose_instance_mask", "select_instances"]
