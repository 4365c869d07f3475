"""Whether a generator copies its training images, from the distances of features to the nearest ones.

KID, FD and precision cannot tell: copies of the training images score perfectly. Images that were held out
from training show how close new images come to the training images.
"""

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from ganpipe.metrics.kid import check_features

# With fewer held-out images, chance alone brings good generators below the bounds below.
LEAST_HELD_OUT = 100
# Neighbours that are found in addition to the requested ones, because the search's rounding may misrank them.
SPARE = 2
# Generated images are suspicious below this share of the held-out images' distance, or below this share of
# their authenticity. The bounds lie between generators of one dense category of digits (0.76, 0.76 at 32 px)
# and 30 % copies (0.85, 0.65 at 64 px).
LOW_DISTANCE, LOW_AUTHENTICITY = 0.6, 0.7
MOST_NEAR_COPIES = 0.02  # share of near copies beyond that of the held-out images which is suspicious


@dataclass(frozen=True)
class Neighbours:
    """The k nearest training images of N images, N×k: float64 distances, ascending, and int64 indices."""

    distances: np.ndarray
    indices: np.ndarray
    own: np.ndarray  # float64 N, from the nearest training image to its own nearest other training image

    @property
    def authentic(self) -> np.ndarray:
        """Bool N: farther from a training image than that is from its own nearest (Alaa et al. 2022, 3.3)."""
        return self.distances[:, 0] > self.own

    @property
    def relative_distance(self) -> np.ndarray:
        """Float64 N: distance to the nearest training image over `own`, 0 for a copy; may be infinite."""
        nearest = self.distances[:, 0]
        return np.divide(nearest, self.own, out=np.where(nearest > 0, np.inf, 0.0), where=self.own > 0)


def neighbours(images: np.ndarray, train: np.ndarray, k: int = 3) -> Neighbours:
    """Find the k nearest training images of each image, at most M, from features float N×d and M×d, M >= 2.

    Raises UserError: a set has fewer than 2 rows, NaN or infinity, or the sets differ in d.
    """
    check_features(images, train)
    indices, distances = _nearest(images, train, k)
    nearest, inverse = np.unique(indices[:, 0], return_inverse=True)
    _, own = _nearest(train[nearest], train, 2)  # a training image is its own first neighbour
    return Neighbours(distances, indices, own[inverse, 1])


def _nearest(points: np.ndarray, train: np.ndarray, k: int) -> tuple[np.ndarray, np.ndarray]:
    """Find each point's k nearest rows of `train`: their indices and distances, ascending."""
    from sklearn.neighbors import NearestNeighbors

    search = NearestNeighbors(n_neighbors=min(k + SPARE, len(train)), algorithm="brute").fit(train)
    indices = np.sort(search.kneighbors(points, return_distance=False))
    # The search multiplies matrices; only differences of features are exact for near images.
    exact = points.astype(np.float64)
    distances = np.stack([np.linalg.norm(exact - train[column], axis=1) for column in indices.T], axis=1)
    order = np.argsort(distances, axis=1, kind="stable")[:, :k]
    return np.take_along_axis(indices, order, axis=1), np.take_along_axis(distances, order, axis=1)


def nn_ratio(images: Neighbours, held_out: Neighbours) -> float | None:
    """Return the images' median distance to the nearest training image over that of held-out images.

    0 for copies; 1 for images as new as real ones; above 1 for images unlike any. None if at least half of
    the held-out images are copies of training images.
    """
    expected = float(np.median(held_out.distances[:, 0]))
    return float(np.median(images.distances[:, 0])) / expected if expected > 0 else None


def near_copies(images: Neighbours, held_out: Neighbours) -> tuple[float, float]:
    """Return the share of the images that are near copies, and that of the held-out images.

    A near copy has at most half the `relative_distance` that 99 % of the held-out images exceed, copies among
    these left out. Unlike a median, the share shows a few copies among many new images.
    """
    new = held_out.relative_distance[np.isfinite(held_out.relative_distance)]
    limit = float(np.quantile(new[new > 0], 0.01)) / 2 if (new > 0).any() else 0.0
    share, floor = (float((near.relative_distance <= limit).mean()) for near in (images, held_out))
    return share, floor


def verdict(numbers: Mapping[str, float | None], held_out: int, searched: int, trained_on: int) -> str:
    """Return a line that says whether the metrics show copies, or why that is unknown.

    The other arguments count the held-out, the searched and all training images.
    """
    names = "authenticity", "authenticity_floor", "near_copies", "near_copies_floor"
    shares = [share for name in names if (share := numbers[name]) is not None]
    if len(shares) < len(names):  # too few held-out images
        needed = f"{LEAST_HELD_OUT} are needed to know how close new images come to the training images"
        remedy = "hold out more (preprocess.held_out; --held-out of ganpipe score)"
        return f"unknown: {held_out} held-out images, but at least {needed}; {remedy}"
    ratio = numbers["nn_ratio"]
    if ratio is None:
        return "unknown: half of the held-out images are copies of training images; remove the duplicates"
    authenticity, floor, near, near_floor = shares
    signs = []
    if ratio < LOW_DISTANCE:
        signs.append(f"distance to the training images is {ratio:.2f} times that of new images")
    if authenticity < LOW_AUTHENTICITY * floor:
        signs.append(f"{authenticity:.0%} authentic, but {floor:.0%} of new images are")
    if near - near_floor > MOST_NEAR_COPIES:
        signs.append(f"{near:.1%} near copies, but {near_floor:.1%} of new images are")
    if signs:
        return f"suspicious: {', '.join(signs)}"
    if searched < trained_on:
        images = f"{searched:,} of {trained_on:,} training images ({searched / trained_on:.0%})"
        remedy = "search all (evaluate.search_images: null; no --search-images of ganpipe score)"
        return f"unknown: only {images} were searched; {remedy}"
    return "no sign of copies"
