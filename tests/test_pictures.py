"""Sheets of images as pictures."""

import numpy as np
import pytest
from PIL import Image

from ganpipe import pictures


def test_sheet_places_images_row_by_row() -> None:
    """Images in another order would put a grid's picture beside another z than the one that made it."""
    images = np.arange(6, dtype=np.uint8)[:, None, None, None].repeat(4, 1).repeat(3, 2) * 10
    grid = np.asarray(pictures.sheet(images, 3))
    assert grid.shape == (8, 9)
    expected = np.block([[images[r * 3 + c, :, :, 0] for c in range(3)] for r in range(2)])
    assert np.array_equal(grid, expected)


def test_sheet_keeps_colours_and_fills_gaps_and_empty_places() -> None:
    """Swapped channels or a gap in the wrong place would falsify every picture that people judge by."""
    images = np.empty((3, 2, 2, 3), np.uint8)
    images[:] = [[[[10, 20, 30]]], [[[40, 50, 60]]], [[[70, 80, 90]]]]
    grid = np.asarray(pictures.sheet(images, 2, gap=1, background=(1, 2, 3)))
    assert grid.shape == (5, 5, 3)
    assert (grid[:2, :2] == images[0]).all() and (grid[:2, 3:] == images[1]).all()
    assert (grid[3:, :2] == images[2]).all()
    assert (
        (grid[2] == (1, 2, 3)).all() and (grid[:, 2] == (1, 2, 3)).all() and (grid[3:, 3:] == (1, 2, 3)).all()
    )


def test_a_grey_sheet_with_background_is_in_colour() -> None:
    """A grey picture could not show the background's colour."""
    images = np.zeros((3, 2, 2, 1), np.uint8)
    assert pictures.sheet(images[:2], 2).mode == "L"
    assert pictures.sheet(images, 2).mode == pictures.sheet(images[:2], 2, gap=1).mode == "RGB"


@pytest.mark.parametrize(
    ("side", "columns"), [(8, 8), (32, 8), (64, 8), (80, 6), (128, 4), (256, 2), (1024, 2)]
)
def test_columns_for(side: int, columns: int) -> None:
    """Wider grids would not fit a screen, narrower ones show too few images."""
    assert pictures.columns_for(side) == columns


def test_side_by_side_keeps_both_pictures() -> None:
    """A lost edge or an overlap would hide images."""
    left, right = Image.new("L", (3, 5), 7), Image.new("RGB", (4, 2), (1, 2, 3))
    joined = np.asarray(pictures.side_by_side(left, right, gap=2))
    assert joined.shape == (5, 9, 3)
    assert (joined[:, :3] == 7).all() and (joined[:2, 5:] == (1, 2, 3)).all()
    assert (joined[:, 3:5] == 255).all() and (joined[2:, 5:] == 255).all()


def test_captioned_puts_text_above_an_untouched_picture() -> None:
    """A caption on top of images would hide some; an unreadable one would leave the halves unnamed."""
    picture = Image.fromarray(np.random.default_rng(0).integers(0, 256, (50, 300, 3), np.uint8))
    titled = np.asarray(pictures.captioned(picture, "generated"))
    strip, below = titled[:-50], titled[-50:]
    assert np.array_equal(below, np.asarray(picture))
    ink = np.argwhere(strip.min(axis=2) < 128)
    assert len(ink) > 100
    assert (ink.min(0) > 0).all() and (ink.max(0) < np.array(strip.shape[:2]) - 1).all()
    assert abs(ink[:, 1].mean() - 150) < 10
    assert 100 < np.ptp(ink[:, 1]) < 150, "a line of 24 px, all of it"
    assert not np.array_equal(strip, np.asarray(pictures.captioned(picture, "real"))[:-50])


def test_captioned_widens_for_the_text() -> None:
    """A caption over a single small image would be cut off."""
    picture = Image.new("L", (8, 8), 9)
    titled = np.asarray(pictures.captioned(picture, "generated"))
    assert titled.shape[1] > 80
    assert (titled[-8:] == 9).all(axis=2).sum() == 64
