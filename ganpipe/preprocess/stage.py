"""Stage preprocess: images.zip -> packed images, their index, what was rejected, copies, and a report."""

import json
import math
import os
import shutil
import sys
import zipfile
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from ganpipe.common import files
from ganpipe.common.dataset import IMAGES, INDEX, write_description
from ganpipe.common.errors import UserError
from ganpipe.common.progress import Progress
from ganpipe.common.stages import OUTPUTS, stage_folder
from ganpipe.params import Preprocess
from ganpipe.preprocess import report
from ganpipe.preprocess.crop import Target
from ganpipe.preprocess.decode import Facts, Member, prepare_member, store
from ganpipe.preprocess.duplicates import originals
from ganpipe.preprocess.workers import Limits, Lost, in_order

ARCHIVE = "images.zip"
INDEX_COLUMNS = ["name", "width", "height", "left", "top", "right", "bottom", "angle", "scale", "split"]
COPY_COLUMNS = ["name", "original", "kind", "split", "original_split", "dropped"]
# Files that a worker gets in one message.
CHUNK_FILES = 64
# What one file may take of a worker, far above what any sound one does.
LIMITS = Limits(seconds=30, memory=1 << 30)


def preprocess(
    params: Preprocess,
    root: Path,
    workers: int | None = None,
    max_disk: float | None = None,
    max_memory: float | None = None,
) -> None:
    """Turn the fetched files into training images.

    Reads stages/fetch/; writes stages/preprocess/images.npy (uint8 N×H×W×C in [0, 255]), index.csv (row i is
    image i) and the other OUTPUTS. Rows are in the order of the manifest, whatever `workers` is.

    Args:
        params: crop, size, channels, what becomes of copies, the shares held out and rejected.
        root: the checkout.
        workers: processes that decode; None: one for each core that this process may use.
        max_disk: GB that images.npy may take; None: what is free there.
        max_memory: GB that it may take when all of it is in memory; None: what the machine has.

    Raises:
        UserError: nothing was fetched, or the images would take too much; or, after everything is written,
            too many files were rejected, or no image is left to train on.
    """
    source, out = stage_folder(root, "fetch"), stage_folder(root, "preprocess")
    target = target_of(params)
    with _open_fetched(source) as archive:
        manifest = _manifest(source, archive)
        members = _members(archive, _landmarks(source) if params.crop == "landmarks" else {})
    _check_room(len(members), target, source, max_disk, max_memory)
    with files.whole(out / IMAGES) as temporary:
        temporary.unlink(missing_ok=True)  # a killed run's, which a worker of it may hold yet
        start = _write_header(temporary, len(members), target)
        read = partial(prepare_member, archive=source / ARCHIVE, target=target)
        keep = partial(store, path=temporary, start=start)
        results = in_order(read, members, workers or _cores(), LIMITS, CHUNK_FILES, keep)
        table, reasons = _pack(temporary, results, manifest, target, params.held_out)
        copies, pairs = _copies(temporary, table, params.duplicates == "drop")
        if copies["dropped"].any():
            gone = copies[copies["dropped"]]
            kept = ~table["name"].isin(gone["name"])
            _keep(temporary, np.flatnonzero(kept), len(table), target)
            table = table[kept]
            more = pd.DataFrame({"name": gone["name"], "reason": gone["kind"] + " copy of another picture"})
            reasons = pd.concat([reasons, more]).sort_values("name", kind="stable")
        for name in OUTPUTS["preprocess"]:
            # A kill between now and the last of the new files leaves no set of both.
            (out / name).unlink(missing_ok=True)
    tables = {INDEX: table[INDEX_COLUMNS], "rejected.csv": reasons, "duplicates.csv": copies}
    for name, frame in tables.items():
        with files.whole(out / name) as temporary:
            frame.to_csv(temporary, index=False, lineterminator="\n")
    if len(table):
        write_description(out)
    found = report.numbers(table, reasons, copies, target)
    shown: dict[str, bytes] = {}
    if len(table):
        images = np.load(out / IMAGES, mmap_mode="r")
        shown = report.shown(images, table, target.resolution)
    texts = {
        "report.json": (json.dumps(found, indent=2) + "\n").encode(),
        "report.html": report.page(found, reasons, copies, pairs, shown, _source(source)).encode(),
    }
    pictures = {name: shown[name] for name in ("contact_sheet.png", "histograms.png") if name in shown}
    for name, data in (texts | pictures).items():
        with files.whole(out / name) as temporary:
            temporary.write_bytes(data)
    _judge(found, params)


