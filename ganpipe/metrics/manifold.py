"""Precision, recall, density and coverage: balls around the points of two sets of features, N×d and M×d.

All sums are float64. No epsilon is added.
"""

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

from ganpipe.common.errors import UserError
from ganpipe.metrics.kid import checked

# Entries of a block of the distance matrix: 256 MiB in float64.
BLOCK = 2**25


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
