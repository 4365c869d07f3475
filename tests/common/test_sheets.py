"""Sheets of images."""

import numpy as np
import pytest
from PIL import Image

from ganpipe.common.sheets import captioned, cells, columns_for, labelled, sheet


def test_sheet_places_images_row_by_row() -> None:
    """In another order, a grid's image could not be attributed to its z."""
    images = np.arange(6, dtype=np.uint8)[:, None, None, None].repeat(4, 1).repeat(3, 2) * 10
    grid = np.asarray(sheet(images, 3))
    assert grid.shape == (8, 9)
    expected = np.block([[images[r * 3 + c, :, :, 0] for c in range(3)] for r in range(2)])
    assert np.array_equal(grid, expected)


def test_sheet_keeps_colours_and_fills_gaps_and_empty_cells() -> None:
    """Swapped channels or a misplaced gap would falsify every sheet."""
    images = np.empty((3, 2, 2, 3), np.uint8)
    images[:] = [[[[10, 20, 30]]], [[[40, 50, 60]]], [[[70, 80, 90]]]]
    grid = np.asarray(sheet(images, 2, gap=1))
    assert grid.shape == (5, 5, 3)
    assert (grid[:2, :2] == images[0]).all() and (grid[:2, 3:] == images[1]).all()
    assert (grid[3:, :2] == images[2]).all()
    assert (grid[2] == 255).all() and (grid[:, 2] == 255).all() and (grid[3:, 3:] == 255).all()


def test_a_grey_sheet_with_gaps_is_in_colour() -> None:
    """Labels and captions are added in colour; another mode would change the bytes of every sheet."""
    images = np.zeros((3, 2, 2, 1), np.uint8)
    assert sheet(images[:2], 2).mode == "L"
    assert sheet(images, 2).mode == sheet(images[:2], 2, gap=1).mode == "RGB"


@pytest.mark.parametrize(
    ("side", "columns"), [(8, 8), (32, 8), (64, 8), (80, 6), (128, 4), (256, 2), (1024, 2)]
)
def test_columns_for(side: int, columns: int) -> None:
    """A wider grid would not fit a screen; a narrower one would show too few images."""
    assert columns_for(side) == columns


def test_captioned_puts_text_above_an_untouched_picture() -> None:
    """A caption on top of images would hide some; an unreadable one would leave the halves unnamed."""
    picture = Image.fromarray(np.random.default_rng(0).integers(0, 256, (50, 300, 3), np.uint8))
    titled = np.asarray(captioned(picture, "generated"))
    strip, below = titled[:-50], titled[-50:]
    assert np.array_equal(below, np.asarray(picture))
    ink = np.argwhere(strip.min(axis=2) < 128)
    assert len(ink) > 100
    assert (ink.min(0) > 0).all() and (ink.max(0) < np.array(strip.shape[:2]) - 1).all()
    assert abs(ink[:, 1].mean() - 150) < 10
    assert 100 < np.ptp(ink[:, 1]) < 150, "a line of 24 px, all of it"
    assert not np.array_equal(strip, np.asarray(captioned(picture, "real"))[:-50])


def test_captioned_widens_for_the_text() -> None:
    """A caption over a single small image would be cut off."""
    picture = Image.new("L", (8, 8), 9)
    titled = np.asarray(captioned(picture, "generated"))
    assert titled.shape[1] > 80
    assert (titled[-8:] == 9).all(axis=2).sum() == 64


@pytest.mark.parametrize(
    ("side", "columns", "expected"), [(16, 9, 64), (28, 9, 84), (64, 9, 64), (128, 9, 128), (256, 4, 256)]
)
def test_cells_enlarge_small_images(side: int, columns: int, expected: int) -> None:
    """Images of 16 px would be too small to see; smoothing would hide artifacts."""
    images = np.random.default_rng(0).integers(0, 256, (2, side, side, 3), np.uint8)
    resized = cells(images, columns)
    assert resized.shape == (2, expected, expected, 3)
    assert np.array_equal(resized[:, :: expected // side, :: expected // side], images)


@pytest.mark.parametrize(
    ("side", "channels", "columns", "expected"),
    [(256, 3, 9, 128), (1024, 3, 9, 128), (192, 1, 9, 96), (1024, 1, 4, 256)],
)
def test_cells_average_large_images(side: int, channels: int, columns: int, expected: int) -> None:
    """A traversal at 1,024 px would be 9,216 px wide; skipped pixels would alias."""
    images = np.random.default_rng(0).integers(0, 256, (2, side, side, channels), np.uint8)
    resized = cells(images, columns)
    factor = side // expected
    means = images.reshape(2, expected, factor, expected, factor, channels).mean(axis=(2, 4))
    assert resized.shape == means.shape and np.abs(resized - means).max() <= 0.5 + 1e-9


def test_labels_are_beside_their_rows() -> None:
    """A label beside another row would name the wrong element."""
    images = np.random.default_rng(0).integers(0, 256, (6, 64, 64, 1), np.uint8)
    blank = np.asarray(labelled(images, 2, ["", "wide enough\nfor two lines\nor three", ""], "title"))
    left = blank.shape[1] - (2 * 64 + 2)
    top = blank.shape[0] - (3 * 64 + 2 * 2)
    for i, image in enumerate(images):
        y, x = top + i // 2 * 66, left + i % 2 * 66
        assert (blank[y : y + 64, x : x + 64] == image).all()
    ink = np.argwhere(blank[top:, :left].min(axis=2) < 128)
    assert len(ink) > 100 and ink[:, 0].min() >= 66 and ink[:, 0].max() < 66 + 64
    assert ink[:, 1].min() > 2 and ink[:, 1].max() < left - 2
    assert abs((ink[:, 0].min() + ink[:, 0].max()) / 2 - (66 + 32)) < 5
    assert (blank[:top].min(axis=2) < 128).any(), "no caption"