def target_of(params: Preprocess) -> Target:
    """Return what one picture's preparation needs of the params."""
    values: dict[str, Any] = params.model_dump(include=set(Target.__annotations__))
    return Target(**values | {"background": tuple(params.background)})


def split_of(sha256: str, held_out: float) -> str:
    """Choose "train" or "held_out" by a file's bytes: other files never move it, and copies stay together."""
    return "held_out" if int(sha256[:16], 16) / 2**64 < held_out else "train"


def _cores() -> int:
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def _open_fetched(source: Path) -> zipfile.ZipFile:
    try:
        return zipfile.ZipFile(source / ARCHIVE)
    except (FileNotFoundError, zipfile.BadZipFile) as error:
        raise UserError(f"{source / ARCHIVE}: cannot be read ({error}); run the fetch stage first") from None


def _manifest(source: Path, archive: zipfile.ZipFile) -> pd.DataFrame:
    path = source / "manifest.csv"
    try:
        # Names stay text: pandas would make a number of "007" and nothing of "null".
        manifest = pd.read_csv(path, dtype=str, keep_default_na=False)
    except (OSError, ValueError) as error:
        raise UserError(f"{path}: cannot be read ({error}); run the fetch stage first") from None
    if not {"name", "sha256"} <= set(manifest) or manifest["name"].tolist() != archive.namelist():
        raise UserError(f"{path}: does not list the files of images.zip; run the fetch stage again")
    return manifest


def _landmarks(source: Path) -> dict[str, tuple[float, ...]]:
    """Read each picture's landmarks: x, y, x, y … in pixels."""
    path = source / "landmarks.csv"
    try:
        table = pd.read_csv(path, dtype=str, keep_default_na=False)
    except (OSError, ValueError) as error:
        raise UserError(f"{path}: cannot be read ({error}); run the fetch stage first") from None
    if table.empty:
        raise UserError(
            "preprocess.crop: found landmarks, but the source came without; put a table landmarks.csv beside "
            "the pictures (see stages/fetch/README.md) or choose another crop"
        )
    rows = table.itertuples(index=False)
    return {name: tuple(float(value) for value in values if value) for name, *values in rows}


def _source(source: Path) -> dict[str, Any]:
    """Read what fetch says of the source, if it does."""
    path = source / "source.json"
    return dict(json.loads(path.read_text(encoding="utf-8"))) if path.exists() else {}


def _check_room(
    count: int, target: Target, place: Path, max_disk: float | None, max_memory: float | None
) -> None:
    """Say what the images will take, and refuse what there is no room for."""
    need = count * target.resolution**2 * target.channels / 1e9
    disk = shutil.disk_usage(place).free / 1e9 if max_disk is None else max_disk
    installed = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 1e9
    memory = installed if max_memory is None else max_memory
    shape = f"{count:,} images of {target.resolution}×{target.resolution}×{target.channels}"
    print(
        f"preprocess: {shape} take up to {need:,.3g} GB on disk (of {disk:,.3g}) and, mapped from there, as "
        f"much memory (of {memory:,.3g}) in training",
        file=sys.stderr,
    )
    for room, what, flag in ((disk, "disk", "GANPIPE_MAX_DISK"), (memory, "memory", "GANPIPE_MAX_MEMORY")):
        if need > room:
            raise UserError(
                f"preprocess.resolution: {shape} take {need:,.3g} GB, more than {room:,.3g} GB of {what}; "
                f"lower it, take fewer pictures, or allow more with {flag}={math.ceil(need)}"
            )


def _pack(
    path: Path,
    results: Iterator[Facts | str | Lost],
    manifest: pd.DataFrame,
    target: Target,
    held_out: float,
) -> tuple[pd.DataFrame, pd.DataFrame]:
    """Take what became of each file; return the index (with sha256 and hash) and the rejected files.

    The workers write each image into the row of its file; those of rejected ones are closed up here.
    """
    index: list[tuple[Any, ...]] = []
    rejected: list[tuple[str, str]] = []
    rows: list[int] = []
    with Progress("preprocess", len(manifest)) as progress:
        listed = zip(manifest["name"], manifest["sha256"], results, strict=True)
        for row, (name, sha256, result) in enumerate(listed):
            if isinstance(result, tuple):
                *facts, code = result
                rows.append(row)
                index.append((name, *facts, split_of(sha256, held_out), sha256, code))
            else:
                rejected.append((name, result.reason if isinstance(result, Lost) else result))
            progress.advance()
    _keep(path, np.array(rows, np.int64), len(manifest), target)
    table = pd.DataFrame(index, columns=[*INDEX_COLUMNS, "sha256", "hash"]).astype({"hash": np.uint64})
    return table, pd.DataFrame(rejected, columns=["name", "reason"])


