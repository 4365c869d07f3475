"""The packed data set that preprocess writes and later stages read: images.npy, index.csv and data.json."""

import hashlib
import json
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd

from ganpipe.common import files
from ganpipe.common.errors import UserError

IMAGES, INDEX, DATA = "images.npy", "index.csv", "data.json"


@dataclass(frozen=True)
class Dataset:
    """A packed data set, memory-mapped.

    Attributes:
        images: uint8 N×H×W×C in [0, 255]; row i of the index describes image i.
        index: columns name, width, height, left, top, right, bottom, angle, scale, split.
        digest: sha256 (hexadecimal) of what training sees: pixels and split, but no file names.
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
        """Rows of `images` held out from training, int64, ascending."""
        return np.flatnonzero((self.index["split"] == "held_out").to_numpy())


def load(folder: Path) -> Dataset:
    """Open a packed data set for reading, without hashing its pixels again.

    Raises UserError: a file is missing or unreadable, or the files come from different runs.
    """
    try:
        images, index, counts = _read(folder)
        recorded = json.loads((folder / DATA).read_text(encoding="utf-8"))
        if recorded != {"digest": recorded["digest"], **counts}:
            raise ValueError(f"{IMAGES} {images.dtype}{images.shape}, {INDEX} and {DATA} do not match")
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise UserError(f"{folder}: no packed data set ({error}); run the preprocess stage again") from None
    return Dataset(images, index, recorded["digest"])


def write_description(folder: Path) -> None:
    """Write data.json beside images.npy and index.csv: their digest, counts and the images' shape."""
    _, index, counts = _read(folder)
    splits = hashlib.sha256("".join(index["split"].str[0]).encode()).hexdigest()
    digest = hashlib.sha256((files.sha256(folder / IMAGES) + splits).encode()).hexdigest()
    with files.whole(folder / DATA) as temporary:
        temporary.write_text(json.dumps({"digest": digest, **counts}, indent=2) + "\n")


def _read(folder: Path) -> tuple[np.ndarray, pd.DataFrame, dict[str, int]]:
    """Return the images, their index, and the counts in data.json; ValueError if images and index differ."""
    images = np.load(folder / IMAGES, mmap_mode="r", allow_pickle=False)
    index = pd.read_csv(folder / INDEX, keep_default_na=False, dtype={"name": str})
    count, _, resolution, channels = images.shape
    if images.dtype != np.uint8 or count != len(index):
        raise ValueError(f"{IMAGES} {images.dtype}{images.shape} does not fit {INDEX} with {len(index)} rows")
    splits = {split: int((index["split"] == split).sum()) for split in ("train", "held_out")}
    counts = {"images": count, **splits, "resolution": resolution, "channels": channels}
    return images, index, counts
