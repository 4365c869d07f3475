"""Differentiable augmentation of the images that D sees, so that it learns a small data set by heart later.

Zhao, Liu, Lin, Zhu & Han 2020, "Differentiable Augmentation for Data-Efficient GAN Training", with the
strengths of the authors' code. G gets its gradients through the augmentation, and does not learn to draw it.
`jitter` is ours, of real images only, and G does learn it.
"""

from collections.abc import Sequence
from typing import Literal, get_args

import torch
from torch.nn.functional import affine_grid, grid_sample, pad

from ganpipe.common import seeds
from ganpipe.train.devices.feed import to_device

Use = Literal["real", "fake", "g"]  # D on real images, D on generated images, G through D
USES: tuple[Use, ...] = get_args(Use)
NUMBERS = 11  # for each image: three for colour, two for translation, two for cutout, four for jitter
SHIFT, HOLE = 1 / 8, 1 / 2  # of the side: the largest translation, and the side of the square cut out
JITTER = 0.12  # the largest turn, in radians, and the share of the side that an enlargement cuts off at most


class Augment:
    """Augments a step's images, `part` of a batch, by the given kinds of train.augment."""

    def __init__(self, kinds: Sequence[str], batch_size: int, part: slice, device: torch.device) -> None:
        self.kinds, self.part, self.batch_size = kinds, part, batch_size
        # Of one step, in [0, 1); one tensor, because a recorded step reads it at the same address.
        self.uniform = self._draw(0, 0, "augment").to(device)

    def draw(self, seed: int, step: int, purpose: str = "augment") -> None:
        """Draw the random numbers of a step, or those of its extra update."""
        self.uniform.copy_(to_device(self._draw(seed, step, purpose), self.uniform.device))

    def _draw(self, seed: int, step: int, purpose: str) -> torch.Tensor:
        source = seeds.generator(seed, purpose, step)
        return torch.rand((len(USES), self.batch_size, NUMBERS), generator=source)[:, self.part].contiguous()

    def __call__(self, images: torch.Tensor, use: Use, part: slice) -> torch.Tensor:
        """Augment float32 n×C×side×side in [-1, 1], which are `part` of this rank's batch."""
        uniform = self.uniform[USES.index(use), part]
        if "jitter" in self.kinds and use == "real":
            images = jitter(images, uniform[:, 7:])
        if "colour" in self.kinds:
            images = colour(images, uniform[:, :3])
        if "translation" in self.kinds:
            images = translate(images, uniform[:, 3:5])
        return cut_out(images, uniform[:, 5:7]) if "cutout" in self.kinds else images


def jitter(images: torch.Tensor, uniform: torch.Tensor) -> torch.Tensor:
    """Turn, enlarge and move real images n×C×side×side, as if they had been cropped a little differently.

    G learns to draw such images, so that few pictures stand for more. `uniform`, n×4 in [0, 1), says how far
    to turn, to enlarge and to move; what comes in at the edges is mirrored.
    """
    angle, share = JITTER * (2 * uniform[:, 0] - 1), 1 - JITTER * uniform[:, 1]
    down, right = (1 - share) * (2 * uniform[:, 2:].T - 1)
    cosine, sine = share * angle.cos(), share * angle.sin()
    places = torch.stack([cosine, -sine, right, sine, cosine, down], 1).view(-1, 2, 3)
    grid = affine_grid(places, list(images.shape), align_corners=False)
    return grid_sample(images, grid, "bicubic", "reflection", align_corners=False).clamp(-1, 1)


def colour(images: torch.Tensor, uniform: torch.Tensor) -> torch.Tensor:
    """Change n×C×H×W by n×3 in [0, 1): brightness by ±1/2, saturation by 0 to 2, contrast by 1/2 to 3/2."""
    brightness, saturation, contrast = uniform.T[:, :, None, None, None]
    images = images + (brightness - 0.5)
    grey = images.mean(1, keepdim=True)
    images = grey + (images - grey) * (2 * saturation)
    mean = images.mean((1, 2, 3), keepdim=True)
    return mean + (images - mean) * (contrast + 0.5)


def translate(images: torch.Tensor, uniform: torch.Tensor) -> torch.Tensor:
    """Move images n×C×side×side by whole pixels, at most SHIFT of the side; 0, mid-grey, comes in.

    `uniform`, n×2 in [0, 1), says how far down and to the right.
    """
    n, _, side, _ = images.shape
    most = int(side * SHIFT + 0.5)
    shifts = (uniform * (2 * most + 1)).long() - most
    # From a border of zeros, all that lies outside.
    pixels = (torch.arange(side, device=images.device) + 1 - shifts[:, :, None]).clamp(0, side + 1)
    padded = pad(images, (1, 1, 1, 1)).permute(0, 2, 3, 1)
    batch = torch.arange(n, device=images.device)[:, None, None]
    return padded[batch, pixels[:, 0, :, None], pixels[:, 1, None, :]].permute(0, 3, 1, 2)


def cut_out(images: torch.Tensor, uniform: torch.Tensor) -> torch.Tensor:
    """Set a square of HOLE of the side to 0, mid-grey, in images n×C×side×side; it may reach over the edge.

    `uniform`, n×2 in [0, 1), says where its centre is.
    """
    side = images.shape[-1]
    centres = (uniform * (side + 1)).floor()
    pixels = torch.arange(side, device=images.device)
    inside = (pixels + 0.5 - centres[:, :, None]).abs() < side * HOLE / 2
    return images * ~(inside[:, 0, :, None] & inside[:, 1, None, :])[:, None]
