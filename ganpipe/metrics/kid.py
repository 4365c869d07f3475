"""Kernel distances of two sets of images, from their features; training chooses its snapshot by KID."""

import numpy as np
import torch

from ganpipe.common import seeds
from ganpipe.common.errors import UserError

Known = tuple[np.ndarray, np.ndarray, np.ndarray] | None  # what `products` returns, where it is known


def kid(
    real: np.ndarray, fake: np.ndarray, subsets: int, size: int, seed: int, known: Known = None
) -> tuple[float, float]:
    """Squared maximum mean discrepancy under the kernel (x·y/d + 1)³, unbiased (Bińkowski et al. 2018).

    Float64 (Gretton et al. 2012, eq. 3). For sets of one distribution its mean is 0 at any N: some are below.

    Args:
        real: the reference set, float N×d.
        fake: the set to score, float M×d.
        subsets: pairs of subsets to average over.
        size: rows in a subset, drawn without replacement, at most the rows of either set.
        seed: determines the subsets.
        known: the sets' products; None: those of each pair of subsets are computed.

    Returns:
        Mean and standard deviation over the subsets (their spread, not the mean's error), not times 1000.

    Raises UserError: `size` does not fit the sets, or they cannot be compared.
    """
    check_features(real, fake)
    most = min(len(real), len(fake))
    if not 2 <= size <= most:
        expected = f"2 to {most}, the images of the smaller set"
        raise UserError(f"kid_subset_size: found {size}, expected {expected}")
    values = []
    for i in range(subsets):
        x = _draw(len(real), size, seed, "kid/real", i)
        y = _draw(len(fake), size, seed, "kid/fake", i)
        blocks = zip(known, ((x, x), (y, y), (x, y)), strict=True) if known else ()
        parts = [all_of[np.ix_(*pair)] for all_of, pair in blocks] or products(real[x], fake[y])
        xx, yy, xy = ((part / real.shape[1] + 1) ** 3 for part in parts)
        values.append(sum(k.sum() - np.trace(k) for k in (xx, yy)) / (size * (size - 1)) - 2 * xy.mean())
    return float(np.mean(values)), float(np.std(values))


def products(x: np.ndarray, y: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Return x·xᵀ, y·yᵀ and x·yᵀ of features N×d and M×d, float64: all that both kernels need of them."""
    x, y = x.astype(np.float64), y.astype(np.float64)
    return x @ x.T, y @ y.T, x @ y.T


def gaussian_mmd(real: np.ndarray, fake: np.ndarray, known: Known = None) -> float:
    """Squared maximum mean discrepancy under a Gaussian kernel, unbiased, of float N×d and M×d; at most 2.

    Unlike KID's, this kernel does not grow with the features' length, which noise shortens. Its sd is the
    median distance between two different real rows (Gretton et al. 2012, eq. 3 and section 8), 1 without any.

    Raises UserError: they cannot be compared.
    """
    check_features(real, fake)
    xx, yy, xy = known or products(real, fake)
    dx, dy = xx.diagonal(), yy.diagonal()
    squares = [(np.add.outer(a, b) - 2 * p).clip(0) for a, b, p in ((dx, dx, xx), (dy, dy, yy), (dx, dy, xy))]
    different = squares[0][squares[0] > 0]
    variance = np.median(np.sqrt(different)) ** 2 if len(different) else 1.0
    xx, yy, xy = (np.exp(square / (-2 * variance)) for square in squares)
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
