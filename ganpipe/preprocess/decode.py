"""One picture file: bytes in, an upright picture of 8 bits out, or the reason why not."""

import importlib
import warnings
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from io import BytesIO
from typing import NamedTuple

from PIL import AvifImagePlugin, Image, JpegImagePlugin, UnidentifiedImageError

from ganpipe.params import Preprocess
from ganpipe.preprocess.colour import flatten, to_eight_bits
from ganpipe.preprocess.crop import Box, Rejected, crop_for

# Only these decoders ever see a file: common formats, whose decoders are well tested.
FORMATS = ("JPEG", "AVIF", "BMP", "GIF", "HEIF", "MPO", "PNG", "TIFF", "WEBP")
Image.init()
with suppress(ImportError):
    importlib.import_module("pillow_heif").register_heif_opener()
KNOWN = tuple(name for name in FORMATS if name in Image.OPEN)
# How a HEIC file begins, from its fifth byte on; reading it needs another package.
HEIC = (b"ftypheic", b"ftypheix", b"ftyphevc", b"ftypmif1")
# Limit memory: 100 megapixels take 0.4 GB decoded, and up to twice that while modes are converted.
MAX_PIXELS = 100_000_000
TOO_LARGE = f"more than {MAX_PIXELS // 1_000_000} megapixels"
# One decoder thread in each worker: there is already a worker for each core.
AvifImagePlugin.DEFAULT_MAX_THREADS = 1

ORIENTATION = 0x0112
TURNS = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}
# Turns that exchange width and height; that move the right or bottom side to the left; likewise to the top.
SIDEWAYS, FROM_RIGHT, FROM_BOTTOM = {5, 6, 7, 8}, {2, 3, 6, 7}, {3, 4, 7, 8}
# A JPEG is decoded at a smaller size if that is still this many times the resolution: the result then
# differs by less than 1 grey level on average (docs/data.md).
DRAFT = 2.5


class Picture(NamedTuple):
    """A decoded picture, upright and of 8 bits."""

    image: Image.Image  # of mode L, LA, RGB, RGBA or CMYK; perhaps smaller than in the file
    profile: bytes | None  # its ICC profile
    size: tuple[int, int]  # width and height in the file in pixels, upright
    factor: int  # by which its sides were divided while decoding
    orientation: int  # the EXIF number from which it was turned upright, 1 to 8

    def scaled(self, box: Box) -> tuple[float, float, float, float]:
        """Return where a box of the picture at full size lies in `image`."""
        # The sides of `image` were rounded up; a turn may have moved the added part to the left or top.
        x = self.image.width - self.size[0] / self.factor if self.orientation in FROM_RIGHT else 0.0
        y = self.image.height - self.size[1] / self.factor if self.orientation in FROM_BOTTOM else 0.0
        left, top, right, bottom = (length / self.factor for length in box)
        return left + x, top + y, right + x, bottom + y


def decoded(data: bytes) -> Image.Image:
    """Decode a file to an upright picture in sRGB over white: of mode L where the file is grey, else RGB.

    Raises Rejected: with the reason.
    """
    with rejecting(data):
        picture = decode(data)
        mode = "L" if picture.image.mode in ("L", "LA") else "RGB"
        return flatten(picture.image, picture.profile, (255, 255, 255)).convert(mode)


@contextmanager
def rejecting(data: bytes) -> Iterator[None]:
    """Turn whatever a decoder raises on a file's bytes into Rejected; MemoryError is left to the worker."""
    try:
        # Pillow warns of odd metadata, and of 89 to 179 megapixels where MAX_PIXELS decides.
        with warnings.catch_warnings(action="ignore"):
            yield
    except (Rejected, MemoryError):
        raise
    except UnidentifiedImageError:
        if data[4:12] in HEIC and "HEIF" not in KNOWN:
            raise Rejected("HEIC, which needs pip install 'ganpipe[heic]'") from None
        raise Rejected("empty file" if not data else "not a picture of a known format") from None
    except Image.DecompressionBombError:
        raise Rejected(TOO_LARGE) from None
    except Exception as error:
        # Broad on purpose: on damaged files Pillow raises at least eight kinds of error, and documents none.
        # The text is left out: it contains addresses and counts that differ from file to file.
        if "truncated" in str(error).lower():
            raise Rejected("truncated") from None
        raise Rejected(f"damaged ({type(error).__name__})") from None


def decode(data: bytes, params: Preprocess | None = None) -> Picture:
    """Decode a picture and turn it upright; use within `rejecting`, as decoders raise any kind of exception.

    Of an animation the first frame is decoded, a large JPEG only as large as `params`, if given, need it.
    """
    image = _open(data, params)
    if image.format == "PNG":
        # Loading does not check a PNG's checksums and gives wrong pixels without an error; verify does, but
        # then the image must be opened again. Other formats' decoders have nothing to verify.
        image.verify()
        image = _open(data, params)
    size = image.size
    factor = _draft(image, params) if params else 1
    image.load()
    profile = image.info.get("icc_profile")
    if (orientation := _orientation(image)) in TURNS:
        image = image.transpose(TURNS[orientation])
        size = size[::-1] if orientation in SIDEWAYS else size
    return Picture(to_eight_bits(image), profile, image.size if factor == 1 else size, factor, orientation)


def _open(data: bytes, params: Preprocess | None) -> Image.Image:
    image: Image.Image = Image.open(BytesIO(data), formats=KNOWN)
    if image.width * image.height > MAX_PIXELS:
        raise Rejected(TOO_LARGE)
    if params and min(image.size) < params.min_side:
        raise Rejected(f"smaller than preprocess.min_side ({params.min_side} px) in a side")
    return image


def _draft(image: Image.Image, params: Preprocess) -> int:
    """Have a JPEG decoded smaller if DRAFT times the resolution remains; return the divisor of its sides."""
    # Crops by landmarks are turned and mirrored by whole pixels.
    if not isinstance(image, JpegImagePlugin.JpegImageFile) or params.crop == "landmarks":
        return 1
    width, height = image.size[::-1] if _orientation(image) in SIDEWAYS else image.size
    side = min(crop_for(width, height, params).size)
    factor = next((factor for factor in (8, 4, 2) if side >= DRAFT * factor * params.resolution), 1)
    drafted = factor > 1 and image.draft(None, (image.width // factor, image.height // factor))
    return factor if drafted else 1


def _orientation(image: Image.Image) -> int:
    """Return the EXIF orientation, 1 to 8; call it before loading for a JPEG alone."""
    # PNG may store EXIF after the pixels, and TIFF is turned by Pillow while it loads.
    try:
        orientation = image.getexif().get(ORIENTATION)
        return orientation if orientation in TURNS else 1
    except Exception:  # Broken metadata raise as many kinds of error as broken pixels; the pixels are good.
        return 1
