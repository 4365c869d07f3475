"""Fréchet distance of two sets of images, from their features; sums are float64, no epsilon is added."""

from typing import Self

import numpy as np

from ganpipe.metrics.kid import check_features

ROWS = 4096  # rows that are added to a normal distribution at a time


class Normal:
    """Mean and unbiased covariance of rows that are added in parts; the memory does not grow with the rows.

    The covariance is kept as A with AᵀA = (N - 1)·C: the centred rows themselves or, if there are more than
    d of them, their d×d QR factor. Nothing is squared, so directions of small variance keep all their digits.
    """

    def __init__(self, dimension: int) -> None:
        # N so far, the mean of d, and A with at most d rows.
        self.count, self.mean, self.root = 0, np.zeros(dimension), np.empty((0, dimension))

    def add(self, rows: np.ndarray) -> Self:
        """Add rows, float N×d."""
        for start in range(0, len(rows), ROWS):
            part = rows[start : start + ROWS].astype(np.float64)
            mean, total = part.mean(0), self.count + len(part)
            # One more row makes up for centring both sets at their own means instead of the common mean.
            shift = np.sqrt(self.count * len(part) / total) * (mean - self.mean)
            self.root = np.concatenate([self.root, part - mean, *([shift[None]] if self.count else [])])
            if len(self.root) > self.root.shape[1]:
                self.root = np.asarray(np.linalg.qr(self.root, mode="r"))
            self.mean = self.mean + (mean - self.mean) * (len(part) / total)
            self.count = total
        return self

    def distance(self, other: "Normal") -> float:
        """Return the squared Fréchet distance to another normal distribution.

        |μ₁-μ₂|² + tr C₁ + tr C₂ - 2 tr (C₁C₂)^½ (Heusel et al. 2017, eq. 6). With Cᵢ = AᵢᵀAᵢ, A being
        divided by √(N-1), the last trace is the sum of the singular values of A₁A₂ᵀ, whatever the
        covariances' rank: exact for N < d too, where the root of a singular matrix is not.
        """
        one, two = (normal.root / np.sqrt(normal.count - 1) for normal in (self, other))
        shift = self.mean - other.mean
        cross = np.linalg.svd(one @ two.T, compute_uv=False).sum()
        # For equal sets the sum of rounded terms may fall slightly below zero.
        return max(0.0, float(shift @ shift + (one**2).sum() + (two**2).sum() - 2 * cross))


def fd(real: np.ndarray, fake: np.ndarray) -> float:
    """Fréchet distance of the normal distributions with the means and (unbiased) covariances of N×d and M×d.

    The value falls as N grows on the same distribution: compare at equal N. Besides the features, the memory
    that it needs does not depend on N.
    """
    check_features(real, fake)
    return Normal(real.shape[1]).add(real).distance(Normal(fake.shape[1]).add(fake))
