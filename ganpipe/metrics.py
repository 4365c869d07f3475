"""Distances between two sets of images, from their features alone: arrays N×d in, plain numbers out.

Everywhere `real` is the reference set and `fake` the set that is judged, float arrays N×d and M×d. All sums
are float64. No function adds an epsilon, so equal sets are at distance 0 up to rounding.

All raise UserError where a set has fewer than 2 rows, NaN or infinity, and where the sets differ in d.
"""

from collections.abc import Iterator

import numpy as np
import torch

from ganpipe import rng
from ganpipe.errors import UserError

# Entries of a block of the distance matrix: 128 MiB in float64.
BLOCK = 2**24


def fd(real: np.ndarray, fake: np.ndarray) -> float:
    """Fréchet distance of the normal distributions with the two sets' means and (unbiased) covariances.

    |μ₁-μ₂|² + tr C₁ + tr C₂ - 2 tr (C₁C₂)^½ (Heusel et al. 2017, eq. 6). With Cᵢ = AᵢᵀAᵢ the last trace
    is the sum of the singular values of A₁A₂ᵀ, whatever the covariances' rank: exact for N < d too, where the
    root of a singular matrix is not. The value falls as N grows on the same distribution: compare at equal N.
    """
    real, fake = _checked(real, fake)
    roots = _covariance_root(real), _covariance_root(fake)
    shift = real.mean(0) - fake.mean(0)
    cross = np.linalg.svd(roots[0] @ roots[1].T, compute_uv=False).sum()
    # The sum of rounded terms may fall a hair below zero for equal sets; the distance does not.
    return max(0.0, float(shift @ shift + sum((root**2).sum() for root in roots) - 2 * cross))


def kid(real: np.ndarray, fake: np.ndarray, subsets: int, subset_size: int, seed: int) -> tuple[float, float]:
    """Squared maximum mean discrepancy under the kernel (x·y/d + 1)³, unbiased (Bińkowski et al. 2018).

    Zero is expected, and values below zero occur, for two sets of one distribution, at any N.

    Args:
        real: the reference set.
        fake: the judged set.
        subsets: how many pairs of subsets to average over.
        subset_size: rows in a subset, drawn without replacement, at most the rows of either set.
        seed: decides the subsets.

    Returns:
        Mean and standard deviation over the subsets (their spread, not the mean's error), not times 1000.
    """
    real, fake = _checked(real, fake)
    if not 2 <= subset_size <= min(len(real), len(fake)):
        raise UserError(
            f"evaluate.kid_subset_size: subsets of {subset_size} cannot be drawn from {len(real)} real and "
            f"{len(fake)} generated images; at least 2 and at most the smaller number is possible"
        )
    values = []
    for i in range(subsets):
        x = real[_draw(len(real), subset_size, seed, "kid/real", i)]
        y = fake[_draw(len(fake), subset_size, seed, "kid/fake", i)]
        values.append(_squared_mmd(x, y))
    return float(np.mean(values)), float(np.std(values))


def precision_recall(real: np.ndarray, fake: np.ndarray, k: int) -> tuple[float, float]:
    """Share of fake inside real's manifold, and of real inside fake's (Kynkäänniemi et al. 2019, eq. 2).

    A set's manifold is the union of the balls around its points that reach to their k-th nearest neighbour.
    """
    real, fake = _checked(real, fake, k)
    return _share_inside(fake, real, _squared_radii(real, k)), _share_inside(
        real, fake, _squared_radii(fake, k)
    )


def coverage(real: np.ndarray, fake: np.ndarray, k: int) -> float:
    """Share of real points with a fake one as near as the k-th real neighbour (Naeem et al. 2020, eq. 4)."""
    real, fake = _checked(real, fake, k)
    nearest = np.concatenate([squared.min(1) for squared in _squared_distances(real, fake)])
    return float((nearest <= _squared_radii(real, k)).mean())


def _checked(real: np.ndarray, fake: np.ndarray, k: int | None = None) -> tuple[np.ndarray, np.ndarray]:
    for side, rows in (("real", real), ("generated", fake)):
        if rows.ndim != 2 or len(rows) < 2:
            raise UserError(
                f"metrics: features of at least 2 {side} images are needed, found shape {rows.shape}"
            )
        if bad := int((~np.isfinite(rows)).any(1).sum()):
            raise UserError(
                f"metrics: the features of {bad} of {len(rows)} {side} images are not finite; "
                "compute them again, on the CPU if this happened elsewhere"
            )
        if k is not None and k >= len(rows):
            raise UserError(
                f"evaluate.neighbours: {k} neighbours need more than {k} images a set, found {len(rows)} "
                f"{side} ones; lower it or compare more images (sample.count)"
            )
    if real.shape[1] != fake.shape[1]:
        raise UserError(
            f"metrics: {real.shape[1]} features a real image, {fake.shape[1]} a generated one; "
            "compute both with the same extractor"
        )
    return real.astype(np.float64), fake.astype(np.float64)


def _covariance_root(rows: np.ndarray) -> np.ndarray:
    """Return A with AᵀA = the unbiased covariance: the centred rows or, if smaller, their d×d QR factor."""
    centred = (rows - rows.mean(0)) / np.sqrt(len(rows) - 1)
    return centred if len(rows) <= rows.shape[1] else np.asarray(np.linalg.qr(centred, mode="r"))


def _draw(count: int, size: int, seed: int, purpose: str, step: int) -> np.ndarray:
    return torch.randperm(count, generator=rng.generator(seed, purpose, step))[:size].numpy()


def _squared_mmd(x: np.ndarray, y: np.ndarray) -> float:
    """Return the U-statistic (Gretton et al. 2012, eq. 3); x and y have m rows each."""
    m, d = x.shape
    xx, yy, xy = ((a @ b.T / d + 1) ** 3 for a, b in ((x, x), (y, y), (x, y)))
    within = xx.sum() - np.trace(xx) + yy.sum() - np.trace(yy)
    return float(within / (m * (m - 1)) - 2 * xy.mean())


def _squared_distances(a: np.ndarray, b: np.ndarray) -> Iterator[np.ndarray]:
    """Yield the squared distances of some rows of `a` to all of `b`, block after block, in order."""
    norms_a, norms_b = (a**2).sum(1), (b**2).sum(1)
    step = max(1, BLOCK // len(b))
    for start in range(0, len(a), step):
        scale = norms_a[start : start + step, None] + norms_b
        squared = scale - 2 * a[start : start + step] @ b.T
        # Equal images come out a rounding error apart; a ball of radius 0 must still hold its own copies.
        squared[squared < 1e-10 * scale] = 0
        yield squared


def _squared_radii(rows: np.ndarray, k: int) -> np.ndarray:
    """Return each row's squared distance to its k-th nearest neighbour; the 0th is the row itself."""
    return np.concatenate([np.partition(block, k, axis=1)[:, k] for block in _squared_distances(rows, rows)])


def _share_inside(points: np.ndarray, centres: np.ndarray, squared_radii: np.ndarray) -> float:
    inside = [(block <= squared_radii).any(1) for block in _squared_distances(points, centres)]
    return float(np.concatenate(inside).mean())
