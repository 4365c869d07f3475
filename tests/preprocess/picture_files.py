"""Picture files for the tests of preprocess, and what becomes of them."""

import warnings
from io import BytesIO
from typing import Any

import numpy as np
import pytest
from PIL import Image

from ganpipe.params import Preprocess
from ganpipe.preprocess.crop import Points, Rejected
from ganpipe.preprocess.decode import rejecting
from ganpipe.preprocess.prepare import Prepared, prepare


def settings(**changes: Any) -> Preprocess:
    """The params section for whole pictures at 32 px in colour, with changes."""
    values: dict[str, Any] = {
        "crop": "none",
        "crop_size": None,
        "crop_box": None,
        "margin": 0.0,
        "min_side": 8,
    }
    values |= {"resolution": 32, "channels": 3, "background": [255, 255, 255]}
    values |= {"held_out": 0.2, "max_rejected": 0.05, "duplicates": "report"}
    values |= {"max_images": None, "shard_mb": None}
    return Preprocess.model_validate({**values, **changes})


WHOLE = settings()


def encoded(image: Image.Image, kind: str = "PNG", **options: Any) -> bytes:
    """Return a picture as a file's bytes."""
    buffer = BytesIO()
    image.save(buffer, kind, **options)
    return buffer.getvalue()


def quarters(mode: str = "RGB") -> Image.Image:
    """A 32×32 picture of four plain quarters: red, green / blue, black."""
    pixels = np.zeros((32, 32, 3), np.uint8)
    pixels[:16, :16, 0] = pixels[:16, 16:, 1] = pixels[16:, :16, 2] = 255
    return Image.fromarray(pixels).convert(mode)


def prepared(data: bytes, params: Preprocess = WHOLE, points: Points | None = None) -> Prepared:
    """Prepare a file as a worker does."""
    with warnings.catch_warnings(), rejecting(data):
        warnings.simplefilter("ignore")
        return prepare(data, params, points)


def pixels_of(data: bytes, params: Preprocess = WHOLE) -> np.ndarray:
    """Return the training image that a file becomes, uint8 H×W×C."""
    return np.asarray(prepared(data, params).image).reshape(params.resolution, params.resolution, -1)


def centres(data: bytes) -> list[list[int]]:
    """The colours in the middle of the four quarters of a file's training image."""
    pixels = pixels_of(data)
    return [pixels[y, x].tolist() for y in (8, 24) for x in (8, 24)]


def reason(data: bytes) -> str:
    """Why a file is rejected."""
    with pytest.raises(Rejected) as caught:
        prepared(data)
    return str(caught.value)
