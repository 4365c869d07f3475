"""One picture file: bytes in, one training image and its facts out, or the reason why not."""

import errno
import importlib
import os
import warnings
import zlib
from collections.abc import Callable, Iterator
from contextlib import suppress
from functools import cache, lru_cache
from io import BytesIO
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

import imagehash
import numpy as np
from PIL import AvifImagePlugin, Image, ImageCms, JpegImagePlugin, UnidentifiedImageError

from ganpipe.common.errors import UserError
from ganpipe.preprocess import crop as crops
from ganpipe.preprocess.crop import Box, Crop, Rejected, Target

Result = TypeVar("Result")
# Only these decoders ever see a file: formats that people keep pictures in, whose decoders are well tried.
FORMATS = ("JPEG", "AVIF", "BMP", "GIF", "HEIF", "MPO", "PNG", "TIFF", "WEBP")
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
# Turns that exchange width and height; whose left was the right or the bottom; whose top was.
SIDEWAYS, FROM_RIGHT, FROM_BOTTOM = (
    {TURNS[number] for number in numbers} for numbers in ((5, 6, 7, 8), (2, 3, 6, 7), (3, 4, 7, 8))
)
# A JPEG is decoded at a smaller size if that is at least so many times the resolution: the result then
# differs by less than 1 grey level on average (docs/data.md).
DRAFT = 2.5
# Width and height in pixels, at least, of the copy that is hashed.
HASHED = 9, 8


class Member(NamedTuple):
    """A picture in fetch's archive: number, offset of its first byte, bytes, their CRC-32, landmarks."""

    row: int
    offset: int
    size: int
    crc: int
    points: tuple[float, ...] | None


# Width, height, left, top, right and bottom of the crop, its angle and scale, as in Prepared, and the 64 bits
# of the difference hash of the pixels, alike for pictures that look alike.
Facts = tuple[int, int, int, int, int, int, float, float, int]


class Prepared(NamedTuple):
    """A training image.

    Attributes:
        image: it, of mode L or RGB.
        width: of the source in pixels, after its EXIF rotation; height likewise.
        crop: the part of it in those pixels.
        scale: resolution divided by the crop's side (the shorter one); above 1 the picture was enlarged.
    """

    image: Image.Image
    width: int
    height: int
    crop: Crop
    scale: float

    @property
    def pixels(self) -> np.ndarray:
        """uint8 H×W×C in [0, 255]."""
        return np.asarray(self.image).reshape(self.image.height, self.image.width, -1)


def prepare(data: bytes, target: Target, points: tuple[float, ...] | None = None) -> Prepared:
    """Decode, turn upright, crop, resize with Lanczos, bring to sRGB, lay over the background.

    Animations give their first frame. Grey values of 16 or 32 bits are scaled by the smallest of the ranges
    0-1 (float only), 0-255, 0-4095 and 0-65535 that holds the whole picture, or else from its minimum to its
    maximum. Embedded ICC profiles are applied; broken ones, and those that hardly differ from sRGB, are not.

    Raises:
        Rejected: with the reason.
    """
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return _or_reason(_prepare, data, target, points)


def decoded(data: bytes) -> Image.Image:
    """Decode, turn upright and flatten as `prepare` does, no more: mode L where the file is grey, else RGB.

    Raises:
        Rejected: with the reason.
    """
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return _or_reason(_decoded, data)


def _or_reason(function: Callable[..., Result], data: bytes, *more: Any) -> Result:
    """Return function(data, *more); whatever a decoder raises on a file's bytes becomes Rejected.

    Warnings are to be off: Pillow warns of odd metadata and of 89 to 179 megapixels; MAX_PIXELS is the rule.
    """
    try:
        return function(data, *more)
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


def _decoded(data: bytes) -> Image.Image:
    loaded = _loaded(data, min_side=1)
    mode = "L" if loaded.image.mode in ("L", "LA") else "RGB"
    return _flat(loaded.image, loaded.profile, WHITE).convert(mode)


