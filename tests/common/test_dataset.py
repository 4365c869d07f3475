"""Reading the packed data set."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from ganpipe.common import dataset as packed
from ganpipe.common.errors import UserError

IMAGES = np.arange(5 * 4 * 4, dtype=np.uint8).reshape(5, 4, 4, 1)


def test_rows_follow_the_split(tmp_path: Path, write_packed: Callable[..., Path]) -> None:
    """A failure would train on held-out images, and the floor of the metrics would be a lie."""
    data = packed.load(write_packed(tmp_path, IMAGES, held_out=2))
    assert data.held_out_rows.tolist() == [0, 1] and data.train_rows.tolist() == [2, 3, 4]
    assert np.array_equal(data.images, IMAGES)


def test_digest_is_of_pixels_and_split_alone(tmp_path: Path, write_packed: Callable[..., Path]) -> None:
    """A digest that misses a change resumes the wrong training; one that sees names retrains for nothing."""
    folder = write_packed(tmp_path, IMAGES)
    digest = packed.load(folder).digest
    index = pd.read_csv(folder / "index.csv")
    index.assign(name="other").to_csv(folder / "index.csv", index=False)
    assert packed.load(folder).digest == digest
    assert packed.load(write_packed(tmp_path, IMAGES, held_out=1)).digest != digest
    assert packed.load(write_packed(tmp_path, IMAGES + 1)).digest != digest


@pytest.mark.parametrize("damage", ["missing", "rows", "garbage"])
def test_damaged_data_is_named(tmp_path: Path, write_packed: Callable[..., Path], damage: str) -> None:
    """A user would get a traceback, or train on images under the wrong rows."""
    folder = write_packed(tmp_path, IMAGES)
    if damage == "missing":
        (folder / "index.csv").unlink()
    elif damage == "rows":
        np.save(folder / "images.npy", IMAGES[:3])
    else:
        (folder / "images.npy").write_bytes(b"garbage")
    with pytest.raises(UserError, match="stages/preprocess"):
        packed.load(folder)
