"""Precision, recall, density and coverage from balls around features N×d and M×d; sums are float64."""

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

from ganpipe.common.errors import ParamError
from ganpipe.metrics.kid import check_features

BLOCK = 2**25  # entries in a block of the distance matrix: 256 MiB in float64


@dataclass(frozen=True)
class Balls:
    """A ball around each point of a set, float64 N×d; its radius is the distance to the k-th neighbour."""

    points: np.ndarray
    k: int
    squared_radii: np.ndarray
    spread: float  # mean distance of two different points


def balls(points: np.ndarray, k: int, side: str = "real") -> Balls:
    """Compute the balls of a set of points, float N×d; `side` names it in errors: real or generated.

    Raises UserError: the set has at most k points, or one that is not finite.
    """
    if k >= len(points):
        problem = f"{k} neighbours need more than {k} images in a set, found {len(points)} {side} ones"
        raise ParamError("neighbours", f"{problem}; use more images, fewer sets or fewer neighbours")
    check_features(points, points)
    points = points.astype(np.float64)
    radii, total = [], 0.0
    for block in squared_distances(points, points):
        # The 0th neighbour is the point itself. Copied, because a view would keep the whole block in memory.
        block.partition(k, axis=1)
        radii.append(block[:, k].copy())
        total += float(np.sqrt(block, out=block).sum())
    return Balls(points, k, np.concatenate(radii), total / (len(points) * (len(points) - 1)))


def overlap(real: Balls, fake: Balls) -> dict[str, float]:
    """Compare two sets by the balls around their points.

    Returns:
        precision: share of fake points inside a real ball; recall: share of real points inside a fake ball
        (Kynkäänniemi et al. 2019, eq. 2). density: real balls that contain a fake point, over k; coverage:
        share of real balls that contain a fake point (Naeem et al. 2020, eq. 3 and 4). A point on a ball's
        surface is inside.
    """
    precise = contained = start = np.int64(0)
    recalled = covered = np.zeros(len(real.points), bool)
    for block in squared_distances(fake.points, real.points):
        inside = block <= real.squared_radii
        precise += inside.any(1).sum()
        contained += inside.sum()
        covered = covered | inside.any(0)
        recalled = recalled | (block <= fake.squared_radii[start : start + len(block), None]).any(0)
        start += len(block)
    return {
        "precision": float(precise / len(fake.points)),
        "recall": float(recalled.mean()),
        "density": float(contained / (real.k * len(fake.points))),
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
        # Equal images come out a rounding error apart; a ball of radius 0 must still contain its own copies.
        squared[squared <= 2e-10 * norms] = 0
        yield squared