def prepare_member(member: Member, archive: Path, target: Target) -> tuple[int, Prepared] | str:
    """Prepare a picture out of a zip that does not compress; return its row and it, or why it is rejected.

    Warnings are to be off, as for workers they are.

    Raises:
        UserError: the archive is damaged.
    """
    try:
        if member.size > MAX_BYTES:
            raise Rejected(f"larger than {MAX_BYTES >> 20} MB")
        return member.row, _or_reason(_prepare, _read(member, archive), target, member.points)
    except Rejected as reason:
        return str(reason)


def store(made: list[tuple[int, Prepared] | str], path: Path, start: int) -> list[Facts | str]:
    """Write the pixels of what `prepare_member` returned for some pictures into their rows of a file.

    A pipe to the process that wants them would take a tenth of the whole time; a row at a time, and its hash
    after each decoding, half of that.

    Args:
        made: in ascending order.
        path: the file. The rows of rejected pictures stay as they are.
        start: bytes before its first row.

    Returns:
        for each the facts, as plain values, or the reason.

    Raises:
        OSError: the disk is full, or the like.
    """
    file = _opened(path, os.O_WRONLY)
    found: list[Facts | str] = []
    first = 0
    run: list[bytes] = []
    for entry in made:
        if isinstance(entry, str):
            found.append(entry)
            continue
        row, (image, width, height, crop, scale) = entry
        if row != first + len(run):
            _write(file, start, first, run)
            first, run = row, []
        run.append(image.tobytes())
        found.append((width, height, *crop.box, crop.angle, scale, difference_hash(image)))
    _write(file, start, first, run)
    return found


