"""Stage fetch: from a source's files to images.zip, its tables of facts, and source.json."""

import hashlib
import json
import logging
import sys
import warnings
import zipfile
from collections.abc import Iterable
from io import BytesIO
from itertools import zip_longest
from pathlib import Path
from typing import IO, Any
from urllib.parse import urlsplit

import pandas as pd
from PIL import Image

from ganpipe.common import files
from ganpipe.common.errors import UserError, without_secrets
from ganpipe.common.progress import Progress
from ganpipe.common.stages import stage_file
from ganpipe.fetch.archives import BLOCK, NamedFiles
from ganpipe.fetch.catalogue import SOURCES, Source
from ganpipe.fetch.download import Remote, cached
from ganpipe.fetch.labels import Labels
from ganpipe.fetch.landmarks import Points
from ganpipe.fetch.paths import PLACEHOLDER, copy_advice, path_problem
from ganpipe.params import Fetch

MANIFEST_COLUMNS = ["name", "bytes", "sha256", "width", "height", "mode"]
# Without a handler Python prints Pillow's log messages about damaged files into the progress bar.
logging.getLogger("PIL").addHandler(logging.NullHandler())


def fetch(params: Fetch, root: Path, offline: bool = False) -> None:
    """Copy every file of the source into one archive and describe each.

    Writes images.zip, manifest.csv, landmarks.csv, labels.csv and source.json; see stages/fetch/README.md.
    The same files always give the same bytes.

    Raises:
        UserError: the path does not fit the source, is missing, damaged or empty; a set cannot be downloaded,
            because the network is disabled (`offline`) or fails.
    """
    if problem := path_problem(params, root):
        raise UserError(problem)
    if advice := copy_advice(params.path, root):
        print(f"warning: fetch.path: {params.path}: {advice}", file=sys.stderr)
    source = SOURCES[params.source]
    paths = _source_paths(params, source, root, offline)
    read = [_file_facts(path, params.sha256) for path in paths if path.is_file()]
    with source.layout(paths) as (pictures, points, listed):
        if not pictures:
            origin = params.url or params.path
            raise UserError(f"fetch.source={source.name}: {origin} contains no files, except hidden ones")
        if source.published not in (None, len(pictures)):  # no error: a part of a set is often used
            counts = f"{len(pictures):,} of {source.published:,}"
            print(f"fetch: {source.name}: {counts} published pictures", file=sys.stderr)
        with files.whole(stage_file(root, "images.zip")) as temporary:
            manifest = _pack(sorted(pictures, key=lambda pair: pair[0]), temporary)
    tables = {"manifest.csv": manifest, "landmarks.csv": _landmarks(points, manifest["name"])}
    tables["labels.csv"] = _labels(listed, manifest["name"])
    texts = {name: table.to_csv(index=False) for name, table in tables.items()}
    name = paths[0].name if paths else source.package
    sha256 = hashlib.sha256(texts["manifest.csv"].encode()).hexdigest()
    whole = {"name": name, "bytes": int(manifest["bytes"].sum()), "sha256": sha256}
    facts = {
        "name": source.name,
        "licence": source.licence,
        "cite": source.cite,
        "address": without_secrets(params.url or source.page or "") or None,
        "files": len(manifest),
        "published": source.published,
        "read": read or [whole],
    }
    texts["source.json"] = json.dumps(facts, indent=2, ensure_ascii=False) + "\n"
    for name, text in texts.items():
        with files.whole(stage_file(root, name)) as temporary:
            temporary.write_text(text, encoding="utf-8")


def _file_facts(path: Path, expected: str | None) -> dict[str, Any]:
    """Return the name, bytes and sha256 of a file; refuse one that has not the expected sha256, if any."""
    sha256 = files.sha256(path)
    if expected not in (None, sha256):
        raise UserError(f"fetch.sha256: {path} has the sha256 {sha256}, not {expected}; get a new copy")
    return {"name": path.name, "bytes": path.stat().st_size, "sha256": sha256}


