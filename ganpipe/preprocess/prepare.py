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
from ganpipe.preprocess.workers import lift_time_limit

MAX_BYTES = 1 << 28
# Facts about an image: size of its source, crop and scale, as in Prepared, and its difference hash.
FACTS = ("width", "height", "left", "top", "right", "bottom", "angle", "scale", "hash")
# The descriptor of a path for these flags, opened once in each worker.
_opened = cache(os.open)


class Member(NamedTuple):
    """A picture in fetch's archive."""

    row: int
    offset: int  # of its first byte
    size: int  # bytes
    crc: int  # their CRC-32
    points: Points | None  # landmarks


class Prepared(NamedTuple):
    """A training image, and where in its source it lies."""

    image: Image.Image  # of mode L or RGB
    width: int  # of the source in pixels, after its EXIF rotation; height likewise
    height: int
    crop: Crop  # the part of the source in those pixels
    scale: float  # resolution / shorter side of the crop; above 1 the picture was enlarged


def prepare(data: bytes, params: Preprocess, points: Points | None = None) -> Prepared:
    """Decode a file, turn it upright, crop, resize with Lanczos, bring to sRGB, lay over the background.

    Use within `rejecting`, as for `decode`. Crop "landmarks" needs points, the file's landmarks.
    """
    picture = decode(data, params)
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
    return Prepared(image.convert(mode), width, height, crop, scale)


def pack(
    member: Member, archive: Path, params: Preprocess, path: Path, start: int
) -> tuple[float, ...] | str:
    """Prepare a picture of an uncompressed zip, and write its pixels into its row of `path`, in a worker.

    Sending pixels to the parent process would take a tenth of the whole time. The rows begin at byte `start`.
    Return the picture's FACTS, or the reason why it is rejected; then its row keeps its content.

    Raises:
        UserError: the archive is damaged.
        OSError: the pixels cannot be written, such as on a full disk.
    """
    if member.size > MAX_BYTES:
        return f"larger than {MAX_BYTES >> 20} MB"
    data = os.pread(_opened(archive, os.O_RDONLY), member.size, member.offset)
    if zlib.crc32(data) != member.crc or len(data) != member.size:
        raise UserError(f"{archive}: damaged; run the fetch stage again")
    try:
        with rejecting(data):
            image, width, height, crop, scale = prepare(data, params, member.points)
    except Rejected as reason:
        return str(reason)
    lift_time_limit()  # A slow disk is not the picture's fault.
    pixels = image.tobytes()
    if os.pwrite(_opened(path, os.O_WRONLY), pixels, start + member.row * len(pixels)) < len(pixels):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
    return width, height, *crop.box, crop.angle, scale, difference_hash(image)


def difference_hash(image: Image.Image) -> int:
    """Return 64 bits that are similar for similar pictures."""
    # Of a reduced copy, at least the 9×8 pixels that are compared: in half the time.
    small = image.reduce((max(1, image.width // 9), max(1, image.height // 8)))
    return int.from_bytes(np.packbits(imagehash.dhash(small).hash).tobytes())
