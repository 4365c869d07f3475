"""The packed data set that preprocess writes and later stages read: images, index.csv and data.json."""

import hashlib
import io
import json
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd

from ganpipe.common import files
from ganpipe.common.errors import UserError
from ganpipe.common.shards import Images, Shards

IMAGES, INDEX, DATA = "images.npy", "index.csv", "data.json"
SHARDS = "shards"  # folder of files like images.npy with the images after those in it, in the files' order


@dataclass(frozen=True)
class Dataset:
    """A packed data set, memory-mapped.

    Attributes:
        images: uint8 N×H×W×C in [0, 255], an array if they are in one file; row i of the index describes
            image i.
        index: columns name and split of index.csv.
        digest: sha256 (hexadecimal) of what training sees: pixels and split, but no file names.
    """

    images: Images
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
        parts, index, counts = _read(folder)
        recorded = json.loads((folder / DATA).read_text(encoding="utf-8"))
        if recorded != {"digest": recorded["digest"], **counts}:
            raise ValueError(f"{IMAGES} {parts[0].dtype}{parts[0].shape}, {INDEX} and {DATA} do not match")
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise UserError(f"{folder}: no packed data set ({error}); run the preprocess stage again") from None
    return Dataset(parts[0] if len(parts) == 1 else Shards(parts), index, recorded["digest"])


def header(shape: tuple[int, ...]) -> bytes:
    """Return the first bytes of an npy file of uint8 and a shape.

    NumPy pads them, so their number does not depend on that of the rows.
    """
    file = io.BytesIO()
    np.lib.format.write_array_header_1_0(file, {"descr": "|u1", "fortran_order": False, "shape": shape})
    return file.getvalue()


def write_description(folder: Path) -> None:
    """Write data.json beside the images and index.csv: their digest, counts and the images' shape."""
    parts, index, counts = _read(folder)
    # Of the one file that would hold all images: the digest does not depend on how they are divided.
    pixels = hashlib.sha256(header((len(index), *parts[0].shape[1:])))
    for part in parts:
        pixels.update(part.reshape(-1).data)
    splits = hashlib.sha256("".join(index["split"].str[0]).encode()).hexdigest()
    digest = hashlib.sha256((pixels.hexdigest() + splits).encode()).hexdigest()
    with files.whole(folder / DATA) as temporary:
        temporary.write_text(json.dumps({"digest": digest, **counts}, indent=2) + "\n")


def _read(folder: Path) -> tuple[list[np.ndarray], pd.DataFrame, dict[str, int]]:
    """Return each file's images, their index, and the counts in data.json; ValueError if they differ."""
    paths = [folder / IMAGES, *sorted((folder / SHARDS).glob("*.npy"))]
    parts = [np.load(path, mmap_mode="r", allow_pickle=False) for path in paths]
    index = pd.read_csv(folder / INDEX, usecols=["name", "split"], dtype=str, keep_default_na=False)
    _, _, resolution, channels = parts[0].shape
    for path, part in zip(paths, parts, strict=True):
        if part.dtype != np.uint8 or part.shape[1:] != parts[0].shape[1:]:
            raise ValueError(f"{path.name} {part.dtype}{part.shape} does not fit {IMAGES}")
    if (count := sum(map(len, parts))) != len(index):
        raise ValueError(f"{count} images in {len(paths)} files do not fit {INDEX} with {len(index)} rows")
    splits = {split: int((index["split"] == split).sum()) for split in ("train", "held_out")}
    return parts, index, {"images": count, **splits, "resolution": resolution, "channels": channels}