def difference_hash(image: Image.Image) -> int:
    """Return 64 bits, alike for pictures that look alike: of a smaller copy, which takes half the time."""
    small = image.reduce((max(1, image.width // HASHED[0]), max(1, image.height // HASHED[1])))
    return int.from_bytes(np.packbits(imagehash.dhash(small).hash).tobytes())


def _write(file: int, start: int, first: int, rows: list[bytes]) -> None:
    # Not joined: a fresh half megabyte costs more than the writing.
    if rows and os.pwritev(file, rows, start + first * len(rows[0])) < sum(map(len, rows)):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


def _read(member: Member, archive: Path) -> bytes:
    data = os.pread(_opened(archive, os.O_RDONLY), member.size, member.offset)
    if zlib.crc32(data) != member.crc or len(data) != member.size:
        raise UserError(f"{archive}: damaged; run the fetch stage again")
    return data


@cache
def _opened(path: Path, flags: int) -> int:
    return os.open(path, flags)


def _prepare(data: bytes, target: Target, points: tuple[float, ...] | None) -> Prepared:
    image, profile, full, shrunk, turn = _loaded(data, target.min_side, target, points)
    width, height = full
    if target.crop == "smart":
        crop = crops.smart(image, width, height)
    else:
        crop = crops.crop_for(width, height, target, points)
    side, mode = target.resolution, "L" if target.channels == 1 else "RGB"
    if not profile and image.mode in ("L", "RGB", "CMYK") and image.mode != mode:
        image = image.convert(mode)
    scale, size, box = side / min(crop.size), (side, side), crop.box
    if target.crop == "pad":
        size, box = (max(1, round(width * scale)), max(1, round(height * scale))), (0, 0, width, height)
    if shrunk > 1:
        image = image.resize(size, Image.Resampling.LANCZOS, _inside(image, box, full, shrunk, turn))
    else:
        image = crops.cut(image, Crop(box, crop.angle)).resize(size, Image.Resampling.LANCZOS)
    image = _flat(image, profile, target.background)
    if target.crop == "pad":
        canvas = Image.new("RGB", (side, side), target.background)
        canvas.paste(image, ((side - size[0]) // 2, (side - size[1]) // 2))
        image = canvas
    if image.mode != mode:
        image = image.convert(mode)
    return Prepared(image, width, height, crop, scale)


class _Loaded(NamedTuple):
    """A picture, upright, in 8 bits of L, LA, RGB, RGBA or CMYK, and how it came to be that.

    Attributes:
        image: it, maybe smaller than it is in the file.
        profile: its ICC profile.
        full: its size in pixels in the file, upright.
        shrunk: by what its sides were divided.
        turn: how it was turned upright.
    """

    image: Image.Image
    profile: bytes | None
    full: tuple[int, int]
    shrunk: int
    turn: Image.Transpose | None


def _loaded(
    data: bytes, min_side: int, target: Target | None = None, points: tuple[float, ...] | None = None
) -> _Loaded:
    """Decode a picture; of one that is too large for a target, no more than that needs."""
    image = _open(data, min_side)
    if image.format == "PNG":
        # Loading does not check a PNG's checksums and gives wrong pixels in silence; verify does, but uses it
        # up. Of the other formats' decoders none has anything to verify.
        image.verify()
        image = _open(data, min_side)
    shrunk, full = _draft(image, target, points) if target else (1, image.size)
    image.load()
    profile = image.info.get("icc_profile")
    if (turn := _turn(image)) is not None:
        image = image.transpose(turn)
    if shrunk == 1:
        full = image.size
    return _Loaded(_plain(image), profile, full, shrunk, turn)


def _open(data: bytes, min_side: int) -> Image.Image:
    image: Image.Image = Image.open(BytesIO(data), formats=KNOWN)
    if image.width * image.height > MAX_PIXELS:
        raise Rejected(_too_many_pixels())
    if min(image.size) < min_side:
        raise Rejected(f"smaller than preprocess.min_side ({min_side} px) in a side")
    return image


def _too_many_pixels() -> str:
    return f"more than {MAX_PIXELS // 1_000_000} megapixels"


def _draft(
    image: Image.Image, target: Target, points: tuple[float, ...] | None
) -> tuple[int, tuple[int, int]]:
    """Have a JPEG decoded at a half, quarter or eighth of its size where DRAFT times the resolution remains.

    Returns:
        by how much its sides are smaller than they were, and its size in pixels without that, upright.
    """
    # No crop of a small picture is large enough: then its EXIF need not be read, nor its crop be chosen here.
    large = max(image.size) >= DRAFT * 2 * target.resolution
    if not large or not isinstance(image, JpegImagePlugin.JpegImageFile):
        return 1, image.size
    width, height = image.size[::-1] if _turn(image) in SIDEWAYS else image.size
    if target.crop == "smart":
        side = min(width, height)
    else:
        crop = crops.crop_for(width, height, target, points)
        if target.crop == "landmarks":
            return 1, image.size  # Turned and mirrored at the edge by whole pixels.
        side = min(crop.size)
    factor = next((factor for factor in (8, 4, 2) if side >= DRAFT * factor * target.resolution), 1)
    if factor == 1 or image.draft(None, (image.width // factor, image.height // factor)) is None:
        return 1, image.size
    return factor, (width, height)


def _inside(
    image: Image.Image,
    box: Box,
    full: tuple[int, int],
    shrunk: int,
    turn: Image.Transpose | None,
) -> tuple[float, float, float, float]:
    """Return where a box of the full picture lies in its shrunken copy, which was turned."""
    # The copy's sides are rounded up; what that added at the right and bottom may have been turned elsewhere.
    x = image.width - full[0] / shrunk if turn in FROM_RIGHT else 0.0
    y = image.height - full[1] / shrunk if turn in FROM_BOTTOM else 0.0
    left, top, right, bottom = (length / shrunk for length in box)
    return left + x, top + y, right + x, bottom + y


def _turn(image: Image.Image) -> Image.Transpose | None:
    """Say how a picture is to be turned upright; after it is loaded, or a JPEG before."""
    # PNG may keep EXIF behind the pixels, and TIFF is turned by Pillow while it loads.
    try:
        return TURNS.get(image.getexif().get(ORIENTATION, 1))
    except Exception:  # Broken metadata raise as many kinds as broken pixels, but here the pixels are good.
        return None


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
