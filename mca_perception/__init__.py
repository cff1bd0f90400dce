"""ROS 2 perception for pick-and-place robots on one shared BEiT-3 backbone."""

__version__ = "0.1.0"
