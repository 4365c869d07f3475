"""The packed data set that preprocess writes and the later stages read: images.npy beside index.csv."""

import hashlib
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd

from ganpipe.common import files
from ganpipe.common.errors import UserError

IMAGES, INDEX = "images.npy", "index.csv"


@dataclass(frozen=True)
class Packed:
    """A data set, memory-mapped.

    Attributes:
        images: uint8 N×H×W×C in [0, 255], row i described by row i of the index.
        index: columns name, width, height, left, top, right, bottom, angle, scale, split.
        digest: sha256 (hexadecimal) of what training sees, pixels and split, whatever the files are called.
    """

    images: np.ndarray
    index: pd.DataFrame
    digest: str

    @property
    def train_rows(self) -> np.ndarray:
        """Rows of `images` to train on, int64, ascending."""
        return np.flatnonzero((self.index["split"] == "train").to_numpy())

    @property
    def held_out_rows(self) -> np.ndarray:
        """Rows of `images` kept from training, int64, ascending."""
        return np.flatnonzero((self.index["split"] == "held_out").to_numpy())


def load(folder: Path) -> Packed:
    """Open a packed data set for reading.

    Raises:
        UserError: a file is missing, not readable, or the two do not belong together.
    """
    try:
        images = np.load(folder / IMAGES, mmap_mode="r", allow_pickle=False)
        index = pd.read_csv(folder / INDEX, keep_default_na=False, dtype={"name": str})
    except (OSError, ValueError) as error:
        raise UserError(
            f"{folder}: no readable packed data set ({error}); run the preprocess stage first"
        ) from None
    if images.dtype != np.uint8 or images.ndim != 4 or len(images) != len(index) or "split" not in index:
        raise UserError(
            f"{folder}: {IMAGES} {images.dtype}{images.shape} does not fit {INDEX} with {len(index)} rows"
        )
    splits = hashlib.sha256("".join(index["split"].str[0]).encode()).hexdigest()
    return Packed(
        images, index, hashlib.sha256((files.sha256(folder / IMAGES) + splits).encode()).hexdigest()
    )
