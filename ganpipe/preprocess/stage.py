"""Stage preprocess: images.zip -> packed images, their index, rejected files, copies, and a report."""

import json
import math
import os
import shutil
import sys
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import psutil

from ganpipe.common import files
from ganpipe.common.dataset import IMAGES, INDEX, SHARDS, header, write_description
from ganpipe.common.errors import UserError
from ganpipe.common.progress import Progress
from ganpipe.common.stages import OUTPUTS, stage_folder
from ganpipe.params import Preprocess
from ganpipe.preprocess import report
from ganpipe.preprocess.duplicates import originals
from ganpipe.preprocess.fetched import Fetched, read_fetched
from ganpipe.preprocess.prepare import FACTS, pack
from ganpipe.preprocess.workers import Limits, in_order

# What one file may use in a worker, far more than any sound file does.
LIMITS = Limits(seconds=30, memory=1 << 30)
BEYOND = "beyond preprocess.max_images"  # why a good picture is left out
# With shard_mb null: MB of images in one file at most (FAT32 and many servers take no more), MB of each file
# where they are more, and the most files: each stays open while it is mapped, and 1,024 open files are usual.
ONE_FILE_MB, SHARD_MB, MOST_FILES = 4000, 1000, 500


def preprocess(
    params: Preprocess, root: Path, workers: int | None = None, max_disk: float | None = None
) -> None:
    """Turn the fetched files into training images.

    Reads stages/fetch/; writes the files that stages/preprocess/README.md describes. The options change none
    of their bytes: `workers`, the processes that decode, by default one for each core that this process may
    use; `max_disk`, the GB that the images may take, by default the free space.

    Raises:
        UserError: nothing was fetched, or the images would take too much; or, after everything is written,
            too many files were rejected, or no image is left to train on.
    """
    out = stage_folder(root, "preprocess")
    fetched = read_fetched(root, params.crop == "landmarks")
    shape = (len(fetched.members), params.resolution, params.resolution, params.channels)
    _check_room(shape, fetched.archive.parent, max_disk)
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    with files.whole(out / IMAGES) as temporary:
        temporary.unlink(missing_ok=True)  # a worker of a killed run may still have it open
        index, rejected = _pack(temporary, shape, fetched, params, workers or cores)
        # Copies are dropped before images are chosen, so that the held-out images never depend on the number.
        drop = params.duplicates == "drop"
        if drop:
            copies, pairs = _find_copies(temporary, index, drop)
            reasons = copies[["name"]].assign(reason=copies["kind"] + " copy of another picture")
            index, rejected = _leave_out(temporary, index, rejected, reasons)
        index, rejected = _leave_out(temporary, index, rejected, _beyond(index, params.max_images))
        if not drop:
            copies, pairs = _find_copies(temporary, index, drop)
        drawings = report.drawings(np.load(temporary, mmap_mode="r"), index) if len(index) else {}
        # A kill between now and the last new file must not leave a mixture of two runs.
        for name in OUTPUTS["preprocess"]:
            if name != SHARDS:
                (out / name).unlink(missing_ok=True)
        shutil.rmtree(out / SHARDS, ignore_errors=True)
        (out / SHARDS).mkdir()
        _divide(temporary, out / SHARDS, params.shard_mb)
    index = index.drop(columns=["sha256", "hash"])
    numbers = report.numbers(index, rejected, copies, params)
    shown = rejected.sort_values("reason", key=lambda reason: reason == BEYOND, kind="stable")
    page = report.page(numbers, shown, copies, pairs, drawings, fetched.source)
    texts = {"report.json": json.dumps(numbers, indent=2) + "\n", "report.html": page}
    tables = {INDEX: index, "rejected.csv": rejected, "duplicates.csv": copies}
    texts |= {name: table.to_csv(index=False) for name, table in tables.items()}
    contents = drawings | {name: text.encode() for name, text in texts.items()}
    for name in sorted(contents.keys() & OUTPUTS["preprocess"]):
        with files.whole(out / name) as temporary:
            temporary.write_bytes(contents[name])
    if len(index):
        write_description(out)  # at the end: without it, later stages refuse the set
    _judge(numbers, params)


def split_of(sha256: str, held_out: float) -> str:
    """Choose "train" or "held_out" by a file's bytes alone, so that exact copies are in the same split."""
    return "held_out" if int(sha256[:16], 16) / 2**64 < held_out else "train"


def _check_room(shape: tuple[int, ...], folder: Path, max_disk: float | None) -> None:
    """Print how much the images will take at most, and refuse to start where that is too much."""
    need = math.prod(shape) / 1e9
    disk = shutil.disk_usage(folder).free / 1e9 if max_disk is None else max_disk
    images = f"{shape[0]:,} images of {'×'.join(map(str, shape[1:]))}"
    on_disk = f"take up to {need:,.3g} GB on disk ({disk:,.3g} free)"
    installed = psutil.virtual_memory().total / 1e9
    in_memory = f"training is fastest with as much memory ({installed:,.3g} GB installed)"
    print(f"preprocess: {images} {on_disk}; {in_memory}", file=sys.stderr)
    if need > disk:
        raise UserError(
            f"preprocess.resolution: {images} take {need:,.3g} GB, more than {disk:,.3g} GB of disk; lower "
            f"it, use fewer pictures, or allow more with GANPIPE_MAX_DISK={math.ceil(need)}"
        )


