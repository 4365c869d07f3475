"""Does a generator copy its training images? Distances to the nearest ones tell, from features alone.

Set-wise distances cannot: mere copies of the training images score a perfect FD, KID and precision. Images
that were kept from training show how near new images come by themselves.
"""

from dataclasses import dataclass

import numpy as np

from ganpipe.metrics.kid import checked
from ganpipe.metrics.manifold import squared_distances

# Held-out images that must be there for the numbers to have something to be compared with: with fewer, chance
# alone brings good generators under the bounds below.
LEAST_HELD_OUT = 100
# Neighbours that the search takes besides those that are asked for.
SPARE = 2
# Generated images are suspicious where they lie at less than this share of the distance at which new images
# lie, or where less than this share of what is authentic among new images is so among them. That is between
# generators of one dense category of digits (0.76, 0.76 at 32 px) and of 30 % copies (0.85, 0.65 at 64 px).
NEAR, FEW = 0.6, 0.7


@dataclass(frozen=True)
class Neighbours:
    """The nearest training images of some images.

    Attributes:
        distances: float64 N×k, in rising order.
        indices: int64 N×k, rows of the training images.
        own: float64 N, from the nearest training image to its own nearest other training image.
    """

    distances: np.ndarray
    indices: np.ndarray
    own: np.ndarray

    @property
    def authentic(self) -> np.ndarray:
        """Bool N: the image is farther from the nearest training image than that is from the next one.

        An image that fails this is more alike to a training image than training images are to each other
        there (Alaa et al. 2022, section 3.3).
        """
        return self.distances[:, 0] > self.own

    @property
    def suspicion(self) -> np.ndarray:
        """Float64 N: distance over `own`, 0 for a copy; small values are the most suspicious ones."""
        near = self.distances[:, 0]
        return np.divide(near, self.own, out=np.where(near > 0, np.inf, 0.0), where=self.own > 0)


def neighbours(images: np.ndarray, train: np.ndarray, k: int = 3) -> Neighbours:
    """Find the k nearest training images of each image, block after block.

    Args:
        images: features float N×d.
        train: features of the training images, float M×d, M at least 2.
        k: how many; fewer where M is smaller.
    """
    images, train = checked(images, train)
    indices, distances = _nearest(images, train, min(k, len(train)))
    hit, place = np.unique(indices[:, 0], return_inverse=True)
    _, own = _nearest(train[hit], train, 1, hit)
    return Neighbours(distances, indices, own[place, 0])


def _nearest(
    points: np.ndarray, train: np.ndarray, k: int, own: np.ndarray | None = None
) -> tuple[np.ndarray, np.ndarray]:
    """Find the k nearest rows of `train` to each point, but for the row `own` of each; and their distances.

    The search is in float32 about the middle, in half the time; the distances of what it finds, and of some
    more that rounding may have put behind, are float64 by subtraction: exact for near ones, where it counts.
    """
    middle, most = train.mean(axis=0), min(k + SPARE, len(train) - (own is not None))
    coarse = [(rows - middle).astype(np.float32) for rows in (points, train)]
    found, start = [], 0
    for block in squared_distances(*coarse):
        rows = np.arange(len(block))
        if own is not None:
            block[rows, own[start : start + len(block)]] = np.inf
        start += len(block)
        columns = []
        for _ in range(most):  # of a few, faster than a partition
            columns.append(block.argmin(axis=1))
            block[rows, columns[-1]] = np.inf
        found.append(np.stack(columns, axis=1))
    indices = np.concatenate(found)
    distances = np.stack([np.linalg.norm(points - train[column], axis=1) for column in indices.T], axis=1)
    order = np.argsort(distances, axis=1, kind="stable")[:, :k]
    return np.take_along_axis(indices, order, axis=1), np.take_along_axis(distances, order, axis=1)


def nn_ratio(images: Neighbours, held_out: Neighbours) -> float | None:
    """Return the median distance to the nearest training image, over that of images kept from training.

    0 for copies; 1 for images as new as real ones; above 1 for images unlike any. None where held-out images
    are themselves copies of training images, half of them or more.
    """
    expected = float(np.median(held_out.distances[:, 0]))
    return float(np.median(images.distances[:, 0])) / expected if expected > 0 else None


def verdict(ratio: float | None, authenticity: float, floor: float | None, held_out: int) -> str:
    """Say in a line what the numbers mean, or what they lack.

    Args:
        ratio: `nn_ratio`, None where it cannot be had.
        authenticity: share of authentic generated images.
        floor: the same share of held-out images, None where there are too few.
        held_out: how many there are.
    """
    if floor is None:
        return (
            f"unknown: {held_out} held-out images, at least {LEAST_HELD_OUT} are needed to know how near new "
            "images come by themselves; keep more from training (preprocess.held_out, or --held-out of score)"
        )
    if ratio is None:
        return "unknown: half of the held-out images are copies of training images; remove the duplicates"
    signs = [f"{ratio:.2f} times as far from the training images as new images are"] if ratio < NEAR else []
    if authenticity < FEW * floor:
        signs.append(f"{authenticity:.0%} authentic where {floor:.0%} of new images are")
    return f"suspicious: {', '.join(signs)}" if signs else "no sign of copies"
