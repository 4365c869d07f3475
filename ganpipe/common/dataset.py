"""The packed data set that preprocess writes and later stages read: images.npy, index.csv and data.json."""

import hashlib
import json
import re
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd

from ganpipe.common import files
from ganpipe.common.errors import UserError
from ganpipe.common.stages import stage_file

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


def read_classes(root: Path, data: Dataset) -> tuple[dict[str, int], np.ndarray]:
    """Return the classes in a checkout's training images, with their numbers, and each packed image's class.

    That is its place among the classes, int64, or -1 for a held-out image whose class no training image has.
    Numbers in names are ordered as numbers: class 10 comes after 9.

    Raises UserError: the table of classes is missing; or the classes are no use to a training: an image has
        none, one has a single image, or there is only one.
    """
    path, rows = stage_file(root, "labels.csv"), data.train_rows
    try:
        table = pd.read_csv(path, dtype=str, keep_default_na=False).set_index("name")["class"]
    except (OSError, ValueError, KeyError) as error:
        raise UserError(f"{path}: no table of classes ({error}); run the fetch stage again") from None
    labels = table.reindex(data.index["name"], fill_value="").to_numpy(str)
    found, first, counts = np.unique(labels[rows], return_index=True, return_counts=True)
    # Text and numbers alternate in a name's parts, so that a number is never compared with text.
    parts = [re.split("([0-9]+)", name) for name in found.tolist()]
    order = sorted(range(len(found)), key=lambda i: [int(p) if k % 2 else p for k, p in enumerate(parts[i])])
    names, numbers = [str(found[i]) for i in order], [int(counts[i]) for i in order]
    problem, which = "", 0
    remedy = "name the pictures' folders by class, or list file,class in a labels.csv beside the pictures"
    if not names[0]:
        problem = f"{numbers[0]:,} of {len(rows):,} training images have no class"
    elif 1 in numbers:
        which = numbers.index(1)
        problem = f"the class {names[which]!r} has only one training image"
        remedy = "add others of the class or remove it"
    elif len(names) == 1:
        problem = f"all {len(rows):,} training images have the class {names[0]!r}"
    if problem:
        example = data.index["name"].iloc[rows[first[order[which]]]]
        raise UserError(f"model.conditional: {problem} ({example}); {remedy}, or set it to false")
    places = {name: i for i, name in enumerate(names)}
    class_of = np.array([places.get(name, -1) for name in labels.tolist()])
    return dict(zip(names, numbers, strict=True)), class_of


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
