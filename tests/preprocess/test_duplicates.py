"""Copies: what is the same picture is found, what only looks like it is not, in seconds."""

import io
import time
from collections.abc import Callable

import numpy as np
import pytest
from conftest import digits
from PIL import Image, ImageEnhance

from ganpipe.preprocess.decode import difference_hash
from ganpipe.preprocess.duplicates import _candidates, originals

SIDE, COUNT = 64, 60


def pictures() -> list[Image.Image]:
    """Smooth noise, detailed as photographs are."""
    rng = np.random.default_rng(0)
    noise = [rng.integers(0, 256, (9, 9, 3), np.uint8) for _ in range(COUNT)]
    return [Image.fromarray(pixels).resize((200, 200), Image.Resampling.BICUBIC) for pixels in noise]


def packed(found: list[Image.Image]) -> tuple[np.ndarray, np.ndarray]:
    """Return difference hashes and training images."""
    small = [image.convert("RGB").resize((SIDE, SIDE), Image.Resampling.LANCZOS) for image in found]
    hashes = np.array([difference_hash(image) for image in small], np.uint64)
    return hashes, np.stack([np.asarray(image) for image in small])


def saved(image: Image.Image, kind: str) -> Image.Image:
    """Save with losses and read again."""
    file = io.BytesIO()
    image.save(file, kind, quality=50)
    return Image.open(file)


@pytest.mark.parametrize(
    "change",
    [
        lambda image: saved(image, "JPEG"),
        lambda image: saved(image, "WEBP"),
        lambda image: image.resize((90, 90), Image.Resampling.LANCZOS),
        lambda image: ImageEnhance.Brightness(image).enhance(0.85),
    ],
)
def test_saved_scaled_and_lit_copies_are_found(change: Callable[[Image.Image], Image.Image]) -> None:
    """A copy in the held-out split hides that the generator repeats its training images."""
    images = pictures()
    hashes, pixels = packed([*images, *(change(image) for image in reversed(images))])
    found = originals([str(i) for i in range(2 * COUNT)], hashes, pixels)
    assert found[:COUNT].tolist() == list(range(COUNT))
    assert (found[COUNT:] == np.arange(COUNT)[::-1]).mean() > 0.95


def test_equal_bytes_are_found_whatever_they_look_like() -> None:
    """Plain pictures have no hash to speak of."""
    hashes = np.array([1, 2, 3, 4], np.uint64) << np.uint64(40)
    images = np.random.default_rng(0).integers(0, 256, (4, 8, 8, 1), np.uint8)
    assert originals(["b", "a", "b", "a"], hashes, images).tolist() == [0, 1, 0, 1]
    assert originals([], np.zeros(0, np.uint64), images[:0]).tolist() == []


def test_digits_that_look_alike_are_no_copies() -> None:
    """Dropping similar pictures would take what is common out of a set, and change what is learned."""
    pixels = digits()[::5]
    hashes, _ = packed([Image.fromarray(image.squeeze()) for image in pixels])
    found = originals([str(i) for i in range(len(pixels))], hashes, pixels)
    assert (found != np.arange(len(pixels))).sum() <= 3


def test_chains_lead_to_the_first_and_plain_ones_differ_by_shade() -> None:
    """A copy of a copy would stay when the one between them goes."""
    shades = np.array([10, 200, 11, 90, 10, 199], np.uint8)
    images = np.broadcast_to(shades[:, None, None, None], (6, 16, 16, 3))
    found = originals([str(i) for i in range(6)], np.zeros(6, np.uint64), images)
    assert found.tolist() == [0, 1, 0, 3, 0, 1]


def test_many_alike_take_seconds() -> None:
    """Comparing each with each would take hours for what a set of line drawings or blank scans is."""
    rng = np.random.default_rng(1)
    images = rng.integers(0, 256, (3_000, 8, 8, 1), np.uint8)
    started = time.process_time()
    found = originals([str(i) for i in range(3_000)], np.zeros(3_000, np.uint64), images)
    assert (found == np.arange(3_000)).all() and time.process_time() - started < 20


@pytest.mark.parametrize("bits", [0, 1, 2, 3, 4])
def test_hashes_that_differ_in_few_bits_meet_in_a_large_set(bits: int) -> None:
    """In a set of 100,000 its copies would be missed: each is compared with a few others only."""
    rng = np.random.default_rng(bits)
    hashes = rng.integers(0, 2**64, 100_000, np.uint64)
    # The last 300 are copies of the first, each with some bits turned.
    for i in range(300):
        turned = rng.choice(64, bits, replace=False).astype(np.uint64)
        hashes[-300 + i] = hashes[i] ^ np.bitwise_or.reduce(
            np.uint64(1) << turned, initial=0, dtype=np.uint64
        )
    pairs: set[tuple[int, int]] = set()
    for a, b in _candidates(hashes, np.arange(len(hashes))):
        pairs |= {(min(pair), max(pair)) for pair in zip(a.tolist(), b.tolist(), strict=True)}
    assert sum((i, 100_000 - 300 + i) in pairs for i in range(300)) >= (297 if bits < 4 else 270)
