"""Sliced Wasserstein distance of patches (Karras et al. 2018, Progressive GAN, section 5): no network judges.

Each level of the images' Laplacian pyramid is compared by itself, from edges and noise to coarse shapes.
"""

from collections import defaultdict

import numpy as np
import torch
from torch.nn.functional import pad

from ganpipe.common import seeds
from ganpipe.common.shards import Images

PATCH, LEAST_SIDE = 7, 16  # pixels a side of a patch, and of the smallest level of larger images
# The paper: 128 patches of each of 16,384 images, 512 projections. A set has about PATCHES at most here.
PATCHES, PATCHES_OF_AN_IMAGE, PROJECTIONS = 2**14, 128, 128
# Numbers of a set's images that are used at most, beyond LEAST_IMAGES, and that are split at a time.
PIXELS, LEAST_IMAGES, BATCH = 2**25, 64, 2**21


def swd(real: dict[int, torch.Tensor], fake: dict[int, torch.Tensor], seed: int) -> dict[int, float]:
    """Return each level's distance of two sets of `patches`, cut from as many images each.

    It is 0 for equal sets; for two sets of one distribution it is above 0 and falls with their size.
    """
    distances = {}
    for side, a in real.items():
        random = seeds.generator(seed, "swd/directions", side)
        directions = torch.randn(PROJECTIONS, a.shape[1], generator=random)
        directions /= directions.norm(dim=1, keepdim=True)
        one, two = ((directions @ rows.T).sort(dim=1).values for rows in (a, fake[side]))
        distances[side] = float((one - two).abs().mean(dtype=torch.float64))
    return distances


def patches(images: Images, rows: np.ndarray, seed: int, purpose: str) -> dict[int, torch.Tensor]:
    """Cut random patches of 7×7 pixels from each level of the images `rows` of uint8 M×H×W×C in [0, 255].

    Returns:
        Pixels of a level's shorter side, the largest first → float32 P×49·C, of mean 0 and sd 1 over the set
        in each colour: neither brightness nor contrast counts. Empty for images smaller than a patch.
    """
    if min(images.shape[1:3]) < PATCH:
        return {}
    size, window, cut = images[0].size, torch.arange(PATCH), defaultdict[int, list[torch.Tensor]](list)
    rows = rows[: max(LEAST_IMAGES, PIXELS // size)]
    count = max(1, min(PATCHES_OF_AN_IMAGE, PATCHES // len(rows)))
    step = max(1, BATCH // size)
    for start in range(0, len(rows), step):
        batch = torch.from_numpy(images[rows[start : start + step]]).permute(0, 3, 1, 2)
        each = torch.arange(len(batch))[:, None, None, None]
        for level in pyramid(batch.float()):
            random = seeds.generator(seed, f"swd/{purpose}/{min(level.shape[2:])}", start)
            corners = [
                torch.randint(length - PATCH + 1, (len(batch), count, 1), generator=random)
                for length in level.shape[2:]
            ]
            y, x = (corner + window for corner in corners)
            found = level.permute(0, 2, 3, 1)[each, y[..., None], x[:, :, None]]
            cut[min(level.shape[2:])].append(found.flatten(0, 1))
    result = {}
    for side, parts in cut.items():
        sd, mean = torch.std_mean(torch.cat(parts), (0, 1, 2), correction=0)
        result[side] = ((torch.cat(parts) - mean) / sd.where(sd > 0, 1)).flatten(1)
    return result


def pyramid(x: torch.Tensor) -> list[torch.Tensor]:
    """Split float N×C×H×W into its Laplacian pyramid (Burt & Adelson 1983), the largest level first."""
    levels = []
    while min(x.shape[2:]) >= 2 * LEAST_SIDE and x.shape[2] % 2 == x.shape[3] % 2 == 0:
        small, spread = _blurred(x)[:, :, ::2, ::2], torch.zeros_like(x)
        spread[:, :, ::2, ::2] = 4 * small
        levels.append(x - _blurred(spread))
        x = small
    return [*levels, x]


def _blurred(x: torch.Tensor) -> torch.Tensor:
    """Blur with the binomial filter of 5×5 pixels, mirrored at the edges."""
    x = pad(x, (2, 2, 2, 2), mode="reflect")
    for axis in (2, 3):
        a, b, c, d, e = (x.narrow(axis, i, x.shape[axis] - 4) for i in range(5))
        x = (a + e).add_(b + d, alpha=4).add_(c, alpha=6).div_(16)
    return x