def _copies(path: Path, table: pd.DataFrame, drop: bool) -> tuple[pd.DataFrame, list[np.ndarray]]:
    """Find copies; return them, with what is to become of them, and the pixels of the first pairs."""
    images = _mapped(path, table)
    first = originals(table["sha256"].tolist(), table["hash"].to_numpy(), images)
    rows = np.flatnonzero(first != np.arange(len(first)))
    copy, original = table.iloc[rows].reset_index(), table.iloc[first[rows]].reset_index()
    kinds = np.where(copy["sha256"] == original["sha256"], "exact", "near")
    values = copy["name"], original["name"], kinds, copy["split"], original["split"], drop
    frame = pd.DataFrame(dict(zip(COPY_COLUMNS, values, strict=True))).astype({"dropped": bool})
    return frame, [images[[first[row], row]] for row in rows[: report.MOST_PAIRS]]


def _keep(path: Path, rows: np.ndarray, count: int, target: Target) -> None:
    """Leave only some rows of the packed file's `count`, in their ascending order."""
    moved = np.flatnonzero(rows != np.arange(len(rows)))
    if len(moved):
        images = np.lib.format.open_memmap(path, "r+")
        for start in range(moved[0], len(rows), 256):
            # Never ahead of what is read: a row moves down or stays.
            part = rows[start : start + 256]
            images[start : start + len(part)] = images[part]
        del images  # which writes it back
    if len(rows) < count:
        _write_header(path, len(rows), target)


def _mapped(path: Path, table: pd.DataFrame) -> np.ndarray:
    """Map the images for reading and writing; an empty file cannot be."""
    return np.lib.format.open_memmap(path, "r+") if len(table) else np.load(path)


def _write_header(path: Path, count: int, target: Target) -> int:
    """Make a file an npy file of uint8 count×H×W×C, whose pixels stay what they were; return their place.

    NumPy leaves room in the header for any count, so that it is always as long.
    """
    shape = (count, target.resolution, target.resolution, target.channels)
    header = {"descr": "|u1", "fortran_order": False, "shape": shape}
    with open(path, "rb+" if path.exists() else "wb") as file:
        np.lib.format.write_array_header_1_0(file, header)
        start = file.tell()
        file.truncate(start + math.prod(shape))
    return start


def _members(archive: zipfile.ZipFile, points: dict[str, tuple[float, ...]]) -> list[Member]:
    members = archive.infolist()
    if any(member.compress_type != zipfile.ZIP_STORED for member in members):
        raise UserError(f"{archive.filename}: not as fetch writes it; run the fetch stage again")
    # Each ends where the next one's header begins, and the last where the table of all does.
    ends = [*(m.header_offset for m in members[1:]), archive.start_dir]
    return [
        Member(row, end - m.file_size, m.file_size, m.CRC, points.get(m.filename))
        for row, (m, end) in enumerate(zip(members, ends, strict=True))
    ]


def _judge(found: dict[str, Any], params: Preprocess) -> None:
    where = "see stages/preprocess/rejected.csv"
    common = ", ".join(
        f"{count:,} {reason}" for reason, count in list(found["rejected_by_reason"].items())[:3]
    )
    if not found["accepted"]:
        raise UserError(f"preprocess: none of {found['read']:,} files can be used ({common}); {where}")
    # Copies are left out where that was asked for: nothing is wrong with them.
    bad = found["rejected"] - found["copies"]["dropped"]
    if bad / found["read"] > params.max_rejected:
        raise UserError(
            f"preprocess.max_rejected: {bad:,} of {found['read']:,} files ({bad / found['read']:.1%}) were "
            f"rejected, more than {params.max_rejected:.1%} ({common}); {where}; mend the source or raise it"
        )
    if not found["train"]:
        raise UserError(
            f"preprocess: none of {found['accepted']:,} images is left to train on with "
            f"preprocess.held_out={params.held_out}; lower it or add pictures"
        )
