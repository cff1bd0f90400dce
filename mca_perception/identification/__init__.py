"""Identification: which product an object is. Importing this package does not import torch."""

from mca_perception.identification.crops import crop_object, crop_reference
from mca_perception.identification.gallery import Gallery

__all__ = ["Gallery", "crop_object", "crop_reference"]
