"""Stage preprocess: images.zip -> packed images, their index, rejected files, a report and a picture."""

import json
import os
import zipfile
from collections import Counter
from functools import partial
from pathlib import Path
from typing import IO, Any

import numpy as np
import pandas as pd
from PIL import Image

from ganpipe import files, pictures
from ganpipe.crops import Target
from ganpipe.errors import UserError
from ganpipe.images import Member, prepare_member
from ganpipe.packed import IMAGES, INDEX
from ganpipe.params import Preprocess
from ganpipe.progress import Progress
from ganpipe.workers import Limits, Lost, in_order

ARCHIVE = "images.zip"
INDEX_COLUMNS = ["name", "width", "height", "left", "top", "right", "bottom", "angle", "scale", "split"]
# Files go to the workers in chunks, which end at whichever comes first; they bound the memory in use.
CHUNK_FILES = 64
CHUNK_BYTES = 1 << 22
# What one file may take of a worker, far above what any sound one does.
LIMITS = Limits(seconds=30, memory=1 << 30)
# The contact sheet: images, columns, pixels between them, most pixels a side of one.
SHEET_IMAGES, SHEET_COLUMNS, SHEET_GAP, SHEET_TILE = 64, 8, 2, 128


def preprocess(params: Preprocess, root: Path, workers: int | None = None) -> None:
    """Turn the fetched files into training images.

    Reads stages/fetch/; writes stages/preprocess/images.npy (uint8 N×H×W×C in [0, 255]), index.csv (row i is
    image i), rejected.csv, report.json and contact_sheet.png. Rows are in the order of the manifest, whatever
    `workers` is.

    Args:
        params: crop, size, channels, the share held out and the share that may be rejected.
        root: the checkout.
        workers: processes that decode; None: one for each core that this process may use.

    Raises:
        UserError: nothing was fetched; or, after everything is written, too many files were rejected, or no
            image is left to train on.
    """
    source, out = root / "stages" / "fetch", root / "stages" / "preprocess"
    target = target_of(params)
    index: list[tuple[Any, ...]] = []
    rejected: list[tuple[str, str]] = []
    with _open_fetched(source) as archive:
        manifest = _manifest(source, archive)
        names = manifest["name"].tolist()
        with files.whole(out / IMAGES) as temporary, open(temporary, "wb") as file:
            start = _write_header(file, 0, target)
            with Progress("preprocess", len(names)) as progress:
                points = _landmarks(source) if params.crop == "landmarks" else {}
                read = partial(prepare_member, archive=source / ARCHIVE, target=target)
                chunk = max(1, min(CHUNK_FILES, CHUNK_BYTES // (target.resolution**2 * target.channels)))
                members = _members(archive, points)
                results = in_order(read, members, workers or _cores(), LIMITS, chunk)
                for name, sha256, result in zip(names, manifest["sha256"], results, strict=True):
                    if isinstance(result, Lost):
                        rejected.append((name, result.reason))
                    elif isinstance(result, str):
                        rejected.append((name, result))
                    else:
                        file.write(result.pixels.tobytes())
                        split = split_of(sha256, params.held_out)
                        where = *result.crop.box, result.crop.angle, result.scale
                        index.append((name, result.width, result.height, *where, split))
                    progress.advance()
            # NumPy leaves room in the header for any count, so the true one can take the first one's place.
            file.seek(0)
            assert _write_header(file, len(index), target) == start
    table = pd.DataFrame(index, columns=INDEX_COLUMNS)
    reasons = pd.DataFrame(rejected, columns=["name", "reason"])
    for name, frame in ((INDEX, table), ("rejected.csv", reasons)):
        with files.whole(out / name) as temporary:
            frame.to_csv(temporary, index=False, lineterminator="\n")
    report = _report(table, reasons, target)
    with files.whole(out / "report.json") as temporary:
        temporary.write_text(json.dumps(report, indent=2) + "\n", encoding="utf-8")
    if index:
        with files.whole(out / "contact_sheet.png") as temporary:
            _contact_sheet(np.load(out / IMAGES, mmap_mode="r")).save(temporary, "PNG")
    _judge(report, params)


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


def _write_header(file: IO[bytes], count: int, target: Target) -> int:
    """Write the header of an npy file of uint8 count×H×W×C; return its length in bytes."""
    shape = (count, target.resolution, target.resolution, target.channels)
    header = {"descr": "|u1", "fortran_order": False, "shape": shape}
    np.lib.format.write_array_header_1_0(file, header)
    return file.tell()


def _members(archive: zipfile.ZipFile, points: dict[str, tuple[float, ...]]) -> list[Member]:
    members = archive.infolist()
    if any(member.compress_type != zipfile.ZIP_STORED for member in members):
        raise UserError(f"{archive.filename}: not as fetch writes it; run the fetch stage again")
    return [Member(m.header_offset, m.file_size, m.CRC, points.get(m.filename)) for m in members]


def _report(table: pd.DataFrame, reasons: pd.DataFrame, target: Target) -> dict[str, Any]:
    counts = sorted(Counter(reasons["reason"]).items(), key=lambda pair: (-pair[1], pair[0]))
    train = int((table["split"] == "train").sum())
    return {
        "read": len(table) + len(reasons),
        "accepted": len(table),
        "rejected": len(reasons),
        "rejected_by_reason": dict(counts),
        "train": train,
        "held_out": len(table) - train,
        "resolution": target.resolution,
        "channels": target.channels,
        "share_upscaled": float((table["scale"] > 1).mean()) if len(table) else None,
        **{name: _spread(table[name]) for name in ("scale", "width", "height")},
    }


def _spread(values: pd.Series) -> dict[str, float | None]:
    return {
        name: float(getattr(values, name)()) if len(values) else None for name in ("min", "median", "max")
    }


def _contact_sheet(images: np.ndarray) -> Image.Image:
    """Show up to SHEET_IMAGES of uint8 N×H×W×C, spread evenly, each at most SHEET_TILE pixels a side."""
    rows = np.linspace(0, len(images) - 1, min(len(images), SHEET_IMAGES)).round().astype(int)
    chosen = images[rows]
    side = images.shape[1]
    if side <= SHEET_TILE:
        # Whole multiples without smoothing: what is seen is what will be trained on.
        factor = SHEET_TILE // side
        chosen = chosen.repeat(factor, axis=1).repeat(factor, axis=2)
    else:
        tile = (SHEET_TILE, SHEET_TILE)
        shrunk = [Image.fromarray(image.squeeze()).resize(tile, Image.Resampling.LANCZOS) for image in chosen]
        chosen = np.stack([np.asarray(image).reshape(*tile, -1) for image in shrunk])
    return pictures.sheet(chosen, SHEET_COLUMNS, SHEET_GAP)


def _judge(report: dict[str, Any], params: Preprocess) -> None:
    where = "see stages/preprocess/rejected.csv"
    common = ", ".join(
        f"{count:,} {reason}" for reason, count in list(report["rejected_by_reason"].items())[:3]
    )
    if not report["accepted"]:
        raise UserError(f"preprocess: none of {report['read']:,} files can be used ({common}); {where}")
    share = report["rejected"] / report["read"]
    if share > params.max_rejected:
        raise UserError(
            f"preprocess.max_rejected: {report['rejected']:,} of {report['read']:,} files ({share:.1%}) were "
            f"rejected, more than {params.max_rejected:.1%} ({common}); {where}; mend the source or raise it"
        )
    if not report["train"]:
        raise UserError(
            f"preprocess: none of {report['accepted']:,} images is left to train on with "
            f"preprocess.held_out={params.held_out}; lower it or add pictures"
        )
