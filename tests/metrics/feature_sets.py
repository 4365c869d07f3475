"""Features that the tests of several metrics compare."""

import numpy as np
import torch
from conftest import digits


def gaussian(count: int, dimensions: int, seed: int, shift: float = 0.0) -> np.ndarray:
    """Draw correlated normal features, count×dimensions."""
    random = np.random.default_rng(seed)
    mixing = np.random.default_rng(99 + seed).standard_normal((dimensions, dimensions)) / dimensions**0.5
    return random.standard_normal((count, dimensions)) @ mixing + shift


def pixels(rows: slice) -> np.ndarray:
    """Digits as features: 25 mean brightnesses of 4×4 pixels each, without the border, in [0, 1]."""
    return digits()[rows, 4:24, 4:24].reshape(-1, 5, 4, 5, 4).mean(axis=(2, 4)).reshape(-1, 25) / 255


REAL, FAKE = gaussian(60, 7, 0), gaussian(45, 7, 1, 0.3)


BROKEN = FAKE.copy()
BROKEN[[2, 5], 1] = np.nan, np.inf
# Sets that no metric may compare, and words of the error.
BAD_SETS = (
    (REAL, BROKEN, "2 of 45 generated images"),
    (BROKEN, FAKE, "2 of 45 real images"),
    (REAL, FAKE[:1], "at least 2 generated images"),
    (REAL[0], FAKE, "at least 2 real images"),
    (REAL, FAKE[:, :5], "7 features a real image and 5 a generated one"),
)


class Identity(torch.nn.Module):
    """An extractor for torchmetrics that takes features as images."""

    def __init__(self, num_features: int) -> None:
        super().__init__()
        self.num_features = num_features

    def forward(self, features: torch.Tensor) -> torch.Tensor:
        """Return the features."""
        return features
