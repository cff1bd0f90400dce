"""Defect detection: multi-pick, opened and deconstructed packages. Importing this package does not import torch."""
