"""One picture file: bytes in, one training image and its facts out, or the reason why not."""

import warnings
import zlib
from dataclasses import dataclass
from functools import cache
from io import BytesIO
from pathlib import Path
from typing import IO, NamedTuple

import numpy as np
from PIL import AvifImagePlugin, Image, UnidentifiedImageError

from ganpipe.crops import Crop, Rejected, Target, crop_for, cut
from ganpipe.errors import UserError

# Only these decoders ever see a file: formats that people keep pictures in, whose decoders are well tried.
FORMATS = ("AVIF", "BMP", "GIF", "JPEG", "MPO", "PNG", "TIFF", "WEBP")
# Bounds on memory: 100 megapixels take 0.4 GB decoded, and up to twice that while modes are converted.
MAX_PIXELS, MAX_BYTES = 100_000_000, 1 << 28
# One decoder thread a worker: the workers are as many as there are cores.
AvifImagePlugin.DEFAULT_MAX_THREADS = 1
# Anything smaller is a tracking pixel or a bullet, not a picture.
MIN_SIDE = 8
# Tops of the value ranges of 8, 12 and 16 bits, in which pictures of more than 8 bits come.
DEPTHS = (255.0, 4095.0, 65535.0)

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


class Member(NamedTuple):
    """A picture in fetch's archive: offset of its local header, bytes, their CRC-32, and landmarks."""

    offset: int
    size: int
    crc: int
    points: tuple[float, ...] | None


@dataclass(frozen=True)
class Prepared:
    """A training image.

    Attributes:
        pixels: uint8 H×W×C in [0, 255].
        width: of the source in pixels, after its EXIF rotation; height likewise.
        crop: the part of it in those pixels.
        scale: resolution divided by the crop's side (the shorter one); above 1 the picture was enlarged.
    """

    pixels: np.ndarray
    width: int
    height: int
    crop: Crop
    scale: float


def prepare(data: bytes, target: Target, points: tuple[float, ...] | None = None) -> Prepared:
    """Decode, turn upright, flatten over white, crop, resize with Lanczos.

    Animations give their first frame. Grey values of 16 or 32 bits are scaled by the smallest of the ranges
    0-1 (float only), 0-255, 0-4095 and 0-65535 that holds the whole picture, or else from its minimum to its
    maximum. ICC profiles are not applied.

    Raises:
        Rejected: with the reason.
    """
    try:
        with warnings.catch_warnings():
            # Pillow warns of odd metadata and of 89 to 179 megapixels; MAX_PIXELS is the rule here.
            warnings.simplefilter("ignore")
            return _prepare(data, target, points)
    except (Rejected, MemoryError):
        raise  # Out of memory is the worker's to tell.
    except UnidentifiedImageError:
        raise Rejected("empty file" if not data else "not a picture of a known format") from None
    except Image.DecompressionBombError:
        raise Rejected(_too_many_pixels()) from None
    except Exception as error:
        # Broad on purpose: on damaged files Pillow raises at least eight kinds of error, and
        # none is promised. The text is left out: it holds addresses and counts, another in each file.
        if "truncated" in str(error).lower():
            raise Rejected("truncated") from None
        raise Rejected(f"damaged ({type(error).__name__})") from None


def prepare_member(member: Member, archive: Path, target: Target) -> Prepared | str:
    """Prepare a picture out of a zip that does not compress; a rejected one gives its reason.

    Raises:
        UserError: the archive is damaged.
    """
    try:
        if member.size > MAX_BYTES:
            raise Rejected(f"larger than {MAX_BYTES >> 20} MB")
        return prepare(_read(member, archive), target, member.points)
    except Rejected as reason:
        return str(reason)


def _read(member: Member, archive: Path) -> bytes:
    file = _opened(archive)
    file.seek(member.offset)
    header = file.read(30)
    # The local header ends in the lengths of the name and of the extra field, which the data follow.
    file.seek(int.from_bytes(header[26:28], "little") + int.from_bytes(header[28:], "little"), 1)
    data = file.read(member.size)
    if zlib.crc32(data) != member.crc or len(data) != member.size:
        raise UserError(f"{archive}: damaged; run the fetch stage again")
    return data


@cache
def _opened(archive: Path) -> IO[bytes]:
    return open(archive, "rb")


def _prepare(data: bytes, target: Target, points: tuple[float, ...] | None) -> Prepared:
    # Loading does not check a PNG's checksums and gives wrong pixels in silence; verify does, but uses it up.
    _open(data).verify()
    image: Image.Image = _open(data)
    image.load()
    image = _upright(image)
    width, height = image.size
    crop = crop_for(width, height, target, points)
    if image.mode in ("I", "F") or image.mode.startswith("I;16"):
        image = Image.fromarray(_eight_bits(np.asarray(image)))
    image = cut(_flat(image).convert("L" if target.channels == 1 else "RGB"), crop)
    side = target.resolution
    pixels = np.asarray(image.resize((side, side), Image.Resampling.LANCZOS))
    pixels = pixels.reshape(side, side, target.channels)
    return Prepared(pixels, width, height, crop, side / min(crop.size))


@cache
def _known_formats() -> tuple[str, ...]:
    Image.init()
    return tuple(name for name in FORMATS if name in Image.OPEN)


def _open(data: bytes) -> Image.Image:
    image = Image.open(BytesIO(data), formats=_known_formats())
    if image.width * image.height > MAX_PIXELS:
        raise Rejected(_too_many_pixels())
    if min(image.size) < MIN_SIDE:
        raise Rejected(f"smaller than {MIN_SIDE} px in a side")
    return image


def _too_many_pixels() -> str:
    return f"more than {MAX_PIXELS // 1_000_000} megapixels"


def _upright(image: Image.Image) -> Image.Image:
    # Read after load: PNG may keep EXIF behind the pixels, and TIFF has been turned by Pillow already.
    try:
        turn = TURNS.get(image.getexif().get(ORIENTATION, 1))
    except Exception:  # Broken metadata raise as many kinds as broken pixels, but here the pixels are good.
        return image
    return image if turn is None else image.transpose(turn)


def _eight_bits(values: np.ndarray) -> np.ndarray:
    """Scale grey values H×W of any depth to uint8 in [0, 255]; see `prepare` for the rule."""
    tops = DEPTHS if np.issubdtype(values.dtype, np.integer) else (1.0, *DEPTHS)
    values = values.astype(np.float32)
    low, high = float(values.min()), float(values.max())
    if not np.isfinite(high - low):
        raise Rejected("has values that are not finite numbers")
    top = next((top for top in tops if low >= 0 and high <= top), None)
    if top is None:
        values -= low
        top = (high - low) or 1.0
    return np.rint(values * (255 / top)).astype(np.uint8)


def _flat(image: Image.Image) -> Image.Image:
    """Lay what is transparent over white; turn LAB, which converts to nothing else, into RGB."""
    if image.mode == "LAB":
        return image.convert("RGB")
    if not image.has_transparency_data:
        return image
    white = Image.new("RGBA", image.size, "white")
    white.alpha_composite(image.convert("RGBA"))
    return white
