"""One picture file: bytes in, one training image and its facts out, or the reason why not."""

import importlib
import warnings
import zlib
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from functools import cache, lru_cache
from io import BytesIO
from pathlib import Path
from typing import IO, NamedTuple

import imagehash
import numpy as np
from PIL import AvifImagePlugin, Image, ImageCms, UnidentifiedImageError

from ganpipe import crops
from ganpipe.crops import Crop, Rejected, Target
from ganpipe.errors import UserError

# Only these decoders ever see a file: formats that people keep pictures in, whose decoders are well tried.
FORMATS = ("AVIF", "BMP", "GIF", "HEIF", "JPEG", "MPO", "PNG", "TIFF", "WEBP")
Image.init()
with suppress(ImportError):
    importlib.import_module("pillow_heif").register_heif_opener()
KNOWN = tuple(name for name in FORMATS if name in Image.OPEN)
# How a HEIC file begins, from its fifth byte on; reading it needs another package.
HEIC = (b"ftypheic", b"ftypheix", b"ftyphevc", b"ftypmif1")
# Bounds on memory: 100 megapixels take 0.4 GB decoded, and up to twice that while modes are converted.
MAX_PIXELS, MAX_BYTES = 100_000_000, 1 << 28
# One decoder thread a worker: the workers are as many as there are cores.
AvifImagePlugin.DEFAULT_MAX_THREADS = 1
WHITE = (255, 255, 255)
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
        hash: the 64 bits of the difference hash of the pixels, alike for pictures that look alike.
    """

    pixels: np.ndarray
    width: int
    height: int
    crop: Crop
    scale: float
    hash: int


def prepare(data: bytes, target: Target, points: tuple[float, ...] | None = None) -> Prepared:
    """Decode, turn upright, crop, resize with Lanczos, bring to sRGB, lay over the background.

    Animations give their first frame. Grey values of 16 or 32 bits are scaled by the smallest of the ranges
    0-1 (float only), 0-255, 0-4095 and 0-65535 that holds the whole picture, or else from its minimum to its
    maximum. Embedded ICC profiles are applied; broken ones, and those that hardly differ from sRGB, are not.

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
        image, profile = _loaded(data, min_side=1)
        mode = "L" if image.mode in ("L", "LA") else "RGB"
        return _flat(image, profile, WHITE).convert(mode)


