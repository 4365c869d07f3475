"""Read what the fetch stage wrote: the archive's table of members, the manifest, landmarks and source."""

import json
import zipfile
from pathlib import Path
from typing import Any, NamedTuple

import pandas as pd

from ganpipe.common.errors import UserError
from ganpipe.common.stages import stage_file
from ganpipe.preprocess.crop import Points
from ganpipe.preprocess.prepare import Member


class Fetched(NamedTuple):
    """The archive (an uncompressed zip), its members, a manifest row for each, and the source's facts."""

    archive: Path
    members: list[Member]
    manifest: pd.DataFrame
    source: dict[str, Any]


def read_fetched(root: Path, with_landmarks: bool) -> Fetched:
    """Read what fetch wrote into a checkout, without the pictures themselves.

    Raises UserError: it is missing or damaged, or landmarks are needed and there are none.
    """
    path = stage_file(root, "images.zip")
    try:
        manifest, landmarks = (
            # Names stay text: pandas would turn "007" into a number and "null" into a missing value.
            pd.read_csv(stage_file(root, name), dtype=str, keep_default_na=False)
            for name in ("manifest.csv", "landmarks.csv")
        )
        rows = landmarks.to_numpy() if with_landmarks else ()
        points: dict[str, Points] = {name: tuple(float(v) for v in values if v) for name, *values in rows}
        source = json.loads(stage_file(root, "source.json").read_text(encoding="utf-8"))
        with zipfile.ZipFile(path) as archive:
            entries = archive.infolist()
            # A member's bytes end where the next header begins, the last one's where the directory does.
            ends = [*(entry.header_offset for entry in entries[1:]), archive.start_dir]
    except (OSError, ValueError, zipfile.BadZipFile) as error:
        raise UserError(f"{path.parent}: cannot be read ({error}); run the fetch stage first") from None
    if manifest["name"].tolist() != [entry.filename for entry in entries]:
        raise UserError(f"{path}: does not match manifest.csv; run the fetch stage again")
    if with_landmarks and not points:
        raise UserError(
            "preprocess.crop is landmarks, but the source has none; put a table landmarks.csv beside the "
            "pictures (see stages/fetch/README.md) or choose another crop"
        )
    members = [
        Member(row, end - entry.file_size, entry.file_size, entry.CRC, points.get(entry.filename))
        for row, (entry, end) in enumerate(zip(entries, ends, strict=True))
    ]
    return Fetched(path, members, manifest, source)
