"""One training image: decode, crop, resize, and write its pixels into its row of images.npy."""

import errno
import os
import zlib
from functools import cache
from pathlib import Path
from typing import NamedTuple

import imagehash
import numpy as np
from PIL import Image

from ganpipe.common.errors import UserError
from ganpipe.params import Preprocess
from ganpipe.preprocess.colour import flatten
from ganpipe.preprocess.crop import Crop, Points, Rejected, crop_for, cut, smart
from ganpipe.preprocess.decode import decode, rejecting

MAX_BYTES = 1 << 28
# Least width and height in pixels of the copy of an image that is hashed.
HASHED = 9, 8
# Width, height, left, top, right and bottom of the crop, its angle and scale, as in Prepared, and
# `difference_hash` of the image.
Facts = tuple[int, int, int, int, int, int, float, float, int]


class Member(NamedTuple):
    """A picture in fetch's archive: number, offset of its first byte, bytes, their CRC-32, landmarks."""

    row: int
    offset: int
    size: int
    crc: int
    points: Points | None


class Prepared(NamedTuple):
    """A training image.

    Attributes:
        image: of mode L or RGB.
        width: of the source in pixels, after its EXIF rotation; height likewise.
        crop: the part of it in those pixels.
        scale: resolution divided by the shorter side of the crop; above 1 the picture was enlarged.
    """

    image: Image.Image
    width: int
    height: int
    crop: Crop
    scale: float


def prepare(data: bytes, params: Preprocess, points: Points | None = None) -> Prepared:
    """Decode a file, turn it upright, crop, resize with Lanczos, bring to sRGB, lay over the background.

    Use within `rejecting`, as any kind of exception may come from Pillow's decoders.

    Args:
        data: a file's bytes.
        params: the crop, its size and colours.
        points: its landmarks, for crop "landmarks".
    """
    picture = decode(data, params, points)
    image, (width, height) = picture.image, picture.size
    crop = smart(image, width, height) if params.crop == "smart" else crop_for(width, height, params, points)
    side, mode = params.resolution, "L" if params.channels == 1 else "RGB"
    if not picture.profile and image.mode in ("L", "RGB", "CMYK") and image.mode != mode:
        image = image.convert(mode)
    scale, size, box = side / min(crop.size), (side, side), crop.box
    if params.crop == "pad":
        size, box = (max(1, round(width * scale)), max(1, round(height * scale))), (0, 0, width, height)
    if picture.factor > 1:
        image = image.resize(size, Image.Resampling.LANCZOS, picture.scaled(box))
    else:
        image = cut(image, Crop(box, crop.angle)).resize(size, Image.Resampling.LANCZOS)
    image = flatten(image, picture.profile, params.background)
    if params.crop == "pad":
        canvas = Image.new("RGB", (side, side), tuple(params.background))
        canvas.paste(image, ((side - size[0]) // 2, (side - size[1]) // 2))
        image = canvas
    return Prepared(image if image.mode == mode else image.convert(mode), width, height, crop, scale)


def prepare_member(member: Member, archive: Path, params: Preprocess) -> tuple[int, Prepared] | str:
    """Prepare a picture in an uncompressed zip; return its row and it, or the reason why it is rejected.

    Warnings must be off, as in workers.

    Raises:
        UserError: the archive is damaged.
    """
    if member.size > MAX_BYTES:
        return f"larger than {MAX_BYTES >> 20} MB"
    data = os.pread(_opened(archive, os.O_RDONLY), member.size, member.offset)
    if zlib.crc32(data) != member.crc or len(data) != member.size:
        raise UserError(f"{archive}: damaged; run the fetch stage again")
    try:
        with rejecting(data):
            return member.row, prepare(data, params, member.points)
    except Rejected as reason:
        return str(reason)


def store(results: list[tuple[int, Prepared] | str], path: Path, start: int) -> list[Facts | str]:
    """Write the pixels of what `prepare_member` returned for some pictures into their rows of a file.

    Sending pixels to the parent process would take a tenth of the whole time.

    Args:
        results: rows and images, or reasons.
        path: the file. The rows of rejected pictures keep their content.
        start: bytes before its first row.

    Returns:
        for each the facts, as plain values, or the reason.

    Raises:
        OSError: such as a full disk.
    """
    file = _opened(path, os.O_WRONLY)
    facts: list[Facts | str] = []
    for result in results:
        if isinstance(result, str):
            facts.append(result)
            continue
        row, (image, width, height, crop, scale) = result
        pixels = image.tobytes()
        if os.pwrite(file, pixels, start + row * len(pixels)) < len(pixels):
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        facts.append((width, height, *crop.box, crop.angle, scale, difference_hash(image)))
    return facts


def difference_hash(image: Image.Image) -> int:
    """Return 64 bits that are similar for similar pictures; of a reduced copy, in half the time."""
    small = image.reduce((max(1, image.width // HASHED[0]), max(1, image.height // HASHED[1])))
    return int.from_bytes(np.packbits(imagehash.dhash(small).hash).tobytes())


@cache
def _opened(path: Path, flags: int) -> int:
    return os.open(path, flags)
