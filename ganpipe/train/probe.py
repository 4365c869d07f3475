"""A light evaluation of a generator during training: how realistic its images are, and how varied."""

import numpy as np
import torch
from torch import nn

from ganpipe.common import seeds
from ganpipe.metrics.kid import kid
from ganpipe.metrics.lite0 import Lite0, extract
from ganpipe.models.generator import draw_z, images_of
from ganpipe.train.plan import Plan

IMAGES = 256  # generated and real images, at most
RESOLUTION = 64  # pixels a side of the images that EfficientNet-Lite0 sees
BATCH = 64  # images in one pass through EfficientNet-Lite0


class Probe:
    """Compares images of fixed z, of the classes of as many fixed training images, if any, with those.

    The numbers rank the snapshots of one training. They differ from those of the evaluate stage, which uses
    more and larger images. `real_spread` is the `spread` of the real images' features.
    """

    def __init__(self, plan: Plan, device: str) -> None:
        seed, count = plan.train.seed, min(IMAGES, len(plan.rows))
        order = torch.randperm(len(plan.rows), generator=seeds.generator(seed, "probe/rows"))
        rows = np.sort(plan.rows[order[:count].numpy()])
        self.z = plan.latents(draw_z(plan.model, count, seeds.generator(seed, "probe/z")), rows)
        self.network, self.device = Lite0(RESOLUTION), device
        self.real = extract(self.network, plan.data.images[rows], BATCH, device)
        self.real_spread = spread(self.real)

    def __call__(self, G: nn.Module) -> tuple[float, float]:
        """Return the KID of a generator's images to the real ones, 0 is perfect, and their `spread`.

        The spread falls towards 0 as a generator collapses.
        """
        fake = extract(self.network, images_of(G, self.z), BATCH, self.device)
        return kid(self.real, fake, 1, len(fake), 0)[0], spread(fake)


def spread(features: np.ndarray) -> float:
    """Return the mean Euclidean distance between two rows of N×d, N at least 2."""
    return float(torch.pdist(torch.from_numpy(features).double()).mean())
