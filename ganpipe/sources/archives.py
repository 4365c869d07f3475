"""Files in a folder, zip or tar on disk: listed under clean names, read one by one, without harm."""

import bz2
import errno
import gzip
import lzma
import os
import stat
import struct
import sys
import tarfile
import tempfile
import zipfile
import zlib
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, ExitStack, contextmanager
from functools import partial
from itertools import islice
from pathlib import Path, PurePosixPath
from typing import IO, NoReturn, cast

from ganpipe.errors import UserError

# What an archive may hold. Guards against bombs, far above any real set of pictures.
MAX_FILES = 5_000_000
MAX_BYTES = 10**12
# Unpacked bytes for each packed byte; only held against archives that unpack to more than RATIO_FROM bytes,
# because small files of one colour compress better than that.
MAX_RATIO = 200
RATIO_FROM = 10**8

# What operating systems leave beside pictures; names that start with a dot are left out as well.
HIDDEN = {"__macosx", "thumbs.db", "desktop.ini"}

COMPRESSIONS: dict[bytes, type[gzip.GzipFile | bz2.BZ2File | lzma.LZMAFile]] = {
    b"\x1f\x8b": gzip.GzipFile,
    b"BZh": bz2.BZ2File,
    b"\xfd7zXZ": lzma.LZMAFile,
}
# What reading a damaged archive raises. An OSError counts where the system gave it no number, or "invalid"
# for a seek to nowhere; a full disk passes.
DAMAGE = (
    *(zipfile.BadZipFile, tarfile.TarError, EOFError, zlib.error, lzma.LZMAError),
    *(NotImplementedError, ValueError, struct.error, OSError),
)

Opener = Callable[[], AbstractContextManager[IO[bytes]]]


@contextmanager
def listing(*places: Path) -> Iterator[list[tuple[str, Opener]]]:
    """List the visible files below folders, or in zips or tars, at any depth, while the context is open.

    Names are clean and unique in each place, and come with how to open each for reading. Links to files are
    followed wherever they point, because `dvc add` and people who pick a subset make such links; links to
    folders are not. Of an archive only regular files are read, and none is unpacked to a path.

    Raises:
        UserError: a place cannot be read; also from an opener.
    """
    with ExitStack() as stack:
        found = []
        for path in places:
            if path.is_dir():
                kind = _folder
            elif path.is_file():
                kind = _zip if zipfile.is_zipfile(path) else _tar
            else:  # opening a pipe would wait for ever
                raise UserError(f"fetch.path: {path} is neither a folder nor a file")
            found += stack.enter_context(kind(path))
        yield found


@contextmanager
def _folder(path: Path) -> Iterator[list[tuple[str, Opener]]]:
    found: list[tuple[str, Opener]] = []
    skipped = 0
    for where, folders, names in os.walk(path, onerror=_unreadable):
        here = Path(where)
        skipped += sum((here / name).is_symlink() for name in folders)
        for file in (here / name for name in names):
            if file.is_file():
                # A file's name need not be text; what is not shows as a replacement character.
                name = os.fsencode(file.relative_to(path)).decode(errors="replace")
                found.append((name, partial(open_file, file)))
            else:
                skipped += 1
    # Sorted before names are made unique, so that nothing depends on the folder's order.
    yield _named(sorted(found, key=lambda pair: pair[0]))
    _report_skipped(path, skipped)


@contextmanager
def _zip(path: Path) -> Iterator[list[tuple[str, Opener]]]:
    with one_line(path):
        archive = zipfile.ZipFile(path)
    with archive:
        members = [info for info in archive.infolist() if not info.is_dir()]
        regular = [m for m in members if stat.S_IFMT(m.external_attr >> 16) in (0, stat.S_IFREG)]
        _check_caps(path, len(regular), sum(info.file_size for info in regular))
        if any(info.flag_bits & 1 for info in regular):
            raise UserError(
                f"fetch.path: {path} is encrypted; unpack it with its password and name the folder"
            )
        yield _named([(m.filename, partial(_member, path, partial(archive.open, m))) for m in regular])
        _report_skipped(path, len(members) - len(regular))


