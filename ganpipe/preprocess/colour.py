"""Depth and colour: pictures of any mode to 8 bits, ICC profiles to sRGB, transparency over a background."""

from collections.abc import Iterator, Sequence
from functools import lru_cache
from io import BytesIO

import numpy as np
from PIL import Image, ImageCms

from ganpipe.preprocess.crop import Rejected

# Largest values of 8, 12 and 16 bits: pictures of more than 8 bits use one of these ranges.
DEPTHS = (255.0, 4095.0, 65535.0)


def to_eight_bits(image: Image.Image) -> Image.Image:
    """Convert a picture of any mode to 8 bits of L, LA, RGB, RGBA or CMYK.

    Grey values of 16 or 32 bits are scaled from the smallest of the ranges 0-1 (float only), 0-255, 0-4095
    and 0-65535 that contains the whole picture, or else from its minimum to its maximum.

    Raises Rejected: it has values that are not finite.
    """
    if image.mode in ("I", "F") or image.mode.startswith("I;16"):
        return _scaled(image)
    if image.has_transparency_data:
        return image.convert("LA" if image.mode in ("1", "L", "LA", "La") else "RGBA")
    kept = image.mode in ("L", "RGB", "CMYK")
    return image if kept else image.convert("L" if image.mode == "1" else "RGB")


def _scaled(image: Image.Image) -> Image.Image:
    ranges = np.array([(block.min(), block.max()) for block in _blocks(image)])
    low, high = float(ranges[:, 0].min()), float(ranges[:, 1].max())
    if not np.isfinite(high - low):
        raise Rejected("has values that are not finite numbers")
    tops = (1.0, *DEPTHS) if image.mode == "F" else DEPTHS
    if low < 0 or high > tops[-1]:
        span = high - low or 1.0
    else:
        low, span = 0.0, min(top for top in tops if high <= top)
    scaled = ((block - np.float32(low)) * (255 / span) for block in _blocks(image))
    return Image.fromarray(np.concatenate([np.rint(block).astype(np.uint8) for block in scaled]))


def _blocks(image: Image.Image) -> Iterator[np.ndarray]:
    """Yield rows of a grey picture as float32, some at a time to save memory."""
    rows = max(1, (1 << 22) // image.width)
    for top in range(0, image.height, rows):
        box = (0, top, image.width, min(top + rows, image.height))
        yield np.asarray(image.crop(box)).astype(np.float32)


def flatten(image: Image.Image, profile: bytes | None, background: Sequence[int]) -> Image.Image:
    """Convert a picture of mode L, LA, RGB, RGBA or CMYK to sRGB and lay it over a background of RGB 0-255.

    The mode becomes RGB where the ICC profile is applied or there is transparency; else it stays. A profile
    that is broken or hardly differs from sRGB is not applied.
    """
    alpha = image.getchannel("A") if image.mode in ("LA", "RGBA") else None
    if alpha is not None:
        image = image.convert("L" if image.mode == "LA" else "RGB")
    if profile and (transform := _to_srgb(profile, image.mode)):
        image = ImageCms.applyTransform(image, transform) or image
    if alpha is None:
        return image
    canvas = Image.new("RGB", image.size, tuple(background))
    canvas.paste(image.convert("RGB"), mask=alpha)
    return canvas


@lru_cache(maxsize=16)
def _to_srgb(profile: bytes, mode: str) -> ImageCms.ImageCmsTransform | None:
    """Build the transform from a profile to sRGB; None if it is broken, of another mode, or sRGB itself."""
    try:
        source = ImageCms.ImageCmsProfile(BytesIO(profile))
        transform = ImageCms.buildTransform(source, ImageCms.createProfile("sRGB"), mode, "RGB")
        if mode == "CMYK":
            return transform
        steps = np.arange(0, 256, 17, dtype=np.uint8)
        colours = np.stack(np.meshgrid(steps, steps, steps), axis=-1).reshape(64, 64, 3)
        probe = Image.fromarray(colours).convert(mode)
        converted = ImageCms.applyTransform(probe, transform)
    except (ImageCms.PyCMSError, OSError, ValueError):
        return None
    change = np.asarray(converted).astype(int) - np.asarray(probe.convert("RGB"))
    return transform if np.abs(change).max() > 2 else None
