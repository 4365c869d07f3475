"""One picture file: bytes in, one training image and its facts out, or the reason why not."""

import multiprocessing
import os
import signal
import threading
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cache
from io import BytesIO

import numpy as np
from PIL import Image, UnidentifiedImageError

from ganpipe.crops import Crop, Rejected, Target, crop_for, cut

# Only these decoders ever see a file: formats that people keep pictures in, whose decoders are well tried.
FORMATS = ("AVIF", "BMP", "GIF", "JPEG", "MPO", "PNG", "TIFF", "WEBP")
# A bound on memory: 100 megapixels take 0.4 GB decoded and up to three times that while modes are converted.
MAX_PIXELS = 100_000_000
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


# A file's bytes and its landmarks.
File = tuple[bytes, tuple[float, ...] | None]


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
    with _reasons(data):
        return _prepare(data, target, points)


def decoded(data: bytes) -> Image.Image:
    """Decode, turn upright and flatten as `prepare` does, no more: mode L where the file is grey, else RGB.

    Raises:
        Rejected: with the reason.
    """
    with _reasons(data):
        image = _eight_bits_deep(_loaded(data))
        return _flat(image).convert("L" if image.mode in ("1", "L", "LA") else "RGB")


@contextmanager
def _reasons(data: bytes) -> Iterator[None]:
    """Turn whatever a decoder raises on a file's bytes into Rejected."""
    try:
        with warnings.catch_warnings():
            # Pillow warns of odd metadata and of 89 to 179 megapixels; MAX_PIXELS is the rule here.
            warnings.simplefilter("ignore")
            yield
    except Rejected:
        raise
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


def prepare_all(files: list[File], target: Target) -> list[Prepared | str]:
    """Prepare several files in their order; a rejected one gives its reason. Runs in worker processes."""
    return [_prepared_or_reason(file, target) for file in files]


def start_worker() -> None:
    """Make a worker process quiet, leave Ctrl-C to its parent, and end when the parent was killed."""
    # libtiff prints about damaged files by itself, into the progress bar.
    os.dup2(os.open(os.devnull, os.O_WRONLY), 2)
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    threading.Thread(target=_end_with_parent, daemon=True).start()


def _end_with_parent() -> None:
    parent = multiprocessing.parent_process()
    if parent is not None:
        parent.join()
        os._exit(1)


def _prepared_or_reason(file: File, target: Target) -> Prepared | str:
    try:
        return prepare(file[0], target, file[1])
    except Rejected as reason:
        return str(reason)


def _prepare(data: bytes, target: Target, points: tuple[float, ...] | None) -> Prepared:
    image = _loaded(data)
    width, height = image.size
    crop = crop_for(width, height, target, points)
    image = _eight_bits_deep(image)
    image = cut(_flat(image).convert("L" if target.channels == 1 else "RGB"), crop)
    side = target.resolution
    pixels = np.asarray(image.resize((side, side), Image.Resampling.LANCZOS))
    pixels = pixels.reshape(side, side, target.channels)
    return Prepared(pixels, width, height, crop, side / min(crop.size))


def _loaded(data: bytes) -> Image.Image:
    # Loading does not check a PNG's checksums and gives wrong pixels in silence; verify does, but uses it up.
    _open(data).verify()
    image: Image.Image = _open(data)
    image.load()
    return _upright(image)


def _eight_bits_deep(image: Image.Image) -> Image.Image:
    if image.mode in ("I", "F") or image.mode.startswith("I;16"):
        return Image.fromarray(_eight_bits(np.asarray(image)))
    return image


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
