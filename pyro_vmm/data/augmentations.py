"""Changes of images that leave their cluster the same, for training."""

import math
from collections.abc import Callable
from dataclasses import dataclass, fields

import torch
from torch import Tensor
from torch.nn import functional as F

from pyro_vmm.runtime.checks import is_real
from pyro_vmm.runtime.registry import Registry

#: Rows (M, ...) as the model sees them -> changed copies of the same shape.
Augmentation = Callable[[Tensor], Tensor]


@dataclass(frozen=True)
class RandomAffine:
    """Turns, shears, stretches and moves each image at random, by uniform draws; may be given as ``augment``.

    Pixels are interpolated linearly; beyond the border they are those of the border.

    Arguments:
        degrees: turns by at most so many degrees, to either side.
        shear: shears by at most so many degrees.
        scale: stretches or shrinks by at most this share of the size, below 1.
        shift: moves by at most this share of the height and of the width.
        flip: whether every other image, on average, is mirrored left to right.
    """

    degrees: float = 15.0
    shear: float = 20.0
    scale: float = 0.15
    shift: float = 0.07
    flip: bool = False

    def __post_init__(self):
        for each in fields(self):
            value, below = getattr(self, each.name), 1 if each.name in ("scale", "shift") else 90
            if each.name != "flip" and not (is_real(value) and 0 <= value < below):
                raise ValueError(f"{each.name}={value!r} should be at least 0 and below {below}")

    def __call__(self, images: Tensor) -> Tensor:
        """Changed copies of images, (M, H, W) or (M, C, H, W), of the same shape.

        Raises:
            ValueError: rows are no images.
        """
        if images.dim() not in (3, 4):
            shape = tuple(images.shape[1:])
            raise ValueError(f"RandomAffine is for images, (H, W) or (C, H, W), and the rows of X have shape {shape}")
        planes = images if images.dim() == 4 else images.unsqueeze(1)
        grid = F.affine_grid(self._maps(planes), list(planes.shape), align_corners=False)
        return F.grid_sample(planes, grid, padding_mode="border", align_corners=False).view_as(images)

    def _maps(self, planes: Tensor) -> Tensor:
        """The maps from places in the changed images to those in the given ones, (M, 2, 3); a side has length 2."""
        n = len(planes)
        turn, shear, scale, *shift = planes.new_empty(5, n).uniform_(-1, 1).unbind(0)
        turn, shear = math.radians(self.degrees) * turn, (math.radians(self.shear) * shear).tan()
        scale = 1 + self.scale * scale
        mirror = 1 - 2 * (planes.new_empty(n).uniform_() < 0.5).to(planes) if self.flip else torch.ones_like(turn)
        cos, sin = scale * turn.cos(), scale * turn.sin()
        x, y = (2 * self.shift * each for each in shift)
        # Turns and shears are of pixels, while the map takes both sides for equally long.
        height, width = planes.shape[-2:]
        first = torch.stack([mirror * cos, (cos * shear - sin) * (height / width), x], -1)
        second = torch.stack([mirror * sin * (width / height), sin * shear + cos, y], -1)
        return torch.stack([first, second], 1)


#: Augmentations by name. Other packages add theirs by entry points of this group.
AUGMENTATIONS = Registry("pyro_vmm.augmentations", {"affine": RandomAffine()})


def as_augmentation(given: str | Augmentation | None) -> Augmentation | None:
    """The function that a name stands for; ``ValueError`` for what is neither a name nor callable nor None."""
    if isinstance(given, str) and given in AUGMENTATIONS:
        return AUGMENTATIONS[given]
    if given is None or (callable(given) and not isinstance(given, type)):
        return given
    raise ValueError(f"augment={given!r} should be one of {tuple(AUGMENTATIONS)}, a callable or None")