def _landmarks(points: Points, names: Iterable[str]) -> pd.DataFrame:
    """Return the table of landmarks, with a row for each picture that has any."""
    rows = {name: points[name] for name in names if name in points}
    if others := len(points) - len(rows):
        print(f"fetch: left out landmarks of {others:,} pictures that are missing", file=sys.stderr)
    columns = {f"{'xy'[i % 2]}{i // 2 + 1}": c for i, c in enumerate(zip_longest(*rows.values()))}
    return pd.DataFrame(columns, index=list(rows), dtype=float).rename_axis("name").reset_index()


def _labels(listed: Labels, names: Iterable[str]) -> pd.DataFrame:
    """Return the table of classes: that which a table lists for a picture, else the name of its folder."""
    labels = {name: listed.get(name) or "/".join(name.split("/")[-2:-1]) for name in names}
    if absent := sorted(listed.keys() - labels.keys()):
        text = f"left out the classes of {len(absent):,} pictures that are missing, such as {absent[0]}"
        print(f"fetch: {text}; correct the names in labels.csv if they are misspelt", file=sys.stderr)
    return pd.DataFrame([pair for pair in labels.items() if pair[1]], columns=["name", "class"])


def _pack(pictures: NamedFiles, target: Path) -> pd.DataFrame:
    """Write the archive; return the manifest."""
    rows: list[tuple[object, ...]] = []
    with Progress("fetch", len(pictures)) as progress, zipfile.ZipFile(target, "w") as archive:
        for name, opener in pictures:
            info = zipfile.ZipInfo(name)  # dated 1980-01-01, so that times do not change the bytes
            info.create_system, info.external_attr = 3, 0o644 << 16
            digest = hashlib.sha256()
            with opener() as stream, archive.open(info, "w", force_zip64=True) as member:
                block = stream.read(BLOCK)
                # A large file is opened twice: its header may be at its end, and a seek would end zipfile's
                # check of the sum.
                with opener() if len(block) == BLOCK else BytesIO(block) as picture:
                    header = _header(picture)
                while block:
                    digest.update(block)
                    member.write(block)
                    block = stream.read(BLOCK)
            rows.append((name, info.file_size, digest.hexdigest(), *header))
            progress.advance()
    return pd.DataFrame(rows, columns=MANIFEST_COLUMNS).astype({"width": "Int64", "height": "Int64"})


def _header(stream: IO[bytes]) -> tuple[int | None, int | None, str]:
    """Return the width, height and mode that a picture's header gives, without decoding."""
    try:
        with warnings.catch_warnings(action="ignore"):
            image = Image.open(stream)
    except Exception:  # Pillow raises many types for odd files; preprocess reports what is wrong with each
        return None, None, ""
    return image.width, image.height, image.mode


def _source_paths(params: Fetch, source: Source, root: Path, offline: bool) -> tuple[Path, ...]:
    """Return the folders and files to read, downloaded if necessary; empty if a package has the pictures."""
    if params.path != PLACEHOLDER:
        return (root / params.path,)
    remotes = source.remotes
    if params.url is not None:
        # A name that is unique to the address, with room for a suffix.
        digest = hashlib.md5(params.url.encode(), usedforsecurity=False).hexdigest()
        name = f"{digest}-{urlsplit(params.url).path.rpartition('/')[2][-200:]}"
        remotes = (Remote(name, None, params.sha256, (params.url,)),)
        remedy = "check fetch.url, or download it by hand and set fetch.source=archive, fetch.path=<its path>"
    else:
        names = " and ".join(remote.name for remote in remotes)
        unpack = "" if len(remotes) == 1 else ", unpack them into one folder"
        remedy = f"download {names} by hand from {source.page}{unpack} and set fetch.path to its path"
    return tuple(cached(source.name, remotes, remedy, offline))
