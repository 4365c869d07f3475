"""Distances between two sets of images, from their features alone: arrays N×d in, plain numbers out.

Everywhere `real` is the reference set and `fake` the set that is judged, float arrays N×d and M×d. All sums
are float64. No function adds an epsilon, so equal sets are at distance 0 up to rounding.

All raise UserError where a set has fewer than 2 rows, NaN or infinity, and where the sets differ in d.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Self

import numpy as np

from ganpipe.errors import UserError
from ganpipe.kid import checked

# Entries of a block of the distance matrix: 256 MiB in float64.
BLOCK = 2**25
# Rows that a normal distribution takes in at once.
ROWS = 4096
# The classifier that tells generated from real images: principal components that it sees, folds of its trial.
COMPONENTS, FOLDS = 64, 5
# Share of the largest variance below which a component is a rounding error.
LEAST_VARIANCE = 1e-10


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


@dataclass(frozen=True)
class Balls:
    """Balls around the points of a set that reach to their k-th nearest neighbour.

    Attributes:
        points: float64 N×d.
        squared_radii: float64 N.
        spread: mean distance of two different points.
    """

    points: np.ndarray
    k: int
    squared_radii: np.ndarray
    spread: float


def balls(points: np.ndarray, k: int, side: str = "real") -> Balls:
    """Span a set's balls.

    Args:
        points: float N×d.
        k: which neighbour they reach to.
        side: what the set is, for errors: real or generated.

    Raises:
        UserError: there is no k-th neighbour.
    """
    if k >= len(points):
        raise UserError(
            f"evaluate.neighbours: {k} neighbours need more than {k} images a set, found {len(points)} "
            f"{side} ones; lower it or compare more images (sample.count)"
        )
    points, _ = checked(points, points)
    radii, total = [], 0.0
    for block in squared_distances(points, points):
        # The 0th neighbour is the point itself. Copied, because a view keeps the whole block in memory.
        block.partition(k, axis=1)
        radii.append(block[:, k].copy())
        total += float(np.sqrt(block, out=block).sum())
    return Balls(points, k, np.concatenate(radii), total / (len(points) * (len(points) - 1)))


def manifold(real: np.ndarray, fake: np.ndarray, k: int) -> dict[str, float]:
    """Compare the sets by their balls; see `overlap`."""
    real, fake = checked(real, fake)
    return overlap(balls(real, k), balls(fake, k, "generated"))


def overlap(real: Balls, fake: Balls) -> dict[str, float]:
    """Compare the sets by balls around their points.

    Returns:
        precision: share of fake inside a real ball, recall: share of real inside a fake ball (Kynkäänniemi et
        al. 2019, eq. 2). density: real balls that hold a fake point, over k; coverage: share of real balls
        with a fake point (Naeem et al. 2020, eq. 3 and 4). A point on a ball's edge is inside.
    """
    precise = held = start = 0
    recalled = covered = np.zeros(len(real.points), bool)
    for block in squared_distances(fake.points, real.points):
        inside = block <= real.squared_radii
        precise += inside.any(1).sum()
        held += inside.sum()
        covered = covered | inside.any(0)
        radii = fake.squared_radii[start : start + len(block), None]
        recalled = recalled | (block <= radii).any(0)
        start += len(block)
    return {
        "precision": float(precise / len(fake.points)),
        "recall": float(recalled.mean()),
        "density": float(held / (real.k * len(fake.points))),
        "coverage": float(covered.mean()),
    }


def c2st_auc(real: np.ndarray, fake: np.ndarray, seed: int) -> float:
    """Say how well a classifier tells fake from real: the area under its ROC curve on images it has not seen.

    A logistic classifier on whitened principal components; these and it are fitted to four fifths of both
    sets and tried on the last, in turn (a two-sample test after Lopez-Paz & Oquab 2017). 0.5: it cannot tell
    them apart; 1: always. A little below 0.5 is chance; far below, fake ones are copies: their twins,
    which the classifier was fitted to, bear the other label.
    """
    from scipy.linalg import eigh
    from sklearn.linear_model import LogisticRegression
    from sklearn.metrics import roc_auc_score
    from sklearn.model_selection import StratifiedKFold

    real, fake = checked(real, fake)
    rows = np.concatenate([real, fake])
    if (rows == rows[0]).all():
        return 0.5
    rows -= rows.mean(0)
    if rows.shape[1] > len(rows):
        # The same rows in coordinates of the space that they span.
        rows = np.ascontiguousarray(np.asarray(np.linalg.qr(rows.T, mode="r")).T)
    labels = np.repeat([0, 1], [len(real), len(fake)])
    folds = min(FOLDS, len(real), len(fake))
    trials = StratifiedKFold(folds, shuffle=True, random_state=seed % 2**32)
    squares, areas = rows.T @ rows, []
    for fit, test in trials.split(rows, labels):
        tried = rows[test]
        # What the rows of the trial leave of all rows' sums are those of the rows to fit to.
        mean = -tried.sum(0) / len(fit)
        covariance = (squares - tried.T @ tried) / (len(fit) - 1)
        covariance -= np.outer(mean, mean) * (len(fit) / (len(fit) - 1))
        most = min(COMPONENTS, len(fit) - 1, rows.shape[1])
        variances, components = eigh(covariance, subset_by_index=(rows.shape[1] - most, rows.shape[1] - 1))
        varied = variances > LEAST_VARIANCE * variances[-1]
        if not varied.any():
            areas.append(0.5)  # All that it could be fitted to are alike.
            continue
        components = components[:, varied] / np.sqrt(variances[varied])
        whitened = rows @ components - mean @ components
        classifier = LogisticRegression(max_iter=1000).fit(whitened[fit], labels[fit])
        areas.append(roc_auc_score(labels[test], classifier.decision_function(whitened[test])))
    return float(np.mean(areas))


def squared_distances(a: np.ndarray, b: np.ndarray) -> Iterator[np.ndarray]:
    """Yield the squared distances of some rows of `a` to all of `b`, block after block, in order."""
    norms_a, norms_b = (a**2).sum(1), (b**2).sum(1)
    step = max(1, BLOCK // len(b))
    for start in range(0, len(a), step):
        norms = norms_a[start : start + step, None]
        squared = a[start : start + step] @ b.T
        squared *= -2
        squared += norms
        squared += norms_b
        # Equal images come out a rounding error apart; a ball of radius 0 must still hold its own copies.
        squared[squared <= 2e-10 * norms] = 0
        yield squared
