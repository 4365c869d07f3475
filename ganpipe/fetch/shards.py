"""Layouts of sets in shards: the tars of WebDataset, and Parquet tables with a column of pictures.

A picture's name begins with its shard's, so that shards are read one after the other, and has no folder but
that in a tar, because a folder would be its class.
"""

import json
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from functools import lru_cache, partial
from io import BytesIO
from pathlib import Path
from typing import IO, Any

from ganpipe.common.errors import UserError
from ganpipe.fetch.archives import MAX_FILES, NamedFiles, listing, refuse_damage
from ganpipe.fetch.labels import Labels
from ganpipe.fetch.layouts import Contents, Layout

TARS = (".tar", ".tar.gz", ".tgz", ".tar.bz2", ".tar.xz")
PICTURES = {"jpg", "jpeg", "png", "webp", "bmp", "gif", "tif", "tiff", "ppm", "pgm", "avif", "heic"}
# Bytes of a row group's pictures, which are in memory at once.
MAX_GROUP = 4 * 10**9
MAX_CLASS = 200  # bytes of a class's name


@contextmanager
def webdataset(paths: tuple[Path, ...]) -> Iterator[Contents]:
    """List the pictures "<key>.<suffix>" in the tars at the paths, which are tars or folders of them.

    As in WebDataset, a file's key ends at the first dot of its name. <key>.cls has the picture's class, if it
    has one; other files, as <key>.json, are left out. Names are "<folder in the tar>/<tar>-<file>".
    """
    pictures: NamedFiles = []
    labels: Labels = {}
    with ExitStack() as stack:
        for shard, name in _shards(paths, TARS):
            classes, keys = {}, {}
            for file, opener in stack.enter_context(listing(shard)):
                folder, slash, base = file.rpartition("/")
                key, _, suffix = base.partition(".")
                if suffix.lower() in PICTURES:
                    pictures.append((f"{folder}{slash}{name}-{base}", opener))
                    keys[pictures[-1][0]] = folder, key
                elif suffix == "cls":
                    with opener() as text:
                        classes[folder, key] = text.read(MAX_CLASS).decode(errors="replace").strip()
            labels |= {picture: classes[key] for picture, key in keys.items() if key in classes}
        yield Contents(pictures, {}, labels)


@contextmanager
def parquet(paths: tuple[Path, ...]) -> Iterator[Contents]:
    """List the pictures in Parquet files, "<file>-<row>", as Hugging Face's data sets hold them.

    The first column of bytes, or of records with a field `bytes`, has the pictures' files. A row without one
    is an empty file, which preprocess rejects. The column `label`, if any, has the classes.
    """
    from pyarrow import parquet as tables

    pictures: NamedFiles = []
    labels: Labels = {}
    for shard, name in _shards(paths, (".parquet",)):
        with refuse_damage(shard, "a Parquet file"), tables.ParquetFile(shard) as table:
            column = _column(shard, table.schema_arrow)
            row, groups = 0, table.metadata
            if groups.num_rows > MAX_FILES:
                raise UserError(f"{shard}: more than {MAX_FILES:,} pictures; divide it into several files")
            for number in range(groups.num_row_groups):
                group = groups.row_group(number)
                if group.total_byte_size > MAX_GROUP:
                    size = f"row group {number} has {group.total_byte_size:,} bytes"
                    raise UserError(
                        f"{shard}: {size}, more than {MAX_GROUP:,}; write it again with smaller ones"
                    )
                for i in range(group.num_rows):
                    pictures.append((f"{name}-{row + i:08}", partial(_open, shard, column, number, i)))
                row += group.num_rows
            labels |= {f"{name}-{i:08}": label for i, label in enumerate(_classes(table)) if label}
    yield Contents(pictures, {}, labels)


def _shards(paths: tuple[Path, ...], suffixes: tuple[str, ...]) -> list[tuple[Path, str]]:
    """Return the shards at the paths, in order, each with its name without the suffix."""
    shards = []
    for path in paths:
        files = [f for f in sorted(path.rglob("*")) if f.is_file()] if path.is_dir() else [path]
        for file in files:
            suffix = next((s for s in suffixes if file.name.lower().endswith(s)), None)
            if suffix and not file.name.startswith("."):
                folder = file.relative_to(path).parent if path.is_dir() else Path()
                shards.append((file, "-".join([*folder.parts, file.name[: -len(suffix)]])))
    if not shards:
        where, known = " and ".join(map(str, paths)), ", ".join(suffixes)
        raise UserError(f"{where}: found no file that ends in {known}; name one, or a folder that has some")
    return shards


def _column(shard: Path, schema: Any) -> str:
    """Return the path of the column that has the files of the pictures."""
    from pyarrow import types

    for field in schema:
        if types.is_binary(field.type) or types.is_large_binary(field.type):
            return str(field.name)
        if types.is_struct(field.type) and field.type.get_field_index("bytes") >= 0:
            return f"{field.name}.bytes"
    known = ", ".join(f"{field.name} ({field.type})" for field in schema)
    raise UserError(f"{shard}: no column has the bytes of pictures; found {known}")


def _classes(table: Any) -> list[str]:
    """Return the class of each row by its column `label`, "" where there is none.

    Numbers become the names that Hugging Face's description of the table gives them, if there are any.
    """
    schema = table.schema_arrow
    if "label" not in schema.names:
        return []
    described = json.loads((schema.metadata or {}).get(b"huggingface", b"{}"))
    names = described.get("info", {}).get("features", {}).get("label", {}).get("names", [])
    values = table.read(["label"]).column(0).to_pylist()
    known = dict(enumerate(map(str, names)))
    return ["" if value in (None, -1) else known.get(value, str(value)) for value in values]


@lru_cache(1)
def _group(shard: Path, column: str, number: int) -> list[Any]:
    """Read the pictures of one row group."""
    from pyarrow import parquet as tables

    with tables.ParquetFile(shard) as table:
        read = table.read_row_group(number, [column])
    return (read.flatten() if "." in column else read).column(0).to_pylist()


@contextmanager
def _open(shard: Path, column: str, number: int, row: int) -> Iterator[IO[bytes]]:
    with refuse_damage(shard, "a Parquet file"):
        file = BytesIO(_group(shard, column, number)[row] or b"")
    yield file


SHARDED: dict[str, Layout] = {"webdataset": webdataset, "parquet": parquet}
