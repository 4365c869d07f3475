"""Read what the fetch stage wrote: the archive's table of members, the manifest, landmarks and source."""

import json
import zipfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pandas as pd

from ganpipe.common.errors import UserError
from ganpipe.common.stages import stage_file
from ganpipe.preprocess.crop import Points
from ganpipe.preprocess.prepare import Member


@dataclass(frozen=True)
class Fetched:
    """The archive (an uncompressed zip), its members, a manifest row for each, and the source's facts."""

    archive: Path
    members: list[Member]
    manifest: pd.DataFrame
    source: dict[str, Any]


def read_fetched(root: Path, with_landmarks: bool) -> Fetched:
    """Read what fetch wrote into a checkout, without the pictures themselves.

    Raises:
        UserError: it is missing or damaged, or landmarks are needed and there are none.
    """
    path = stage_file(root, "images.zip")
    try:
        manifest = _table(stage_file(root, "manifest.csv"))
        points = _landmarks(stage_file(root, "landmarks.csv")) if with_landmarks else {}
        source = json.loads(stage_file(root, "source.json").read_text(encoding="utf-8"))
        with zipfile.ZipFile(path) as archive:
            entries = archive.infolist()
            # A member's bytes end where the next header begins, the last one's where the directory does.
            ends = [*(entry.header_offset for entry in entries[1:]), archive.start_dir]
    except (OSError, ValueError, zipfile.BadZipFile) as error:
        raise UserError(f"{path.parent}: cannot be read ({error}); run the fetch stage first") from None
    stored = all(entry.compress_type == zipfile.ZIP_STORED for entry in entries)
    names = [entry.filename for entry in entries]
    if not stored or not {"name", "sha256"} <= set(manifest) or manifest["name"].tolist() != names:
        raise UserError(f"{path}: does not match manifest.csv; run the fetch stage again")
    members = [
        Member(row, end - entry.file_size, entry.file_size, entry.CRC, points.get(entry.filename))
        for row, (entry, end) in enumerate(zip(entries, ends, strict=True))
    ]
    return Fetched(path, members, manifest, source)


def _table(path: Path) -> pd.DataFrame:
    # Names stay text: pandas would turn "007" into a number and "null" into a missing value.
    return pd.read_csv(path, dtype=str, keep_default_na=False)


def _landmarks(path: Path) -> dict[str, Points]:
    table = _table(path)
    if table.empty:
        raise UserError(
            "preprocess.crop is landmarks, but the source has none; put a table landmarks.csv beside the "
            "pictures (see stages/fetch/README.md) or choose another crop"
        )
    return {name: tuple(float(value) for value in values if value) for name, *values in table.to_numpy()}