@contextmanager
def _reasons(data: bytes) -> Iterator[None]:
    """Turn whatever a decoder raises on a file's bytes into Rejected."""
    try:
        with warnings.catch_warnings():
            # Pillow warns of odd metadata and of 89 to 179 megapixels; MAX_PIXELS is the rule here.
            warnings.simplefilter("ignore")
            yield
    except (Rejected, MemoryError):
        raise  # Out of memory is the worker's to tell.
    except UnidentifiedImageError:
        if data[4:12] in HEIC and "HEIF" not in KNOWN:
            raise Rejected("HEIC, which needs pip install 'ganpipe[heic]'") from None
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
    image, profile = _loaded(data, target.min_side)
    width, height = image.size
    crop = crops.smart(image) if target.crop == "smart" else crops.crop_for(width, height, target, points)
    side, mode = target.resolution, "L" if target.channels == 1 else "RGB"
    if not profile and image.mode in ("L", "RGB", "CMYK") and image.mode != mode:
        image = image.convert(mode)
    scale = side / min(crop.size)
    if target.crop == "pad":
        inner = max(1, round(width * scale)), max(1, round(height * scale))
        image = _flat(image.resize(inner, Image.Resampling.LANCZOS), profile, target.background)
        canvas = Image.new("RGB", (side, side), target.background)
        canvas.paste(image, ((side - inner[0]) // 2, (side - inner[1]) // 2))
        image = canvas
    else:
        image = crops.cut(image, crop).resize((side, side), Image.Resampling.LANCZOS)
        image = _flat(image, profile, target.background)
    pixels = np.asarray(image if image.mode == mode else image.convert(mode)).reshape(
        side, side, target.channels
    )
    bits = np.packbits(imagehash.dhash(image).hash)
    return Prepared(pixels, width, height, crop, scale, int.from_bytes(bits.tobytes()))


def _loaded(data: bytes, min_side: int) -> tuple[Image.Image, bytes | None]:
    """Return a picture, upright, in 8 bits of L, LA, RGB, RGBA or CMYK, and its ICC profile."""
    image = _open(data, min_side)
    if image.format == "PNG":
        # Loading does not check a PNG's checksums and gives wrong pixels in silence; verify does, but uses it
        # up. Of the other formats' decoders none has anything to verify.
        image.verify()
        image = _open(data, min_side)
    image.load()
    profile = image.info.get("icc_profile")
    return _plain(_upright(image)), profile


def _open(data: bytes, min_side: int) -> Image.Image:
    image: Image.Image = Image.open(BytesIO(data), formats=KNOWN)
    if image.width * image.height > MAX_PIXELS:
        raise Rejected(_too_many_pixels())
    if min(image.size) < min_side:
        raise Rejected(f"smaller than preprocess.min_side ({min_side} px) in a side")
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


def _plain(image: Image.Image) -> Image.Image:
    """Bring a picture of any mode into 8 bits of L, LA, RGB, RGBA or CMYK."""
    if image.mode in ("I", "F") or image.mode.startswith("I;16"):
        return _eight_bits(image)
    if image.has_transparency_data:
        return image.convert("LA" if image.mode in ("1", "L", "LA", "La") else "RGBA")
    if image.mode in ("L", "RGB", "CMYK"):
        return image
    return image.convert("L" if image.mode == "1" else "RGB")


def _eight_bits(image: Image.Image) -> Image.Image:
    """Scale grey values of any depth to uint8 in [0, 255]; see `prepare` for the rule."""
    spans = np.array([(block.min(), block.max()) for block in _blocks(image)])
    low, high = float(spans[:, 0].min()), float(spans[:, 1].max())
    if not np.isfinite(high - low):
        raise Rejected("has values that are not finite numbers")
    tops = (1.0, *DEPTHS) if image.mode == "F" else DEPTHS
    top = next((top for top in tops if low >= 0 and high <= top), None)
    if top is None:
        scaled = ((block - np.float32(low)) * (255 / ((high - low) or 1.0)) for block in _blocks(image))
    else:
        scaled = (block * (255 / top) for block in _blocks(image))
    return Image.fromarray(np.concatenate([np.rint(block).astype(np.uint8) for block in scaled]))


def _blocks(image: Image.Image) -> Iterator[np.ndarray]:
    """Yield rows of a grey picture as float32; a large one as a whole would be in memory several times."""
    rows = max(1, (1 << 22) // image.width)
    for top in range(0, image.height, rows):
        box = (0, top, image.width, min(top + rows, image.height))
        yield np.asarray(image.crop(box)).astype(np.float32)


def _flat(image: Image.Image, profile: bytes | None, background: tuple[int, int, int]) -> Image.Image:
    """Bring a picture of mode L, LA, RGB, RGBA or CMYK to sRGB, and lay it over the background."""
    alpha = image.getchannel("A") if image.mode in ("LA", "RGBA") else None
    if alpha is not None:
        image = image.convert("L" if image.mode == "LA" else "RGB")
    if profile and (transform := _to_srgb(profile, image.mode)):
        image = ImageCms.applyTransform(image, transform) or image
    if alpha is None:
        return image
    canvas = Image.new("RGB", image.size, background)
    canvas.paste(image.convert("RGB"), mask=alpha)
    return canvas


@lru_cache(maxsize=16)
def _to_srgb(profile: bytes, mode: str) -> ImageCms.ImageCmsTransform | None:
    """Build the way from a profile's colours to sRGB; None: it is broken, of another mode, or sRGB itself."""
    try:
        source = ImageCms.ImageCmsProfile(BytesIO(profile))
        transform = ImageCms.buildTransform(source, ImageCms.createProfile("sRGB"), mode, "RGB")
        if mode == "CMYK":
            return transform
        steps = np.arange(0, 256, 17, dtype=np.uint8)
        colours = np.stack(np.meshgrid(steps, steps, steps), axis=-1).reshape(64, 64, 3)
        probe = Image.fromarray(colours).convert(mode)
        shown = ImageCms.applyTransform(probe, transform)
    except (ImageCms.PyCMSError, OSError, ValueError):
        return None
    change = np.asarray(shown).astype(int) - np.asarray(probe.convert("RGB"))
    return transform if np.abs(change).max() > 2 else None
