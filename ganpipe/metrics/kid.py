"""Kernel distances of two sets of images, from their features; training chooses its snapshot by KID."""

import numpy as np
import torch

from ganpipe.common import seeds
from ganpipe.common.errors import UserError


def kid(real: np.ndarray, fake: np.ndarray, subsets: int, subset_size: int, seed: int) -> tuple[float, float]:
    """Squared maximum mean discrepancy under the kernel (x·y/d + 1)³, unbiased (Bińkowski et al. 2018).

    Sums are float64. For two sets of one distribution its expectation is 0 at any N: values below 0 occur.

    Args:
        real: the reference set, float N×d.
        fake: the set to score, float M×d.
        subsets: pairs of subsets to average over.
        subset_size: rows in a subset, drawn without replacement, at most the rows of either set.
        seed: determines the subsets.

    Returns:
        Mean and standard deviation over the subsets (their spread, not the mean's error), not times 1000.

    Raises UserError: `subset_size` does not fit the sets, or they cannot be compared.
    """
    check_features(real, fake)
    most = min(len(real), len(fake))
    if not 2 <= subset_size <= most:
        expected = f"2 to {most}, the images of the smaller set"
        raise UserError(f"kid_subset_size: found {subset_size}, expected {expected}")
    values = []
    for i in range(subsets):
        x = real[_draw(len(real), subset_size, seed, "kid/real", i)]
        y = fake[_draw(len(fake), subset_size, seed, "kid/fake", i)]
        values.append(_squared_mmd(x.astype(np.float64), y.astype(np.float64)))
    return float(np.mean(values)), float(np.std(values))


def gaussian_mmd(real: np.ndarray, fake: np.ndarray) -> float:
    """Squared maximum mean discrepancy under a Gaussian kernel, unbiased, of float N×d and M×d; at most 2.

    Unlike KID's, this kernel does not grow with the features' length, which noise shortens. Its sd is the
    median distance between two different real rows (Gretton et al. 2012, eq. 3 and section 8), 1 without any.

    Raises UserError: they cannot be compared.
    """
    from sklearn.metrics.pairwise import euclidean_distances

    check_features(real, fake)
    x, y = real.astype(np.float64), fake.astype(np.float64)
    distances = [euclidean_distances(a, b) for a, b in ((x, x), (y, y), (x, y))]
    sd = float(np.median(distances[0][distances[0] > 0])) if distances[0].any() else 1.0
    xx, yy, xy = (np.exp(-np.square(distance / sd) / 2) for distance in distances)
    return float(sum((k.sum() / len(k) - 1) / (len(k) - 1) for k in (xx, yy)) - 2 * xy.mean())


def check_features(real: np.ndarray, fake: np.ndarray) -> None:
    """Check two sets of features, float N×d and M×d.

    Raises UserError: a set has fewer than 2 rows, NaN or infinity, or the sets differ in d.
    """
    for side, rows in (("real", real), ("generated", fake)):
        if rows.ndim != 2 or len(rows) < 2:
            expected = f"those of at least 2 {side} images"
            raise UserError(f"metrics: found features of shape {rows.shape}, expected {expected}")
        if bad := len(rows) - int(np.isfinite([rows.min(1), rows.max(1)]).all(0).sum()):
            problem = f"the features of {bad} of {len(rows)} {side} images are not finite"
            remedy = "compute them again, on the CPU if they come from another device"
            raise UserError(f"metrics: {problem}; {remedy}")
    if real.shape[1] != fake.shape[1]:
        found = f"{real.shape[1]} features a real image and {fake.shape[1]} a generated one"
        raise UserError(f"metrics: found {found}; compute both with the same extractor")


def _draw(count: int, size: int, seed: int, purpose: str, step: int) -> np.ndarray:
    return torch.randperm(count, generator=seeds.generator(seed, purpose, step))[:size].numpy()


def _squared_mmd(x: np.ndarray, y: np.ndarray) -> float:
    """Return the U-statistic (Gretton et al. 2012, eq. 3); x and y have m rows each."""
    m, d = x.shape
    xx, yy, xy = ((a @ b.T / d + 1) ** 3 for a, b in ((x, x), (y, y), (x, y)))
    within = xx.sum() - np.trace(xx) + yy.sum() - np.trace(yy)
    return float(within / (m * (m - 1)) - 2 * xy.mean())
