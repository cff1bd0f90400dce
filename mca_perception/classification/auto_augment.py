"""AutoAugment: published policies of colour and geometric changes, as torchvision has them."""

from __future__ import annotations

from functools import cache
from typing import Any

import numpy as np
from numpy.typing import NDArray

from mca_perception.errors import RecipeError
from mca_perception.identification.crops import BACKGROUND

__all__ = ["auto_augmented", "load_policy"]


@cache
def load_policy(name: str) -> Any:
    """The policy as torchvision's transform.

    Args:
        name: ``imagenet``, ``cifar10`` or ``svhn``: the data that it was found on.

    Raises:
        RecipeError: torchvision cannot be imported.
    """
    try:
        from torchvision.transforms import v2
    except (ImportError, OSError, RuntimeError) as error:  # the latter: built for another torch
        raise RecipeError(
            f"augmentation.auto_augment needs torchvision ({error}): pip install -c constraints.txt -e "
            "'.[augmentation]', or set classification.augmentation.auto_augment=null"
        ) from error
    return v2.AutoAugment(v2.AutoAugmentPolicy(name), fill=BACKGROUND)


def auto_augmented(image: NDArray[np.uint8], policy: str, rng: np.random.Generator) -> NDArray[np.uint8]:
    """Change an image by a random part of a policy.

    Args:
        image: uint8 ``[H, W, 3]`` RGB.
        policy: name for :func:`load_policy`.
        rng: of the draw.

    Returns:
        uint8 ``[H, W, 3]``.
    """
    import torch

    pixels = torch.from_numpy(np.ascontiguousarray(image.transpose(2, 0, 1)))
    # The library draws from torch's global generator: seeded here, and then put back as it was. Not with
    # torch.manual_seed, which seeds GPUs as well.
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(int(rng.integers(2**63)))
        changed = load_policy(policy)(pixels)
    return np.asarray(changed.permute(1, 2, 0).numpy())
