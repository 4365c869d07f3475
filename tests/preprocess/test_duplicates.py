"""Copies: the same picture is found, a similar one is not, and a large set takes seconds."""

import io
import time
from collections.abc import Callable

import numpy as np
import pytest
from conftest import digits
from PIL import Image, ImageEnhance

from ganpipe.preprocess.duplicates import _candidates, originals
from ganpipe.preprocess.prepare import difference_hash

SIDE, COUNT = 64, 60


def pictures() -> list[Image.Image]:
    """Smooth noise, detailed as photographs are."""
    rng = np.random.default_rng(0)
    noise = [rng.integers(0, 256, (9, 9, 3), np.uint8) for _ in range(COUNT)]
    return [Image.fromarray(pixels).resize((200, 200), Image.Resampling.BICUBIC) for pixels in noise]


def hashed(images: list[Image.Image]) -> tuple[np.ndarray, np.ndarray]:
    """Return difference hashes and training images."""
    small = [image.convert("RGB").resize((SIDE, SIDE), Image.Resampling.LANCZOS) for image in images]
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
    hashes, pixels = hashed([*images, *(change(image) for image in reversed(images))])
    rows = originals([str(i) for i in range(2 * COUNT)], hashes, pixels)
    assert rows[:COUNT].tolist() == list(range(COUNT))
    assert (rows[COUNT:] == np.arange(COUNT)[::-1]).mean() > 0.95


def test_equal_bytes_are_copies_whatever_the_pixels() -> None:
    """Two identical files of a plain picture, which has no useful hash, would not be found."""
    hashes = np.array([1, 2, 3, 4], np.uint64) << np.uint64(40)
    images = np.random.default_rng(0).integers(0, 256, (4, 8, 8, 1), np.uint8)
    assert originals(["b", "a", "b", "a"], hashes, images).tolist() == [0, 1, 0, 1]
    assert originals([], np.zeros(0, np.uint64), images[:0]).tolist() == []


def test_digits_that_look_alike_are_no_copies() -> None:
    """Dropping similar pictures would remove what is common in a set, and change what is learned."""
    pixels = digits()[::5]
    hashes, _ = hashed([Image.fromarray(image.squeeze()) for image in pixels])
    rows = originals([str(i) for i in range(len(pixels))], hashes, pixels)
    assert (rows != np.arange(len(pixels))).sum() <= 3


def test_chains_lead_to_the_first_and_plain_ones_differ_by_shade() -> None:
    """A copy of a copy would stay in the set when the copy between them is dropped."""
    shades = np.array([10, 200, 11, 90, 10, 199], np.uint8)
    images = np.broadcast_to(shades[:, None, None, None], (6, 16, 16, 3))
    rows = originals([str(i) for i in range(6)], np.zeros(6, np.uint64), images)
    assert rows.tolist() == [0, 1, 0, 3, 0, 1]


def test_many_similar_pictures_take_seconds() -> None:
    """Comparing each with each would take hours for a set of line drawings or blank scans."""
    rng = np.random.default_rng(1)
    images = rng.integers(0, 256, (3_000, 8, 8, 1), np.uint8)
    started = time.process_time()
    rows = originals([str(i) for i in range(3_000)], np.zeros(3_000, np.uint64), images)
    assert (rows == np.arange(3_000)).all() and time.process_time() - started < 20


@pytest.mark.parametrize("bits", [0, 1, 2, 3, 4])
def test_hashes_that_differ_in_few_bits_meet_in_a_large_set(bits: int) -> None:
    """Copies in a large set would be missed, as each hash is compared with only a few others."""
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
