"""Distances between two sets of images, from their features alone: arrays N×d in, plain numbers out.

Everywhere `real` is the reference set and `fake` the set that is judged, float arrays N×d and M×d. All sums
are float64. No function adds an epsilon, so equal sets are at distance 0 up to rounding.

All raise UserError where a set has fewer than 2 rows, NaN or infinity, and where the sets differ in d.
"""

from collections.abc import Iterator

import numpy as np

from ganpipe.errors import UserError
from ganpipe.kid import checked

# Entries of a block of the distance matrix: 128 MiB in float64.
BLOCK = 2**24


def fd(real: np.ndarray, fake: np.ndarray) -> float:
    """Fréchet distance of the normal distributions with the two sets' means and (unbiased) covariances.

    |μ₁-μ₂|² + tr C₁ + tr C₂ - 2 tr (C₁C₂)^½ (Heusel et al. 2017, eq. 6). With Cᵢ = AᵢᵀAᵢ the last trace
    is the sum of the singular values of A₁A₂ᵀ, whatever the covariances' rank: exact for N < d too, where the
    root of a singular matrix is not. The value falls as N grows on the same distribution: compare at equal N.
    """
    real, fake = checked(real, fake)
    roots = _covariance_root(real), _covariance_root(fake)
    shift = real.mean(0) - fake.mean(0)
    cross = np.linalg.svd(roots[0] @ roots[1].T, compute_uv=False).sum()
    # The sum of rounded terms may fall a hair below zero for equal sets; the distance does not.
    return max(0.0, float(shift @ shift + sum((root**2).sum() for root in roots) - 2 * cross))


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


def _checked(real: np.ndarray, fake: np.ndarray, k: int) -> tuple[np.ndarray, np.ndarray]:
    real, fake = checked(real, fake)
    for side, rows in (("real", real), ("generated", fake)):
        if k >= len(rows):
            raise UserError(
                f"evaluate.neighbours: {k} neighbours need more than {k} images a set, found {len(rows)} "
                f"{side} ones; lower it or compare more images (sample.count)"
            )
    return real, fake


def _covariance_root(rows: np.ndarray) -> np.ndarray:
    """Return A with AᵀA = the unbiased covariance: the centred rows or, if smaller, their d×d QR factor."""
    centred = (rows - rows.mean(0)) / np.sqrt(len(rows) - 1)
    return centred if len(rows) <= rows.shape[1] else np.asarray(np.linalg.qr(centred, mode="r"))


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
