"""The part of a picture that becomes the training image: boxes by rule, or turned squares by landmarks."""

import math
from typing import NamedTuple

import numpy as np
from PIL import Image

from ganpipe.params import Preprocess

Box = tuple[int, int, int, int]
# Landmarks of a picture in pixels: x, y, x, y …
Points = tuple[float, ...]
# A turned square may reach outside the picture, where it is mirrored; at least this share must be inside.
LEAST_INSIDE = 0.5
# Crop "smart": approximate shorter side in pixels of the copy whose detail is measured, and the share of
# detail by which a square in the middle is preferred.
SMALL, CENTRED = 48, 0.1


class Rejected(Exception):
    """A file that cannot become a training image. Its text is the reason: short, the same in every run."""


class Crop(NamedTuple):
    """A rectangle of a picture: left, top, right, bottom in pixels, and degrees by which it is turned.

    It is turned clockwise about its middle; the training image is upright.
    """

    box: Box
    angle: float = 0.0

    @property
    def size(self) -> tuple[int, int]:
        """Width and height in pixels."""
        return self.box[2] - self.box[0], self.box[3] - self.box[1]


def crop_for(width: int, height: int, params: Preprocess, points: Points | None = None) -> Crop:
    """Choose the crop of a picture; for "smart", which needs its pixels, the square in the middle.

    Width and height are in pixels, after the EXIF rotation; crop "landmarks" needs points.

    Raises Rejected: the picture is too small for the crop, or its landmarks are missing or unusable.
    """
    if params.crop == "none":
        return Crop((0, 0, width, height))
    if params.crop_box is not None:
        left, top, right, bottom = params.crop_box
        if right > width or bottom > height:
            raise Rejected("does not hold preprocess.crop_box")
        return Crop((left, top, right, bottom))
    if params.crop == "landmarks":
        if points is None:
            raise Rejected("no landmarks")
        return _around_landmarks(points, width, height, params.margin)
    side = max(width, height) if params.crop == "pad" else params.crop_size or min(width, height)
    if params.crop_size and side > min(width, height):
        raise Rejected(f"smaller than preprocess.crop_size ({side} px) in a side")
    left, top = (width - side) // 2, (height - side) // 2
    return Crop((left, top, left + side, top + side))


def smart(image: Image.Image, width: int, height: int) -> Crop:
    """Choose, among the squares as wide as the shorter side, the one with the most detail.

    A square at an end of the longer side must have a tenth more detail than one in the middle. The crop is in
    pixels of a picture of `width` and `height`, from which `image`, of 8 bits, may have been reduced.
    """
    side, free = min(width, height), abs(width - height)
    small = np.asarray(image.convert("L").reduce(max(1, min(image.size) // SMALL)), np.float32)
    along = small if width > height else small.T
    detail = np.abs(np.diff(along, axis=1, prepend=along[:, :1])).sum(axis=0)
    detail[:-1] += np.abs(np.diff(along[:, :-1], axis=0)).sum(axis=0)
    window = min(len(detail), round(len(detail) * side / max(width, height)))
    sums = np.convolve(detail, np.ones(window), "valid")
    sums *= 1 - CENTRED * np.abs(np.linspace(-1, 1, len(sums)))
    # Of equal ones the one nearest to the middle.
    best = min(np.flatnonzero(sums >= sums.max()), key=lambda i: abs(i - (len(sums) - 1) / 2))
    start = round(best / max(1, len(sums) - 1) * free) if len(sums) > 1 else free // 2
    left, top = (start, 0) if width > height else (0, start)
    return Crop((left, top, left + side, top + side))


def _around_landmarks(points: Points, width: int, height: int, margin: float) -> Crop:
    """Lay a square around landmarks, concentric with them, whose top is parallel to the first two.

    Its side is 1 + 2·margin times the longer side of the upright rectangle that just holds the points.
    """
    xy = np.array(points).reshape(-1, 2)
    across = xy[1] - xy[0]
    # Rounded as in index.csv, so that the crop can be reproduced from there.
    angle = round(math.degrees(math.atan2(across[1], across[0])), 2)
    turn = _rotation(angle)
    upright = xy @ turn  # turned back by the angle
    low, high = upright.min(axis=0), upright.max(axis=0)
    side = max(1, round(float((high - low).max()) * (1 + 2 * margin)))
    left, top = (round(float(value)) for value in turn @ ((low + high) / 2) - side / 2)
    crop = Crop((left, top, left + side, top + side), angle)
    # The share of a grid over the square that lies in the picture.
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
    """Cut a crop out of a picture of 8 bits; a turned one is resampled with bicubic, at its size."""
    if not crop.angle and crop.box[0] >= 0 <= crop.box[1] and crop.box[2:] <= image.size:
        return image if crop.box == (0, 0, *image.size) else image.crop(crop.box)
    (left, top, right, bottom), (width, height) = crop.box, crop.size
    turn, middle = _rotation(crop.angle), np.array([(left + right) / 2, (top + bottom) / 2])
    # The upright rectangle around the turned square, with the pixels that bicubic reads beside it.
    reach = np.abs(turn) @ (width / 2, height / 2) + 2
    low, high = np.floor(middle - reach).astype(int), np.ceil(middle + reach).astype(int)
    inner = np.maximum(low, 0), np.minimum(high, image.size)
    pixels = np.asarray(image.crop((*inner[0].tolist(), *inner[1].tolist())))
    (before_x, before_y), (after_x, after_y) = inner[0] - low, high - inner[1]
    beside = [(before_y, after_y), (before_x, after_x), (0, 0)][: pixels.ndim]
    padded = np.pad(pixels, beside, mode="symmetric")
    source = Image.frombytes(image.mode, padded.shape[1::-1], padded.tobytes())
    # The point in `source` of each point (u, v) of the result.
    origin = middle - low - turn @ (width / 2, height / 2)
    matrix = (turn[0, 0], turn[0, 1], origin[0], turn[1, 0], turn[1, 1], origin[1])
    return source.transform((width, height), Image.Transform.AFFINE, matrix, Image.Resampling.BICUBIC)
