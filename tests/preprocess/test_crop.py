"""Where in a picture the training image is."""

import numpy as np
import pytest
from picture_files import settings
from PIL import Image

from ganpipe.preprocess.crop import Crop, Rejected, crop_for, cut, smart

# Eyes, mouth and three points of each ear, as in the CAT data set, of an upright head 100 px wide.
EARS = [[-50, 0], [-45, -55], [-20, -20], [20, -20], [45, -55], [50, 0]]
HEAD: np.ndarray = np.array([[-25, 10], [25, 10], [0, 45], *EARS], float)


def turned(degrees: float, scale: float, middle: tuple[float, float]) -> np.ndarray:
    """Return the head turned clockwise about its middle, computed with complex numbers."""
    x, y = (HEAD - HEAD.min(axis=0) - np.ptp(HEAD, axis=0) / 2).T
    points = (x + 1j * y) * scale * np.exp(1j * np.radians(degrees)) + complex(*middle)
    return np.stack([points.real, points.imag], axis=-1)


def test_crops_are_centred_and_a_fixed_one_is_never_smaller() -> None:
    """Faces would be cut off-centre, or one picture enlarged more than its neighbours."""
    assert crop_for(178, 218, settings(crop="centre", crop_size=160)) == Crop((9, 29, 169, 189))
    assert crop_for(178, 218, settings(crop="square")) == Crop((0, 20, 178, 198))
    assert crop_for(178, 218, settings()) == Crop((0, 0, 178, 218))
    with pytest.raises(Rejected, match=r"^smaller than preprocess\.crop_size \(41 px\) in a side$"):
        crop_for(200, 40, settings(crop="centre", crop_size=41))


def test_a_given_box_is_the_crop_and_a_padded_picture_is_whole() -> None:
    """Pictures with a common layout would be cut in another place, or a padded one would lose its ends."""
    box = (40, 50, 140, 150)
    assert crop_for(178, 218, settings(crop="box", crop_box=list(box))) == Crop(box)
    with pytest.raises(Rejected, match=r"^does not hold preprocess\.crop_box$"):
        crop_for(139, 218, settings(crop="box", crop_box=list(box)))
    assert crop_for(178, 218, settings(crop="pad")) == Crop((-20, 0, 198, 218))
    assert crop_for(300, 100, settings(crop="pad")) == Crop((0, -100, 300, 200))


@pytest.mark.parametrize("turn", [False, True])
@pytest.mark.parametrize("start", [0, 37, 150, 240])
def test_a_smart_square_is_the_largest_and_holds_the_detail(start: int, turn: bool) -> None:
    """A face at the end of a wide picture would be cut off, or the square would be smaller than possible."""
    pixels = np.full((100, 400), 90, np.uint8)
    noise = np.random.default_rng(0).integers(0, 256, (60, 60))
    at = min(start + 20, 340)
    pixels[20:80, at : at + 60] = noise
    image = Image.fromarray(np.ascontiguousarray(pixels.T) if turn else pixels)
    crop = smart(image, *image.size)
    assert smart(image.reduce(2), *image.size).box == pytest.approx(crop.box, abs=8)
    left, top, right, bottom = (crop.box[i] for i in ((1, 0, 3, 2) if turn else (0, 1, 2, 3)))
    assert (top, bottom, right - left) == (0, 100, 100)
    assert left <= at and at + 60 <= right


def test_a_smart_square_of_a_plain_or_square_picture_is_the_middle() -> None:
    """Without detail, rounding would choose the crop."""
    assert smart(Image.new("RGB", (300, 100)), 300, 100) == Crop((100, 0, 200, 100))
    assert smart(Image.new("RGB", (70, 70)), 70, 70) == Crop((0, 0, 70, 70))
    assert smart(Image.new("L", (9, 8)), 9, 8).size == (8, 8)


@pytest.mark.parametrize("degrees", [0, 30, -75, 90, 180])
@pytest.mark.parametrize("margin", [0.0, 0.2])
def test_a_head_is_upright_centred_and_scaled(degrees: float, margin: float) -> None:
    """Cats would be tilted or in a corner; dots at the landmarks must be where geometry predicts them."""
    points = turned(degrees, 2.0, (300, 250))
    y_of, x_of = np.indices((500, 600)) + 0.5
    near = [np.hypot(x_of - x, y_of - y) < 4 for x, y in points]
    image = Image.fromarray(np.any(near, axis=0).astype(np.uint8) * 255)
    crop = crop_for(600, 500, settings(crop="landmarks", margin=margin), tuple(points.ravel()))
    assert abs((crop.angle - degrees + 180) % 360 - 180) < 0.01
    assert set(crop.size) == {round(200 + 400 * margin)}
    cropped = np.asarray(cut(image, crop))
    expected = turned(0, 2.0, (crop.size[0] / 2, crop.size[1] / 2))
    for x, y in expected:
        inside = np.clip((y, x), 2, crop.size[0] - 3).round().astype(int)
        assert cropped[inside[0] - 1 : inside[0] + 2, inside[1] - 1 : inside[1] + 2].mean() > 200
    assert (cropped > 128).sum() < 9 * 3.2 * 4**2 + 9 * 8


def test_parts_outside_the_picture_are_mirrored() -> None:
    """Black corners would be learned as part of the head; the reference is NumPy's symmetric padding."""
    noise = np.random.default_rng(0).integers(0, 256, (40, 50, 3), np.uint8)
    mirrored = np.asarray(cut(Image.fromarray(noise), Crop((-5, -7, 45, 43))))
    np.testing.assert_array_equal(mirrored, np.pad(noise, [(7, 3), (5, 0), (0, 0)], mode="symmetric")[:, :50])
    grey = np.asarray(cut(Image.fromarray(noise[:, :, 0]), Crop((10, 0, 50, 40), 90.0)))
    np.testing.assert_allclose(grey.astype(int), np.rot90(noise[:, 10:, 0]), atol=1)


@pytest.mark.parametrize(
    "points",
    [
        (10, 10, 10, 10, 50, 50),
        (-90, 10, -20, 10),
        (40, 50, 60, 50, 50, 900),
        (1e9, 0, -1e9, 0),
    ],
)
def test_unusable_landmarks_are_rejected(points: tuple[float, ...]) -> None:
    """A typing error in a table would give an image of nothing but mirrored edges, or fill the memory."""
    with pytest.raises(Rejected, match="^landmarks that lie outside the picture or on each other$"):
        crop_for(100, 100, settings(crop="landmarks"), points)
    with pytest.raises(Rejected, match="^no landmarks$"):
        crop_for(100, 100, settings(crop="landmarks"))
