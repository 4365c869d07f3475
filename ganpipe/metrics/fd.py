"""Fréchet distance of two sets of images, from their features: float arrays N×d and M×d.

All sums are float64. No epsilon is added, so equal sets are at distance 0 up to rounding.
"""

from typing import Self

import numpy as np

from ganpipe.metrics.kid import checked

# Rows that a normal distribution takes in at once.
ROWS = 4096


class Normal:
    """Mean and (unbiased) covariance of rows that come in parts, in memory that does not grow with them.

    The covariance is kept as A with AᵀA = its sum of squares: the centred rows themselves or, where they are
    more than d, their d×d QR factor. Nothing is squared, so small directions keep all their digits.

    Attributes:
        count: rows so far.
        mean: float64 d.
        root: float64 at most (d + ROWS)×d.
    """

    def __init__(self, dimension: int) -> None:
        self.count, self.mean, self.root = 0, np.zeros(dimension), np.empty((0, dimension))

    def add(self, rows: np.ndarray) -> Self:
        """Take in some more rows, float N×d."""
        for start in range(0, len(rows), ROWS):
            part = rows[start : start + ROWS].astype(np.float64)
            mean, total = part.mean(0), self.count + len(part)
            # Two sets' squares about their own means fall short of those about the common mean by one row.
            shift = np.sqrt(self.count * len(part) / total) * (mean - self.mean)
            self.root = np.concatenate([self.root, part - mean, *([shift[None]] if self.count else [])])
            if len(self.root) > self.root.shape[1]:
                self.root = np.asarray(np.linalg.qr(self.root, mode="r"))
            self.mean = self.mean + (mean - self.mean) * (len(part) / total)
            self.count = total
        return self

    def distance(self, other: "Normal") -> float:
        """Return the squared Fréchet distance to another normal distribution.

        |μ₁-μ₂|² + tr C₁ + tr C₂ - 2 tr (C₁C₂)^½ (Heusel et al. 2017, eq. 6). With Cᵢ = AᵢᵀAᵢ the last trace
        is the sum of the singular values of A₁A₂ᵀ, whatever the covariances' rank: exact for N < d too,
        where the root of a singular matrix is not.
        """
        one, two = (each.root / np.sqrt(each.count - 1) for each in (self, other))
        shift = self.mean - other.mean
        cross = np.linalg.svd(one @ two.T, compute_uv=False).sum()
        # The sum of rounded terms may fall a hair below zero for equal sets; the distance does not.
        return max(0.0, float(shift @ shift + (one**2).sum() + (two**2).sum() - 2 * cross))


def fd(real: np.ndarray, fake: np.ndarray) -> float:
    """Fréchet distance of the normal distributions with the two sets' means and (unbiased) covariances.

    The value falls as N grows on the same distribution: compare at equal N. The memory that it takes beside
    the features does not depend on N.
    """
    parts = (rows[start : start + ROWS] for rows in (real, fake) for start in range(0, len(rows), ROWS))
    alike = real.ndim == fake.ndim == 2 and real.shape[1] == fake.shape[1]
    if not alike or min(len(real), len(fake)) < 2 or not all(np.isfinite(part).all() for part in parts):
        checked(real, fake)  # says what is wrong
    return Normal(real.shape[1]).add(real).distance(Normal(fake.shape[1]).add(fake))
