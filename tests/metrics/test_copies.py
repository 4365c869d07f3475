"""Copies of training images are detected, however good all other numbers are."""

import re
import tracemalloc
from collections.abc import Callable

import numpy as np
import pytest

from ganpipe.metrics import manifold
from ganpipe.metrics.copies import near_copies, neighbours, nn_ratio, verdict

RANDOM = np.random.default_rng(0)
TRAIN, NEW, FRESH = (RANDOM.standard_normal((count, 6)) for count in (120, 50, 60))


def shares(ratio: float | None, authenticity: float, floor: float | None) -> dict[str, float | None]:
    """Return the numbers of a verdict, without near copies."""
    numbers = {"nn_ratio": ratio, "authenticity": authenticity, "authenticity_floor": floor}
    return numbers | {"near_copies": 0.0, "near_copies_floor": 0.0 if floor else None}


def test_neighbours_are_the_plain_loops() -> None:
    """If it fails, nearest.png shows other images than the nearest ones, and both numbers are wrong."""
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
        line = verdict(shares(ratio, authenticity, floor), 50, 120, 120)
        assert re.match(words, line), line


def test_the_verdict_names_what_is_missing() -> None:
    """If it fails, numbers that mean nothing without held-out images pass for a verdict."""
    assert "unknown: 7 held-out images, but at least 100" in verdict(shares(None, 0.5, None), 7, 9, 9)
    assert nn_ratio(neighbours(FRESH, TRAIN), neighbours(TRAIN[:9], TRAIN)) is None
    assert "remove the duplicates" in verdict(shares(None, 0.5, 0.1), 70, 9, 9)
    line = verdict(shares(1.0, 0.8, 0.8), 100, 2000, 16000)
    assert re.match(r"unknown: only 2,000 of 16,000 training images \(12%\) .*search_images: null", line)
    assert verdict(shares(0.1, 0.8, 0.8), 100, 2000, 16000).startswith("suspicious"), "found in the part"


@pytest.mark.parametrize("repeated", [0, 12])
def test_a_few_copies_among_many_new_images_are_flagged(repeated: int) -> None:
    """If it fails, three in a hundred images are copies and the line says that there is no sign of them."""
    random = np.random.default_rng(1)
    train, held_out, new = np.split(random.standard_normal((900, 6)), 3)
    held_out[:repeated] = train[:repeated]  # duplicates between the splits hide none
    reference = neighbours(held_out, train)
    for copied, near in ((0, False), (repeated, False), (repeated + 9, True)):
        near_new = neighbours(np.concatenate([train[50 : 50 + copied] + 1e-3, new[copied:]]), train)
        share, expected = near_copies(near_new, reference)
        assert share == pytest.approx(copied / 300, abs=0.004) and expected >= repeated / 300
        numbers = shares(nn_ratio(near_new, reference), float(near_new.authentic.mean()), 0.5)
        line = verdict(numbers | {"near_copies": share, "near_copies_floor": expected}, 300, 300, 300)
        assert line.startswith("suspicious: ") == near and ("near copies" in line) == near, line


def test_equal_training_images_hide_no_copy() -> None:
    """If it fails, duplicates in the training set hide copies of them, or accuse new images."""
    train = np.repeat(TRAIN[:10], 2, axis=0)
    near = neighbours(np.concatenate([TRAIN[:3], FRESH[:3]]), train, k=1)
    assert near.authentic.tolist() == [False] * 3 + [True] * 3
    assert near.relative_distance[:3].tolist() == [0, 0, 0] and np.isinf(near.relative_distance[3:]).all()
