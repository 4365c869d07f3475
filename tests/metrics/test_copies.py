"""Copies of training images are detected, however good all other numbers are."""

import re
import tracemalloc
from collections.abc import Callable

import numpy as np
import pytest

from ganpipe.metrics import manifold
from ganpipe.metrics.copies import neighbours, nn_ratio, verdict

RANDOM = np.random.default_rng(0)
TRAIN, NEW, FRESH = (RANDOM.standard_normal((count, 6)) for count in (120, 50, 60))


@pytest.mark.parametrize("block", [1, 500, manifold.BLOCK])
def test_neighbours_are_the_plain_loops(monkeypatch: pytest.MonkeyPatch, block: int) -> None:
    """If it fails, nearest.png shows other images than the nearest ones, and both numbers are wrong."""
    monkeypatch.setattr(manifold, "BLOCK", block)
    near = neighbours(FRESH, TRAIN)
    for i, image in enumerate(FRESH):
        far = np.linalg.norm(TRAIN - image, axis=1)
        nearest = np.argsort(far)[:3]
        assert near.indices[i].tolist() == nearest.tolist()
        assert near.distances[i] == pytest.approx(far[nearest])
        own = np.sort(np.linalg.norm(TRAIN - TRAIN[nearest[0]], axis=1))[1]
        assert near.own[i] == pytest.approx(own)
        assert near.authentic[i] == (far[nearest[0]] > own)
        assert near.relative_distance[i] == pytest.approx(far[nearest[0]] / own)


@pytest.mark.parametrize(
    "find",
    [neighbours, lambda images, train: manifold.overlap(manifold.balls(images, 3), manifold.balls(train, 3))],
    ids=["near", "manifold"],
)
def test_memory_does_not_grow_with_the_pairs(
    monkeypatch: pytest.MonkeyPatch, find: Callable[[np.ndarray, np.ndarray], object]
) -> None:
    """If it fails, ten thousand images need gigabytes: blocks must avoid the matrix of all pairs."""
    monkeypatch.setattr(manifold, "BLOCK", 2**16)
    rows, pairs = np.random.default_rng(0).standard_normal((1500, 4)), 1500**2 * 8
    tracemalloc.start()
    find(rows[:1400], rows[100:])
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < pairs / 3


def test_copies_are_flagged_and_new_images_are_not() -> None:
    """If it fails, a model that memorises wins, or a good one is accused."""
    held_out = neighbours(NEW, TRAIN)
    floor = float(held_out.authentic.mean())
    for images, low, high, authentic, words in (
        (TRAIN[:60], 0, 0, 0, "suspicious: .* is 0.00 times that of new images, 0% authentic"),
        (FRESH, 0.85, 1.15, 0.4, "no sign of copies"),
        (FRESH + 9, 2, 99, 1, "no sign of copies"),
        (np.concatenate([TRAIN[:30], FRESH[:30]]), 0, 1, 0.1, "suspicious"),
    ):
        near = neighbours(images, TRAIN)
        ratio, authenticity = nn_ratio(near, held_out), float(near.authentic.mean())
        assert ratio is not None and low <= ratio <= high and authenticity >= authentic
        line = verdict(ratio, authenticity, floor, 50)
        assert re.match(words, line), line


def test_the_verdict_names_what_is_missing() -> None:
    """If it fails, numbers that mean nothing without held-out images pass for a verdict."""
    assert "unknown: 7 held-out images, but at least 100" in verdict(None, 0.5, None, 7)
    assert nn_ratio(neighbours(FRESH, TRAIN), neighbours(TRAIN[:9], TRAIN)) is None
    assert "remove the duplicates" in verdict(None, 0.5, 0.1, 70)


def test_equal_training_images_hide_no_copy() -> None:
    """If it fails, duplicates in the training set hide copies of them, or accuse new images."""
    train = np.repeat(TRAIN[:10], 2, axis=0)
    near = neighbours(np.concatenate([TRAIN[:3], FRESH[:3]]), train, k=1)
    assert near.authentic.tolist() == [False] * 3 + [True] * 3
    assert near.relative_distance[:3].tolist() == [0, 0, 0] and np.isinf(near.relative_distance[3:]).all()
