"""What may be asked of a generator, by a command or over HTTP, and an image as a PNG file."""

import io
import math

import numpy as np
from PIL import Image

from ganpipe.errors import UserError

MOST = 10_000_000  # images at a time
MOST_SCALE = 100.0
SEEDS = 2**63


def check(n: int, seed: int, z_scale: float, most: int = MOST) -> None:
    """Refuse values that make no images.

    Raises:
        UserError: one sentence.
    """
    if not 1 <= n <= most:
        raise UserError(f"n: found {n}, but it must be between 1 and {most:,}")
    if not 0 <= seed <= SEEDS - n:
        raise UserError(f"seed: found {seed}, but seeds are between 0 and 2^63 - 1, the last image's too")
    if not (math.isfinite(z_scale) and 0 < z_scale <= MOST_SCALE):
        raise UserError(f"z_scale: found {z_scale}, but it must be above 0 and at most {MOST_SCALE:g}")


def png(image: np.ndarray) -> bytes:
    """Return an image uint8 H×W×C in [0, 255] as a PNG file."""
    buffer = io.BytesIO()
    Image.fromarray(image.squeeze(2) if image.shape[2] == 1 else image).save(buffer, "PNG")
    return buffer.getvalue()