def _pack(
    path: Path, shape: tuple[int, ...], fetched: Fetched, params: Preprocess, workers: int
) -> tuple[pd.DataFrame, pd.DataFrame]:
    """Write the images; return the index (with sha256 and hash), and name and reason of the rejected files.

    The workers write each image into the row of its file; this function removes the rows of rejected files.
    """
    start = _write_header(path, shape)
    function = partial(pack, archive=fetched.archive, params=params, path=path, start=start)
    results = []
    with Progress("preprocess", len(fetched.members)) as progress:
        for result in in_order(function, fetched.members, workers, LIMITS):
            results.append(result)
            progress.advance()
    accepted = np.array([not isinstance(result, str) for result in results], bool)
    _keep(path, np.flatnonzero(accepted))
    reasons = [result for result in results if isinstance(result, str)]
    rejected = fetched.manifest.loc[~accepted, ["name"]].assign(reason=reasons)
    facts = pd.DataFrame([result for result in results if not isinstance(result, str)], columns=FACTS)
    index = fetched.manifest.loc[accepted, ["name", "sha256"]].reset_index(drop=True).join(facts)
    index["split"] = [split_of(sha256, params.held_out) for sha256 in index["sha256"]]
    return index.astype({"hash": np.uint64}), rejected


def _beyond(index: pd.DataFrame, max_images: int | None) -> pd.DataFrame:
    """Return name and reason of the training images beyond max_images.

    The last digits of the sha256 decide, as its first ones the split: a smaller set is part of a larger one.
    """
    train = index[index["split"] == "train"]
    order = train.sort_values("sha256", key=lambda column: column.str[16:], kind="stable")
    return order.iloc[len(order) if max_images is None else max_images :][["name"]].assign(reason=BEYOND)


def _leave_out(
    path: Path, index: pd.DataFrame, rejected: pd.DataFrame, reasons: pd.DataFrame
) -> tuple[pd.DataFrame, pd.DataFrame]:
    """Move pictures, given by name and reason, from the packed file and the index to `rejected`."""
    if reasons.empty:
        return index, rejected
    rows = np.flatnonzero(~index["name"].isin(reasons["name"]))
    _keep(path, rows)
    return index.iloc[rows], pd.concat([rejected, reasons]).sort_values("name", kind="stable")


def _find_copies(path: Path, index: pd.DataFrame, drop: bool) -> tuple[pd.DataFrame, list[np.ndarray]]:
    """Return duplicates.csv, and the pixels of the first pairs: uint8 2×H×W×C, the original and its copy."""
    images = np.load(path, mmap_mode="r")
    first = originals(index["sha256"].tolist(), index["hash"].to_numpy(), images)
    rows = np.flatnonzero(first != np.arange(len(first)))
    copy, original = index.iloc[rows].reset_index(), index.iloc[first[rows]].reset_index()
    copies = copy[["name"]].assign(
        original=original["name"],
        kind=np.where(copy["sha256"] == original["sha256"], "exact", "near"),
        split=copy["split"],
        original_split=original["split"],
        dropped=np.full(len(rows), drop),
    )
    return copies, [images[[first[row], row]] for row in rows[: report.MOST_PAIRS]]


def _keep(path: Path, rows: np.ndarray) -> None:
    """Remove all but some rows, given in ascending order, from a packed file."""
    images = np.load(path, mmap_mode="r+")
    for start in range(0, len(rows), 256):
        # A row moves down or stays, so that no row is overwritten before it is read.
        part = rows[start : start + 256]
        if part[-1] >= start + len(part):
            images[start : start + len(part)] = images[part]
    _write_header(path, (len(rows), *images.shape[1:]))


def _write_header(path: Path, shape: tuple[int, ...]) -> int:
    """Make a file an npy file of uint8 and a shape, without changing its pixels; return where they begin."""
    start = header(shape)
    with open(path, "rb+" if path.exists() else "wb") as file:
        file.write(start)
        file.truncate(len(start) + math.prod(shape))
    return len(start)


def _divide(path: Path, shards: Path, shard_mb: int | None) -> None:
    """Move the images beyond the first `shard_mb` MB from a packed file to files of as many; list all."""
    images = np.load(path, mmap_mode="r")
    total = images.nbytes / 1e6
    most = shard_mb or (ONE_FILE_MB if total <= ONE_FILE_MB else max(SHARD_MB, total / MOST_FILES))
    count = max(1, int(most * 1e6 / math.prod(images.shape[1:])))
    starts = range(count, len(images), count)
    for start in reversed(starts):  # so that no more than one file's images are on the disk twice
        part = images[start : start + count]
        with files.whole(shards / f"{start // count:05}.npy") as temporary, open(temporary, "wb") as file:
            file.write(header(part.shape))
            file.write(part.data)
        _write_header(path, (start, *images.shape[1:]))
    rows = "".join(f"{start // count:05}.npy,{start}\n" for start in starts)
    (shards / "index.csv").write_text(f"file,first_row\n../{IMAGES},0\n{rows}")  # DVC warns of empty folders


def _judge(numbers: dict[str, Any], params: Preprocess) -> None:
    """Raise a UserError where too few images are left."""
    read, accepted = numbers["read"], numbers["accepted"]
    reasons = [f"{count:,} {reason}" for reason, count in numbers["rejected_by_reason"].items()]
    why = f"({', '.join(reasons[:3])}); see stages/preprocess/rejected.csv"
    if not accepted:
        raise UserError(f"preprocess: none of {read:,} files can be used {why}")
    # These are left out on request: nothing is wrong with them.
    bad = numbers["rejected"] - numbers["copies"]["dropped"] - numbers["rejected_by_reason"].get(BEYOND, 0)
    if bad / read > params.max_rejected:
        raise UserError(
            f"preprocess.max_rejected: {bad:,} of {read:,} files ({bad / read:.1%}) were rejected, more than "
            f"{params.max_rejected:.1%} {why}; repair the source or raise max_rejected"
        )
    if not numbers["train"]:
        raise UserError(
            f"preprocess: none of {accepted:,} images is left to train on with "
            f"preprocess.held_out={params.held_out}; lower it or add pictures"
        )
