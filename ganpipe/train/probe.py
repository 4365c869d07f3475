"""A light look at a generator in mid-training: how near its images are to real ones, and how varied."""

import numpy as np
import torch
from torch import nn

from ganpipe.common import seeds as rng
from ganpipe.metrics import lite0
from ganpipe.metrics.kid import kid
from ganpipe.models import generator as snapshot
from ganpipe.params import Model
from ganpipe.train import alarms as health

# Images that the network sees at once.
BATCH = 64


class Probe:
    """Compares images of fixed z with as many fixed training images.

    The numbers rank the snapshots of one training; they are not those of the evaluate stage, which sees the
    images larger and more of them.

    Args:
        model: says how z is distributed.
        images: uint8 N×H×W×C in [0, 255].
        rows: of `images`, those trained on.
        seed: decides the images and z.
        device: where to compute, such as "cpu" or "cuda".
    """

    def __init__(self, model: Model, images: np.ndarray, rows: np.ndarray, seed: int, device: str) -> None:
        count = min(health.IMAGES, len(rows))
        order = torch.randperm(len(rows), generator=rng.generator(seed, "probe/rows"))
        self.z = snapshot.draw_z(model, count, rng.generator(seed, "probe/z"))
        self.network, self.device = lite0.Lite0(health.FEATURE_RESOLUTION), device
        self.real = self._features(images[np.sort(rows[order[:count].numpy()])])
        self.real_spread = health.spread(self.real)

    def __call__(self, G: nn.Module) -> tuple[float, float]:
        """Judge a generator.

        Returns:
            KID of all its images against all the real ones, 0 is perfect; and the mean distance between two
            of its images (of their features), which falls towards 0 as it collapses.
        """
        fake = self._features(snapshot.images_of(G, self.z))
        return kid(self.real, fake, 1, len(fake), 0)[0], health.spread(fake)

    def _features(self, images: np.ndarray) -> np.ndarray:
        return lite0.extract(self.network, images, BATCH, self.device)
