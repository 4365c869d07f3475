"""Reading the packed data set."""

import mmap
import os
import re
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from conftest import divide

from ganpipe.common.dataset import load, write_description
from ganpipe.common.errors import UserError
from ganpipe.common.shards import Shards

IMAGES = np.arange(5 * 4 * 4, dtype=np.uint8).reshape(5, 4, 4, 1)


def test_rows_follow_the_split(tmp_path: Path, write_packed: Callable[..., Path]) -> None:
    """A failure would train on held-out images, and the floor of the metrics would be a lie."""
    data = load(write_packed(tmp_path, IMAGES, held_out=2))
    assert data.held_out_rows.tolist() == [0, 1] and data.train_rows.tolist() == [2, 3, 4]
    assert np.array_equal(data.images[:], IMAGES)


def test_digest_is_of_pixels_and_split_alone(tmp_path: Path, write_packed: Callable[..., Path]) -> None:
    """A digest that misses a change resumes the wrong training; one that sees names retrains for nothing."""
    folder = write_packed(tmp_path, IMAGES)
    digest = load(folder).digest
    index = pd.read_csv(folder / "index.csv")
    index.assign(name="other").to_csv(folder / "index.csv", index=False)
    write_description(folder)
    assert load(folder).digest == digest
    assert load(write_packed(tmp_path, IMAGES, held_out=1)).digest != digest
    assert load(write_packed(tmp_path, IMAGES + 1)).digest != digest


def test_golden_digest(tmp_path: Path, write_packed: Callable[..., Path]) -> None:
    """Another formula would give every old run another data set, and resume none of them."""
    digest = load(write_packed(tmp_path, IMAGES, held_out=2)).digest
    assert digest == "55d126b5068bc07caf8534caf142f483e26f4644104377e5d216c02bd03a61b5"


@pytest.mark.parametrize("counts", [(), (2,), (1, 3), (1, 1, 1, 1)])
def test_images_in_several_files_are_one_array(
    tmp_path: Path, write_packed: Callable[..., Path], counts: tuple[int, ...]
) -> None:
    """A training on a divided set would see other images, or start anew because its digest differs."""
    folder = write_packed(tmp_path, IMAGES, held_out=2)
    digest = load(folder).digest
    divide(folder, *counts)
    write_description(folder)
    data = load(folder)
    assert data.digest == digest and isinstance(data.images, Shards if counts else np.ndarray)
    assert data.images.shape == IMAGES.shape and len(data.images) == 5 and data.images.nbytes == IMAGES.nbytes
    for key in (
        3,
        slice(None),
        slice(1, 4),
        slice(4, 0, -2),
        data.train_rows,
        np.array([4, 0, 4]),
        np.arange(0),
    ):
        assert np.array_equal(data.images[key], IMAGES[key])
    out = np.zeros((3, 4, 4, 1), np.uint8)
    data.images.take(np.array([4, 0, 3]), axis=0, out=out, mode="clip")
    assert np.array_equal(out, IMAGES[[4, 0, 3]])
    with pytest.raises(IndexError):
        data.images[np.array([5])]


@pytest.mark.skipif(not Path("/proc/self/smaps").exists(), reason="only Linux tells how a file is mapped")
@pytest.mark.parametrize("larger", [False, True])
def test_a_set_larger_than_memory_is_read_image_by_image(
    tmp_path: Path, write_packed: Callable[..., Path], monkeypatch: pytest.MonkeyPatch, larger: bool
) -> None:
    """Each image of a batch would make the kernel read fifty times its bytes (docs/large-sets.md)."""
    folder = write_packed(tmp_path, IMAGES)
    divide(folder, 2)
    monkeypatch.setattr(mmap, "PAGESIZE", 1)
    monkeypatch.setattr(os, "sysconf", lambda _: IMAGES.nbytes - larger)
    data = load(folder)
    maps = re.findall(rf"{folder}/.*npy\n(?:.*\n)*?VmFlags:(.*)", Path("/proc/self/smaps").read_text())
    assert len(maps) == 2 and all((" rr " in flags) == larger for flags in maps)
    assert np.array_equal(data.images[:], IMAGES)


@pytest.mark.parametrize("damage", ["missing", "side"])
def test_a_missing_or_strange_shard_is_refused(
    tmp_path: Path, write_packed: Callable[..., Path], damage: str
) -> None:
    """Every image after the missing ones would have another one's split and class."""
    folder = write_packed(tmp_path, IMAGES)
    divide(folder, 2, 2)
    load(folder)
    if damage == "missing":
        (folder / "shards/00001.npy").unlink()
    else:
        np.save(folder / "shards/00001.npy", IMAGES[:2, :3])
    with pytest.raises(UserError, match="do not fit|does not fit"):
        load(folder)


def test_loading_hashes_no_pixels(tmp_path: Path, write_packed: Callable[..., Path]) -> None:
    """Each later stage would read all of a large file before it begins."""
    folder = write_packed(tmp_path, IMAGES)
    digest = load(folder).digest
    np.save(folder / "images.npy", IMAGES + 1)
    assert load(folder).digest == digest


@pytest.mark.parametrize("damage", ["no index", "no data", "rows", "split", "side", "float", "garbage"])
def test_incomplete_or_mixed_data_says_what_to_run(
    tmp_path: Path, write_packed: Callable[..., Path], damage: str
) -> None:
    """A user would get a traceback, or train on images under the wrong rows."""
    folder = write_packed(tmp_path, IMAGES)
    if damage in ("no index", "no data"):
        (folder / ("index.csv" if damage == "no index" else "data.json")).unlink()
    elif damage == "split":
        index = pd.read_csv(folder / "index.csv")
        index.loc[0, "split"] = "held_out"
        index.to_csv(folder / "index.csv", index=False)
    elif damage == "garbage":
        (folder / "images.npy").write_bytes(b"garbage")
    else:
        other: dict[str, np.ndarray] = {
            "rows": IMAGES[:3],
            "side": IMAGES[:, :2, :2],
            "float": IMAGES.astype(np.float32),
        }
        np.save(folder / "images.npy", other[damage])
    with pytest.raises(UserError, match="stages/preprocess.*run the preprocess stage again"):
        load(folder)
