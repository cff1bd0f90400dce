"""Cascade Mask R-CNN on the plain backbone, the published segmentation method. Importing this package needs no torch.

``pyramid`` makes maps of strides 4 to 64 from the backbone's last map, ``rpn`` proposes boxes, ``roi`` refines and
classifies them in stages, ``detector`` joins the parts, ``postprocess`` turns detections into objects of the original
image. ``config`` holds the sizes: the published ones, a nano variant and torchvision's Mask R-CNN.
"""
