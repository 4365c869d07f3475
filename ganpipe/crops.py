"""Where in a picture the training image is: boxes by rule, and squares turned upright by landmarks."""

import math
from dataclasses import dataclass

import numpy as np
from PIL import Image

Box = tuple[int, int, int, int]
# A turned square may reach past the picture, which is mirrored there; more than half of it may not.
LEAST_INSIDE = 0.5


class Rejected(Exception):
    """A file that cannot become a training image. Its text is the reason: short, the same in every run."""


@dataclass(frozen=True)
class Target:
    """What a training image is to be.

    Attributes:
        crop: "none", "square", "centre" or "landmarks", as preprocess.crop.
        crop_size: pixels a side of crop "centre", else None.
        margin: of crop "landmarks", as preprocess.margin.
        resolution: pixels a side of the result.
        channels: 1 (grey) or 3 (RGB).
    """

    crop: str
    crop_size: int | None
    margin: float
    resolution: int
    channels: int


@dataclass(frozen=True)
class Crop:
    """A rectangle of a picture.

    Attributes:
        box: left, top, right, bottom in pixels.
        angle: degrees by which the box is turned clockwise about its middle; the training image is upright.
    """

    box: Box
    angle: float = 0.0

    @property
    def size(self) -> tuple[int, int]:
        """Width and height in pixels."""
        return self.box[2] - self.box[0], self.box[3] - self.box[1]


def crop_for(width: int, height: int, target: Target, points: tuple[float, ...] | None = None) -> Crop:
    """Choose the crop of a picture of `width` × `height` pixels.

    Args:
        width: pixels, after the EXIF rotation.
        height: likewise.
        target: the rule.
        points: x, y, x, y … of its landmarks in pixels, for crop "landmarks".

    Raises:
        Rejected: the picture is smaller than crop_size in a side, or has no landmarks that make a crop.
    """
    if target.crop == "none":
        return Crop((0, 0, width, height))
    if target.crop == "landmarks":
        if points is None:
            raise Rejected("no landmarks")
        return _head(width, height, points, target.margin)
    side = target.crop_size or min(width, height)
    if side > min(width, height):
        raise Rejected(f"smaller than preprocess.crop_size ({side} px) in a side")
    left, top = (width - side) // 2, (height - side) // 2
    return Crop((left, top, left + side, top + side))


def _head(width: int, height: int, points: tuple[float, ...], margin: float) -> Crop:
    """Lay a square around landmarks: its top parallel to the eyes, its middle theirs, `margin` beside them.

    Its side is 1 + 2·margin times the longer side of the upright rectangle that just holds the points.
    """
    xy = np.array(points).reshape(-1, 2)
    across = xy[1] - xy[0]
    # Rounded as index.csv shows it, so that the crop can be made again from there.
    angle = round(math.degrees(math.atan2(across[1], across[0])), 2)
    turn = _rotation(angle)
    upright = xy @ turn  # turned back by the angle
    low, high = upright.min(axis=0), upright.max(axis=0)
    side = max(1, round(float((high - low).max()) * (1 + 2 * margin)))
    left, top = (round(float(value)) for value in turn @ ((low + high) / 2) - side / 2)
    crop = Crop((left, top, left + side, top + side), angle)
    # A grid over the square says how much of it lies in the picture.
    steps = (np.arange(32) + 0.5) / 32 * side - side / 2
    grid = np.stack(np.meshgrid(steps, steps), axis=-1) @ turn.T + (left + side / 2, top + side / 2)
    inside = ((grid >= 0) & (grid < (width, height))).all(axis=-1).mean()
    if not across.any() or inside < LEAST_INSIDE:
        raise Rejected("landmarks that lie outside the picture or on each other")
    return crop


def _rotation(angle: float) -> np.ndarray:
    """Return the 2×2 matrix that turns column vectors (x right, y down) clockwise by degrees."""
    cos, sin = math.cos(math.radians(angle)), math.sin(math.radians(angle))
    return np.array([[cos, -sin], [sin, cos]])


def cut(image: Image.Image, crop: Crop) -> Image.Image:
    """Cut a crop out of a picture of mode L or RGB; turned ones are resampled with bicubic, at their size."""
    if not crop.angle and crop.box[0] >= 0 <= crop.box[1] and crop.box[2:] <= image.size:
        return image if crop.box == (0, 0, *image.size) else image.crop(crop.box)
    (left, top, right, bottom), (width, height) = crop.box, crop.size
    turn, middle = _rotation(crop.angle), np.array([(left + right) / 2, (top + bottom) / 2])
    # The upright rectangle around the turned square, and what bicubic reads beside it.
    reach = np.abs(turn) @ (width / 2, height / 2) + 2
    low, high = np.floor(middle - reach).astype(int), np.ceil(middle + reach).astype(int)
    inner = np.maximum(low, 0), np.minimum(high, image.size)
    pixels = np.asarray(image.crop((*inner[0].tolist(), *inner[1].tolist())))
    (before_x, before_y), (after_x, after_y) = inner[0] - low, high - inner[1]
    beside = [(before_y, after_y), (before_x, after_x), (0, 0)][: pixels.ndim]
    source = Image.fromarray(np.pad(pixels, beside, mode="symmetric"))
    # The point in `source` of each point (u, v) of the result.
    origin = middle - low - turn @ (width / 2, height / 2)
    matrix = (turn[0, 0], turn[0, 1], origin[0], turn[1, 0], turn[1, 1], origin[1])
    return source.transform((width, height), Image.Transform.AFFINE, matrix, Image.Resampling.BICUBIC)
