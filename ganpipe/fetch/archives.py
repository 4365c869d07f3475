"""Files in a folder, zip or tar on disk: listed under clean names, read one by one, without harm."""

import bz2
import errno
import gzip
import lzma
import os
import re
import stat
import struct
import sys
import tarfile
import tempfile
import textwrap
import zipfile
import zlib
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, ExitStack, contextmanager
from functools import partial
from itertools import islice, pairwise
from pathlib import Path, PurePosixPath
from typing import IO, NoReturn, cast

from ganpipe.common.errors import UserError

# What an archive may hold: guards against bombs, far above any limited set of pictures (CelebA: 200,000 in
# 1.4 GB). The list takes 1.4 kB of memory a file; 200 GB are a million pictures of 200 kB.
MAX_FILES = 1_000_000
MAX_BYTES = 2 * 10**11
# Unpacked bytes for each packed byte; only held against archives that unpack to more than RATIO_FROM bytes,
# because small files of one colour compress better than that.
MAX_RATIO = 200
RATIO_FROM = 10**8
# Bytes of one header of a tar, such as a long name, read into memory at once; real ones have a few hundred.
# Python looks for a field in them in time that grows with the square of the digits in a row.
MAX_HEADER = 1 << 16
DIGITS = re.compile(rb"\d{256}")
# Memory for unpacking xz: its strongest preset needs 65 MiB, a hostile file may ask for 4 GiB.
XZ_MEMORY = 1 << 28
# Characters of a name, its end; zip allows 65,535 bytes, file systems 255 a part.
MAX_NAME = 1000
# Ways in which a zip packs its files that are read. LZMA, the only other that Python knows, takes as much
# memory as the file asks for.
ZIP_METHODS = {zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED, zipfile.ZIP_BZIP2}
ZIP_HEADER = 30  # bytes before each file, at least
ENCRYPTED = 0x1 | 0x40 | 0x2000  # flags of a zip's file: by password, strongly, with its own header
# Characters that are not shown, or turn what follows around: controls, lone surrogates, separators of lines.
UNSHOWN = re.compile("[\0-\x1f\x7f-\x9f\u2028-\u202e\u2066-\u2069\ud800-\udfff]")
# Archives in archives are not opened, so that they cannot unpack to each other without end.
NESTED = (".zip", ".tar", ".tgz", ".tar.gz", ".tbz2", ".tar.bz2", ".txz", ".tar.xz", ".7z", ".rar")

# What operating systems leave beside pictures; names that start with a dot are left out as well.
HIDDEN = {"__macosx", "thumbs.db", "desktop.ini"}

# What reading a damaged archive raises. An OSError counts where the system gave it no number, or "invalid"
# for a seek to nowhere; a full disk passes.
DAMAGE = (
    *(zipfile.BadZipFile, tarfile.TarError, EOFError, zlib.error, lzma.LZMAError),
    *(NotImplementedError, ValueError, struct.error, OSError),
)

BLOCK = 1 << 20
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
                # A tar that ends with a zip looks like a zip as well.
                kind = _tar if _starts_like_a_tar(path) or not zipfile.is_zipfile(path) else _zip
            else:  # opening a pipe would wait for ever
                raise UserError(f"fetch.path: {path} is neither a folder nor a file")
            found += stack.enter_context(kind(path))
        if nested := sum(name.lower().endswith(NESTED) for name, _ in found):
            print(
                f"fetch: {nested:,} files of {places[0]} are archives themselves, which are not opened; "
                "unpack them and name the folder",
                file=sys.stderr,
            )
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
    _report_skipped(path, skipped)
    # Sorted before names are made unique, so that nothing depends on the folder's order.
    yield _named(sorted(found, key=lambda pair: pair[0]))


@contextmanager
def _zip(path: Path) -> Iterator[list[tuple[str, Opener]]]:
    with one_line(path):
        archive = zipfile.ZipFile(path)
    with archive:
        infos = archive.infolist()
        members = [info for info in infos if not info.filename.endswith("/")]
        regular = [m for m in members if stat.S_IFMT(m.external_attr >> 16) in (0, stat.S_IFREG)]
        _check_caps(path, len(infos), sum(info.file_size for info in regular))
        if any(info.flag_bits & ENCRYPTED for info in regular):
            raise UserError(
                f"fetch.path: {path} is encrypted; unpack it with its password and name the folder"
            )
        with one_line(path):
            if others := {info.compress_type for info in regular} - ZIP_METHODS:
                raise zipfile.BadZipFile(f"packed by method {min(others)}, which is not read")
            # Several files that share one piece of data are how a small zip unpacks to petabytes.
            spans = sorted((m.header_offset, m.header_offset + ZIP_HEADER + m.compress_size) for m in infos)
            spans.append((archive.start_dir, 0))
            if any(end > start for (_, end), (start, _) in pairwise(spans)):
                raise zipfile.BadZipFile("files in it overlap")
        _report_skipped(path, len(members) - len(regular))
        yield _named([(m.filename, partial(_member, path, partial(archive.open, m))) for m in regular])


