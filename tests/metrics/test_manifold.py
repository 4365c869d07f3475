"""Precision, recall, density and coverage, against plain loops and the authors' own code."""

import numpy as np
import prdc
import pytest
from feature_sets import FAKE, REAL, gaussian, pixels

from ganpipe.common.errors import UserError
from ganpipe.metrics import manifold


def overlap(real: np.ndarray, fake: np.ndarray, k: int) -> dict[str, float]:
    """Span both sets' balls and compare them."""
    return manifold.overlap(manifold.balls(real, k), manifold.balls(fake, k, "generated"))


def distances(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """Distances of each of `a` to each of `b`, by subtraction."""
    return np.array([[np.linalg.norm(x - y) for y in b] for x in a])


def inside(points: np.ndarray, centres: np.ndarray, k: int) -> np.ndarray:
    """Whether each point lies in each centre's ball, points×centres."""
    radii = np.array([sorted(row)[k] for row in distances(centres, centres)])
    return distances(points, centres) <= radii


@pytest.mark.parametrize("k", [1, 3, 5])
@pytest.mark.parametrize("block", [1, 200, manifold.BLOCK])
def test_manifold_metrics_are_the_plain_loops(monkeypatch: pytest.MonkeyPatch, block: int, k: int) -> None:
    """If it fails, numbers are wrong: by one neighbour, by swapped sets, or at a block's edge."""
    monkeypatch.setattr(manifold, "BLOCK", block)
    numbers = overlap(REAL, FAKE, k)
    assert numbers["precision"] == inside(FAKE, REAL, k).any(1).mean()
    assert numbers["recall"] == inside(REAL, FAKE, k).any(1).mean()
    assert numbers["density"] == pytest.approx(inside(FAKE, REAL, k).sum() / (k * len(FAKE)))
    assert numbers["coverage"] == inside(FAKE, REAL, k).any(0).mean()
    assert 0 < numbers["precision"] != numbers["recall"] < 1


@pytest.mark.parametrize("k", [1, 5])
def test_manifold_metrics_are_those_of_prdc(k: int) -> None:
    """If it fails, the four numbers differ from the authors' own code."""
    real, fake = pixels(slice(0, 300)), pixels(slice(1000, 3000, 8))
    assert overlap(real, fake, k) == pytest.approx(prdc.compute_prdc(real, fake, k), rel=1e-12)


def test_manifold_metrics_tell_collapse_from_noise() -> None:
    """If it fails, collapse does not lower recall and coverage, or noise does not lower precision."""
    real, other = pixels(slice(0, 5000, 20)), pixels(slice(7, 5000, 20))
    collapsed = np.repeat(other[:5], 50, axis=0) + np.random.default_rng(0).normal(0, 1e-3, real.shape)
    numbers = overlap(real, collapsed, 5)
    assert numbers["recall"] < 0.05 and numbers["coverage"] < 0.2
    assert overlap(real, other, 5)["coverage"] > 0.9
    assert set(overlap(real, other + 5, 5).values()) == {0.0}


@pytest.mark.parametrize("scale", [1.0, 1e4])
def test_copies_are_covered_even_by_balls_of_no_radius(scale: float) -> None:
    """If it fails, rounding, which differs between batches, determines the numbers of equal images."""
    jitter = 1 + 1e-7 * np.random.default_rng(0).standard_normal((2, 40, 7))
    alike, again = gaussian(1, 7, 0) * scale * jitter
    for numbers in (overlap(alike, again, 3), overlap(REAL, REAL, 3)):
        assert (numbers["precision"], numbers["recall"], numbers["coverage"]) == (1, 1, 1)


def test_spread_is_the_mean_over_pairs() -> None:
    """If it fails, diversity counts each image as a pair with itself."""
    between = distances(FAKE, FAKE)
    assert manifold.balls(FAKE, 1).spread == pytest.approx(between.sum() / (45 * 44))
    assert manifold.balls(np.zeros((4, 3)), 1).spread == 0


def test_the_manifold_does_not_depend_on_the_order() -> None:
    """If it fails, the numbers depend on how files are sorted."""
    shuffled = FAKE[np.random.default_rng(0).permutation(len(FAKE))]
    assert overlap(REAL, shuffled, 3) == overlap(REAL, FAKE, 3)
    assert manifold.balls(shuffled, 1).spread == pytest.approx(manifold.balls(FAKE, 1).spread, rel=1e-12)


def test_as_many_neighbours_as_images_are_refused() -> None:
    """If it fails, a ball extends to a neighbour that does not exist."""
    for real, fake in ((REAL, FAKE[:5]), (FAKE[:5], REAL)):
        with pytest.raises(UserError, match=r"evaluate\.neighbours: 5 .* found 5"):
            overlap(real, fake, 5)
    assert overlap(REAL, FAKE[:5], 4)["precision"] > 0