@contextmanager
def _tar(path: Path) -> Iterator[list[tuple[str, Opener]]]:
    with _decompressed(path) as plain:
        with one_line(path):
            archive = tarfile.open(fileobj=plain, mode="r:")
            members = [info for info in islice(archive, MAX_FILES + 1) if not info.isdir()]
            # tarfile takes a damaged header for the end; the true end is empty blocks, or the file's.
            plain.seek(archive.offset)
            if plain.read(tarfile.BLOCKSIZE).strip(b"\0") and len(members) <= MAX_FILES:
                raise tarfile.ReadError("damaged header")
        regular = [info for info in members if info.isreg()]
        _check_caps(path, len(members), sum(info.size for info in regular))
        # extractfile gives None for what is no regular file only.
        extract = cast(Callable[[tarfile.TarInfo], IO[bytes]], archive.extractfile)
        yield _named([(m.name, partial(_member, path, partial(extract, m))) for m in regular])
        _report_skipped(path, len(members) - len(regular))


@contextmanager
def _decompressed(path: Path) -> Iterator[IO[bytes]]:
    """Open a tar for reading in any order; a compressed one by way of a nameless temporary file."""
    with open(path, "rb") as file:
        start = file.read(8)
        file.seek(0)
        unpack = next((unpack for magic, unpack in COMPRESSIONS.items() if start.startswith(magic)), None)
        if unpack is None:
            yield file
            return
        with tempfile.TemporaryFile() as plain:
            with one_line(path), unpack(path) as stream:
                while block := stream.read(1 << 20):
                    plain.write(block)
                    _check_caps(path, 0, plain.tell())
            plain.seek(0)
            yield plain


def _check_caps(path: Path, count: int, size: int) -> None:
    packed = max(path.stat().st_size, 1)
    if count > MAX_FILES:
        raise UserError(f"fetch.path: {path} holds more than {MAX_FILES:,} files; refused as a bomb")
    if size > MAX_BYTES or (size > RATIO_FROM and size > MAX_RATIO * packed):
        raise UserError(
            f"fetch.path: {path} has {packed:,} bytes and unpacks to {size:,} or more, over the limit of "
            f"{MAX_RATIO}-fold or {MAX_BYTES:,}; refused as a bomb (if it is none, unpack it yourself)"
        )


@contextmanager
def _member(path: Path, open_it: Callable[[], IO[bytes]]) -> Iterator[IO[bytes]]:
    with one_line(path), open_it() as stream:
        yield stream


@contextmanager
def one_line(place: object) -> Iterator[None]:
    """Turn what a damaged archive raises into a UserError."""
    try:
        yield
    except DAMAGE as error:
        if isinstance(error, OSError) and error.errno not in (None, errno.EINVAL):
            raise
        raise UserError(
            f"fetch.path: {place} is no folder, zip or tar that can be read, or is damaged "
            f"({type(error).__name__}: {error}); fetch it anew or name a folder of pictures"
        ) from None


def open_file(path: Path) -> IO[bytes]:
    """Open a file on disk; a UserError names one that cannot be read."""
    try:
        return open(path, "rb")
    except OSError as error:
        _unreadable(error)


def _unreadable(error: OSError) -> NoReturn:
    raise UserError(f"fetch.path: {error.filename} cannot be read: {error.strerror}") from None


def _named(found: list[tuple[str, Opener]]) -> list[tuple[str, Opener]]:
    """Clean names, leave hidden files out, make names unique by a number before the suffix."""
    taken: set[str] = set()
    named = []
    for name, opener in found:
        parts = clean_name(name)
        if any(part.startswith(".") or part.lower() in HIDDEN for part in parts):
            continue
        path = PurePosixPath(*parts)
        unique, number = str(path), 1
        while unique in taken:
            number += 1
            unique = str(path.with_name(f"{path.stem}-{number}{path.suffix}"))
        taken.add(unique)
        named.append((unique, opener))
    return named


def clean_name(name: str) -> list[str]:
    """Split a file's name into parts without root, drive, "." and ".."; control characters become "_"."""
    text = "".join("_" if ord(c) < 32 or ord(c) == 127 else c for c in name.replace("\\", "/"))
    parts = [part for part in text.split("/") if part not in ("", ".", "..")]
    if parts and len(parts[0]) == 2 and parts[0][1] == ":":
        parts = parts[1:]
    return parts or ["unnamed"]


def _report_skipped(path: Path, count: int) -> None:
    if count:
        print(f"fetch: {path}: left out {count:,} links to folders, broken links or devices", file=sys.stderr)