def _starts_like_a_tar(path: Path) -> bool:
    with open_file(path) as file:
        start = file.read(tarfile.BLOCKSIZE)
    return start[257:262] == b"ustar" or any(start.startswith(magic) for magic in COMPRESSIONS)


class _Headers:
    """A file of which tarfile reads no more than MAX_HEADER bytes at once."""

    def __init__(self, file: IO[bytes]) -> None:
        self.file, self.seek, self.tell = file, file.seek, file.tell

    def read(self, size: int = -1) -> bytes:
        """Read as a file does.

        Raises:
            tarfile.ReadError: a header is longer than a real one, or would take for ever to read.
        """
        if not 0 <= size <= MAX_HEADER:
            raise tarfile.ReadError(f"a header of {size:,} bytes")
        data = self.file.read(size)
        if size > tarfile.BLOCKSIZE and DIGITS.search(data):
            raise tarfile.ReadError("a header of digits")
        return data


@contextmanager
def _tar(path: Path) -> Iterator[list[tuple[str, Opener]]]:
    with _decompressed(path) as plain:
        members: list[tarfile.TarInfo] = []
        last = 0
        with one_line(path):
            archive = tarfile.open(fileobj=cast(IO[bytes], _Headers(plain)), mode="r:")
            for info in islice(archive, MAX_FILES + 1):
                # A length below zero would lead back, and round for ever.
                if info.size < 0 or info.offset_data <= last:
                    raise tarfile.ReadError("a file that starts before the one above it")
                last = info.offset_data
                members.append(info)
            regular = [info for info in members if info.isreg() and not info.issparse()]
            _check_caps(path, len(members), sum(info.size for info in regular))
            # tarfile takes a damaged header for the end; the true end is empty blocks, or the file's.
            plain.seek(archive.offset)
            if plain.read(tarfile.BLOCKSIZE).strip(b"\0"):
                raise tarfile.ReadError("damaged header")
        archive.fileobj = plain
        # extractfile gives None for what is no regular file only.
        extract = cast(Callable[[tarfile.TarInfo], IO[bytes]], archive.extractfile)
        _report_skipped(path, sum(not info.isdir() for info in members) - len(regular))
        yield _named([(m.name, partial(_member, path, partial(extract, m))) for m in regular])


def _xz(path: Path) -> Iterator[bytes]:
    """Unpack xz within XZ_MEMORY, one stream after the other."""
    with open(path, "rb") as file:
        data = file.read(BLOCK)
        while data:
            stream = lzma.LZMADecompressor(lzma.FORMAT_XZ, XZ_MEMORY)
            while not stream.eof:
                if not data and stream.needs_input:
                    raise EOFError("the end is missing")
                yield stream.decompress(data, BLOCK)
                data = file.read(BLOCK) if stream.needs_input and not stream.eof else b""
            # Streams are padded by zeros.
            data = stream.unused_data.lstrip(b"\0") or file.read(BLOCK).lstrip(b"\0")


def _blocks(unpack: type[gzip.GzipFile | bz2.BZ2File], path: Path) -> Iterator[bytes]:
    with unpack(path) as stream:
        while block := stream.read(BLOCK):
            yield block


COMPRESSIONS: dict[bytes, Callable[[Path], Iterator[bytes]]] = {
    b"\x1f\x8b": partial(_blocks, gzip.GzipFile),
    b"BZh": partial(_blocks, bz2.BZ2File),
    b"\xfd7zXZ": _xz,
}


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
            with one_line(path):
                for block in unpack(path):
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
            f"({type(error).__name__}: {textwrap.shorten(str(error), 200)}); "
            "delete it and get it anew, or name a folder of pictures"
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
    numbers: dict[str, int] = {}  # the last of each name, so that a million equal ones take no longer
    named = []
    for name, opener in found:
        parts = clean_name(name)
        if any(part.startswith(".") or part.lower() in HIDDEN for part in parts):
            continue
        clean = unique = "/".join(parts)
        while unique in taken:
            path, number = PurePosixPath(clean), numbers.get(clean, 1) + 1
            unique = str(path.with_name(f"{path.stem}-{number}{path.suffix}"))
            numbers[clean] = number
        taken.add(unique)
        named.append((unique, opener))
    return named


def clean_name(name: str) -> list[str]:
    """Split a file's name into parts without root, drive, "." and ".."; what is not shown becomes "_"."""
    text = UNSHOWN.sub("_", name.replace("\\", "/"))[-MAX_NAME:]
    parts = [part for part in text.split("/") if part not in ("", ".", "..")]
    if parts and len(parts[0]) == 2 and parts[0][1] == ":":
        parts = parts[1:]
    return parts or ["unnamed"]


def _report_skipped(path: Path, count: int) -> None:
    if count:
        print(
            f"fetch: {path}: left out {count:,} links to folders, broken links, devices or sparse files",
            file=sys.stderr,
        )
