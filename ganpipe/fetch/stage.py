"""Stage fetch: a source's files -> images.zip, manifest.csv, landmarks.csv and source.json."""

import hashlib
import io
import json
import logging
import sys
import warnings
import zipfile
from collections.abc import Iterable
from pathlib import Path
from typing import IO

import pandas as pd
from PIL import Image

from ganpipe.common import files
from ganpipe.common.errors import UserError
from ganpipe.common.progress import Progress
from ganpipe.fetch.archives import Opener
from ganpipe.fetch.catalogue import SOURCES, Source
from ganpipe.fetch.download import Remote, cached
from ganpipe.fetch.layouts import Points
from ganpipe.fetch.paths import ADVICE, PLACEHOLDER, travels
from ganpipe.params import Fetch

COLUMNS = ["name", "bytes", "sha256", "width", "height", "mode"]
BLOCK = 1 << 20
# Without a handler Python prints what Pillow logs about damaged files into the progress bar.
logging.getLogger("PIL").addHandler(logging.NullHandler())


def fetch(params: Fetch, root: Path, offline: bool = False) -> None:
    """Copy every file of the source into one archive and describe each.

    Writes stages/fetch/images.zip (not compressed, sorted by name, without times), manifest.csv (name,
    bytes, sha256, width, height, mode; the last three are the header's, empty where Pillow cannot open the
    file), landmarks.csv (name, x1, y1, x2, y2 …, for pictures that have any) and source.json (where they come
    from). The same files give the same bytes of all.

    Args:
        params: the source and where it is.
        root: the checkout.
        offline: whether the network must be left alone.

    Raises:
        UserError: the path does not fit the source, is missing, damaged or empty; a set cannot be downloaded.
    """
    source = SOURCES[params.source]
    places = _places(params, source, root, offline)
    read = [_described(place, params.sha256) for place in places if place.is_file()]
    out = root / "stages" / "fetch"
    with source.layout(places) as contents:
        found = contents.pictures
        if not found:
            place = params.url or params.path
            raise UserError(f"fetch.source={source.name}: {place} holds no files (hidden ones do not count)")
        if source.published not in (None, len(found)):
            # No error: a part of a set is a set as well.
            print(
                f"fetch: {params.source}: {len(found):,} of {source.published:,} published", file=sys.stderr
            )
        found.sort(key=lambda pair: pair[0])
        with files.whole(out / "images.zip") as temporary:
            rows = _pack(found, temporary)
    table = pd.DataFrame(rows, columns=COLUMNS).astype({"width": "Int64", "height": "Int64"})
    with files.whole(out / "manifest.csv") as temporary:
        table.to_csv(temporary, index=False, lineterminator="\n")
    with files.whole(out / "landmarks.csv") as temporary:
        _landmarks(contents.points, table["name"]).to_csv(temporary, index=False, lineterminator="\n")
    name = places[0].name if places else source.package
    whole = {"name": name, "bytes": int(table["bytes"].sum()), "sha256": files.sha256(out / "manifest.csv")}
    facts = {
        "name": source.name,
        "licence": source.licence,
        "cite": source.cite,
        "address": params.url or source.page or None,
        "files": len(table),
        "published": source.published,
        "read": read or [whole],
    }
    with files.whole(out / "source.json") as temporary:
        temporary.write_text(json.dumps(facts, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")


def _landmarks(points: Points, names: Iterable[str]) -> pd.DataFrame:
    """Make the table of points; a picture without points has no row, and points without picture neither."""
    rows = {name: points[name] for name in names if name in points}
    if others := len(points) - len(rows):
        print(f"fetch: left out landmarks of {others:,} pictures that are not there", file=sys.stderr)
    most = max(map(len, rows.values()), default=0)
    columns = [f"{axis}{number}" for number in range(1, most // 2 + 1) for axis in "xy"]
    padded = [(name, *values, *[None] * (most - len(values))) for name, values in rows.items()]
    return pd.DataFrame(padded, columns=["name", *columns])


def _pack(found: list[tuple[str, Opener]], target: Path) -> list[tuple[object, ...]]:
    """Write the archive; return the rows of the manifest."""
    rows: list[tuple[object, ...]] = []
    with Progress("fetch", len(found)) as progress, zipfile.ZipFile(target, "w") as archive:
        for name, opener in found:
            info = zipfile.ZipInfo(name)  # 1980-01-01, so that times do not change the bytes
            info.create_system, info.external_attr = 3, 0o644 << 16
            digest, size = hashlib.sha256(), 0
            with opener() as stream:
                block = stream.read(BLOCK)
                if len(block) < BLOCK:
                    facts = _header(io.BytesIO(block))  # half the time of looking at a packed file twice
                else:
                    stream.seek(0)
                    facts = _header(stream)  # which may stand at its end
                    stream.seek(BLOCK)
                with archive.open(info, "w", force_zip64=True) as member:
                    while block:
                        digest.update(block)
                        size += len(block)
                        member.write(block)
                        block = stream.read(BLOCK)
            rows.append((name, size, digest.hexdigest(), *facts))
            progress.advance()
    return rows


def _header(stream: IO[bytes]) -> tuple[int | None, int | None, str]:
    """Return width, height and mode as the header says, without decoding."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            image = Image.open(stream)
    except Exception:  # Pillow raises many kinds on odd files; preprocess says what is wrong with each.
        return None, None, ""
    return image.width, image.height, image.mode


def _places(params: Fetch, source: Source, root: Path, offline: bool) -> tuple[Path, ...]:
    """Return the folders and files to read, downloaded where need be; none: a package has the pictures."""
    local = params.path != PLACEHOLDER
    if local and (source.package or source.name == "url"):
        kind = "comes from the web" if source.name == "url" else "is inside a package"
        raise UserError(
            f"fetch.path: found {params.path!r}, but fetch.source={source.name} {kind}; "
            f"set fetch.source=folder to use your own pictures, or fetch.path={PLACEHOLDER}"
        )
    if local:
        return (_checked_path(params, root),)
    if source.needs_path:
        raise UserError(f"fetch.source={source.name}: {source.by_hand}")
    if params.url is not None:
        import pooch

        remote = Remote(pooch.utils.unique_file_name(params.url), None, params.sha256, (params.url,))
        remedy = (
            "check fetch.url, or get the file by hand and set fetch.source=archive, fetch.path=<its path>"
        )
        return tuple(cached(source.name, [remote], remedy, offline))
    names = " and ".join(remote.name for remote in source.remotes)
    place = names if len(source.remotes) == 1 else "a folder with both, unpacked"
    remedy = f"get {names} by hand from {source.page} and set fetch.path=<path of {place}>"
    return tuple(cached(source.name, source.remotes, remedy, offline))


def _described(archive: Path, sha256: str | None) -> dict[str, object]:
    """Return a file's name, bytes and sha256, which must be the given one, if any."""
    found = files.sha256(archive)
    if sha256 not in (None, found):
        raise UserError(f"fetch.sha256: {archive} has the sha256 {found}, not {sha256}; get it anew")
    return {"name": archive.name, "bytes": archive.stat().st_size, "sha256": found}


def _checked_path(params: Fetch, root: Path) -> Path:
    """Return the folder or archive to read."""
    path = root / Path(params.path).expanduser()
    relative = not Path(params.path).expanduser().is_absolute()
    if not path.exists():
        advice = "; " + ADVICE.format(path=params.path) if relative else "; check the path"
        raise UserError(f"fetch.path: {params.path} does not exist{advice}")
    if params.source == "archive" and path.is_dir():
        raise UserError(
            f"fetch.path: {params.path} is a folder; set fetch.source=folder, or name a zip or tar"
        )
    if relative and not travels(path, root):
        print(f"warning: fetch.path: {params.path}: {ADVICE.format(path=params.path)}", file=sys.stderr)
    return path
