"""The classes of training images, as fetch lists them in labels.csv."""

import re
from pathlib import Path

import numpy as np
import pandas as pd

from ganpipe.common.dataset import Dataset
from ganpipe.common.errors import UserError
from ganpipe.common.stages import stage_file


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
