"""Files in a folder, zip or tar: listed under clean names and read one by one, safe from hostile archives."""

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
from collections import defaultdict
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, ExitStack, contextmanager
from functools import partial
from itertools import count, islice, pairwise
from pathlib import Path, PurePosixPath
from typing import IO, NoReturn, cast

from ganpipe.common.errors import UserError
from ganpipe.common.files import temporary_space

# Limits against archives that unpack to fill the disk (bombs), far above any limited set of pictures (CelebA:
# 200,000 in 1.4 GB). The list takes 1.4 kB of memory a file; 200 GB are a million pictures of 200 kB.
MAX_FILES = 1_000_000
MAX_BYTES = 2 * 10**11
# Unpacked bytes for each packed byte. Applies above RATIO_FROM unpacked bytes, because small files of one
# colour compress better than that.
MAX_RATIO = 200
RATIO_FROM = 10**8
# Bytes of a tar's header, such as a long name, which tarfile reads into memory at once; real ones have a few
# hundred. The time in which tarfile parses a header grows with the square of the digits in a row.
MAX_HEADER = 1 << 16
DIGITS = re.compile(rb"\d{256}")
XZ_MEMORY = 1 << 28  # for unpacking xz: its strongest preset needs 65 MiB, a hostile file may ask for 4 GiB
# Characters of a name, counted from its end; zip allows 65,535 bytes, file systems 255 a part.
MAX_NAME = 1000
# Compression methods of a zip that are read. LZMA, the only other one that Python knows, takes as much memory
# as the file asks for.
ZIP_METHODS = {zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED, zipfile.ZIP_BZIP2}
ZIP_HEADER = 30  # bytes before each file, at least
ENCRYPTED = 0x1 | 0x40 | 0x2000  # flags of a zip's file: password, strong encryption, encrypted directory
# Characters that are invisible or reverse the text after them: controls, lone surrogates, line separators.
INVISIBLE = re.compile("[\0-\x1f\x7f-\x9f\u2028-\u202e\u2066-\u2069\ud800-\udfff]")
# Archives inside archives are not opened, so that they cannot unpack to each other endlessly.
NESTED = (".zip", ".tar", ".tgz", ".tar.gz", ".tbz2", ".tar.bz2", ".txz", ".tar.xz", ".7z", ".rar")
# Files of operating systems beside pictures; names that start with a dot are left out as well.
HIDDEN = {"__macosx", "thumbs.db", "desktop.ini"}
# Exceptions that a damaged archive raises. An OSError counts if it has no errno, or EINVAL, as a seek to a
# negative offset raises; others, such as a full disk, do not.
DAMAGE = (
    *(zipfile.BadZipFile, tarfile.TarError, EOFError, zlib.error, lzma.LZMAError),
    *(NotImplementedError, ValueError, struct.error, OSError),
)
BLOCK = 1 << 20

Opener = Callable[[], AbstractContextManager[IO[bytes]]]
NamedFiles = list[tuple[str, Opener]]
Unpack = Callable[[Path], Iterator[bytes]]


@contextmanager
def listing(*paths: Path) -> Iterator[NamedFiles]:
    """List the visible files in folders, zips or tars, at any depth, while the context is open.

    Names are clean and unique within each path; each comes with a function that opens the file for reading.
    Links to files are followed wherever they point, because `dvc add` and people who pick a subset make such
    links; links to folders are not. Of an archive only regular files are read; none is unpacked to a path.

    Raises UserError: a path cannot be read; also from an opener.
    """
    with ExitStack() as stack:
        files: NamedFiles = []
        for path in paths:
            if path.is_dir():
                kind = _folder
            elif path.is_file():
                with open_file(path) as file:
                    head = file.read(tarfile.BLOCKSIZE)
                unpack = next((COMPRESSIONS[magic] for magic in COMPRESSIONS if head.startswith(magic)), None)
                # A tar whose last file is a zip looks like a zip as well.
                is_tar = unpack or head[257:262] == b"ustar" or not zipfile.is_zipfile(path)
                kind = partial(_tar, unpack) if is_tar else _zip
            else:  # opening a pipe would never return
                raise UserError(f"{path}: found neither a folder nor a file; expected a folder, zip or tar")
            files += _cleaned(stack.enter_context(kind(path)))
        if nested := sum(name.lower().endswith(NESTED) for name, _ in files):
            advice = "which are not opened; unpack them and name the folder instead"
            print(f"{paths[0]}: {nested:,} files are archives, {advice}", file=sys.stderr)
        yield files


@contextmanager
def _folder(path: Path) -> Iterator[NamedFiles]:
    files: list[Path] = []
    for parent, folders, names in os.walk(path, onerror=_refuse_unreadable):
        links = [name for name in folders if Path(parent, name).is_symlink()]
        files += [Path(parent, name) for name in (*names, *links)]
    # Sorted before names are made unique, so that no name depends on the order of the folder. Bytes in names
    # that are not UTF-8 become replacement characters.
    files.sort(key=os.fsencode)
    named = [(os.fsencode(file.relative_to(path)).decode(errors="replace"), file) for file in files]
    _report_skipped(path, [name for name, file in named if not file.is_file()])
    yield [(name, partial(open_file, file)) for name, file in named if file.is_file()]


@contextmanager
def _zip(path: Path) -> Iterator[NamedFiles]:
    with refuse_damage(path):
        archive = zipfile.ZipFile(path)
    with archive:
        infos = archive.infolist()
        members = [info for info in infos if not info.filename.endswith("/")]
        types = {m: stat.S_IFMT(m.external_attr >> 16) for m in members}  # 0: not stated
        regular = [m for m in members if types[m] in (0, stat.S_IFREG)]
        _refuse_bomb(path, len(infos), sum(info.file_size for info in regular))
        if any(info.flag_bits & ENCRYPTED for info in regular):
            raise UserError(f"{path}: encrypted; unpack it and name the folder instead")
        with refuse_damage(path):
            if others := {info.compress_type for info in regular} - ZIP_METHODS:
                raise zipfile.BadZipFile(f"compression method {min(others)} is not supported")
            # If files could share their bytes, a small zip could unpack to petabytes.
            spans = sorted((m.header_offset, m.header_offset + ZIP_HEADER + m.compress_size) for m in infos)
            spans.append((archive.start_dir, 0))
            if any(end > start for (_, end), (start, _) in pairwise(spans)):
                raise zipfile.BadZipFile("files in it overlap")
        _report_skipped(path, [m.filename for m in members if types[m] not in (0, stat.S_IFREG)])
        yield [(m.filename, partial(_member, path, partial(archive.open, m))) for m in regular]


class _LimitedHeaders:
    """A file from which tarfile reads no header that is longer than real ones or takes too long to parse."""

    def __init__(self, file: IO[bytes]) -> None:
        self.file, self.seek, self.tell = file, file.seek, file.tell

    def read(self, size: int = -1) -> bytes:
        if not 0 <= size <= MAX_HEADER:
            raise tarfile.ReadError(f"a header of {size:,} bytes")
        data = self.file.read(size)
        if size > tarfile.BLOCKSIZE and DIGITS.search(data):
            raise tarfile.ReadError("a header of digits")
        return data


@contextmanager
def _tar(unpack: Unpack | None, path: Path) -> Iterator[NamedFiles]:
    with open(path, "rb") if unpack is None else _unpacked(path, unpack) as plain:
        members: list[tarfile.TarInfo] = []
        with refuse_damage(path):
            archive = tarfile.open(fileobj=cast(IO[bytes], _LimitedHeaders(plain)), mode="r:")
            for info in islice(archive, MAX_FILES + 1):
                # A negative size would lead back to an earlier file, in an endless loop.
                if info.size < 0 or (members and info.offset_data <= members[-1].offset_data):
                    raise tarfile.ReadError("a file that starts before the previous one")
                members.append(info)
            regular = [m for m in members if m.isreg() and not m.issparse()]
            _refuse_bomb(path, len(members), sum(info.size for info in regular))
            # tarfile takes a damaged header for the end; the true end is an empty block or the file's end.
            plain.seek(archive.offset)
            if plain.read(tarfile.BLOCKSIZE).strip(b"\0"):
                raise tarfile.ReadError("damaged header")
        archive.fileobj = plain
        # extractfile returns None only for what is not a regular file.
        extract = cast(Callable[[tarfile.TarInfo], IO[bytes]], archive.extractfile)
        _report_skipped(path, [m.name for m in members if not m.isdir() and (not m.isreg() or m.issparse())])
        yield [(m.name, partial(_member, path, partial(extract, m))) for m in regular]


def _xz(path: Path) -> Iterator[bytes]:
    """Unpack the streams of an xz file within XZ_MEMORY."""
    with open(path, "rb") as file:
        data = file.read(BLOCK)
        while data:
            stream = lzma.LZMADecompressor(lzma.FORMAT_XZ, XZ_MEMORY)
            while not stream.eof:
                if not data and stream.needs_input:
                    raise EOFError("the end is missing")
                yield stream.decompress(data, BLOCK)
                data = file.read(BLOCK) if stream.needs_input and not stream.eof else b""
            # Zeros pad the space between streams.
            data = stream.unused_data.lstrip(b"\0") or file.read(BLOCK).lstrip(b"\0")


def _blocks(unpack: type[gzip.GzipFile | bz2.BZ2File], path: Path) -> Iterator[bytes]:
    with unpack(path) as stream:
        yield from iter(partial(stream.read, BLOCK), b"")


# First bytes of a compressed tar → a function that yields its unpacked blocks.
COMPRESSIONS: dict[bytes, Unpack] = {
    b"\x1f\x8b": partial(_blocks, gzip.GzipFile),
    b"BZh": partial(_blocks, bz2.BZ2File),
    b"\xfd7zXZ": _xz,
}


@contextmanager
def _unpacked(path: Path, unpack: Unpack) -> Iterator[IO[bytes]]:
    """Unpack a compressed tar to a nameless temporary file, so that it can be read in any order."""
    with temporary_space(), tempfile.TemporaryFile() as plain:
        with refuse_damage(path):
            for block in unpack(path):
                plain.write(block)
                _refuse_bomb(path, 0, plain.tell())
        plain.seek(0)
        yield plain


def _refuse_bomb(path: Path, files: int, size: int) -> None:
    packed = max(path.stat().st_size, 1)
    if files > MAX_FILES:
        raise UserError(f"{path}: more than {MAX_FILES:,} files; refused as a bomb")
    if size > MAX_BYTES or (size > RATIO_FROM and size > MAX_RATIO * packed):
        raise UserError(
            f"{path}: {packed:,} bytes unpack to {size:,} or more, over the limit of {MAX_RATIO}-fold or "
            f"{MAX_BYTES:,}; refused as a bomb (if you trust it, unpack it and name the folder)"
        )


@contextmanager
def _member(path: Path, open_it: Callable[[], IO[bytes]]) -> Iterator[IO[bytes]]:
    with refuse_damage(path), open_it() as stream:
        yield stream


@contextmanager
def refuse_damage(path: object, expected: str = "a folder, zip or tar") -> Iterator[None]:
    """Turn the exceptions that a damaged archive raises into a UserError about the path."""
    try:
        yield
    except DAMAGE as error:
        if isinstance(error, OSError) and error.errno not in (None, errno.EINVAL):
            raise
        reason = f"{type(error).__name__}: {textwrap.shorten(str(error), 200)}"
        problem = f"damaged, or not {expected} ({reason})"
        raise UserError(f"{path}: {problem}; get a new copy, or name a folder of pictures") from None


def open_file(path: Path) -> IO[bytes]:
    """Open a file for reading; a UserError names one that cannot be read."""
    try:
        return open(path, "rb")
    except OSError as error:
        _refuse_unreadable(error)


def _refuse_unreadable(error: OSError) -> NoReturn:
    raise UserError(f"{error.filename}: cannot be read: {error.strerror}") from None


def _cleaned(files: NamedFiles) -> NamedFiles:
    """Clean names, leave hidden files out, make names unique by a number before the suffix."""
    cleaned: dict[str, Opener] = {}
    # The next number of each name, so that equal names take linear time.
    numbers: dict[str, Iterator[int]] = defaultdict(lambda: count(2))
    for name, opener in files:
        parts = clean_name(name)
        if any(part.startswith(".") or part.lower() in HIDDEN for part in parts):
            continue
        clean = unique = "/".join(parts)
        while unique in cleaned:
            path = PurePosixPath(clean)
            unique = str(path.with_name(f"{path.stem}-{next(numbers[clean])}{path.suffix}"))
        cleaned[unique] = opener
    return list(cleaned.items())


def clean_name(name: str) -> list[str]:
    """Split a file's name into parts without root, drive, "." and ".."; invisible characters become "_"."""
    text = INVISIBLE.sub("_", name.replace("\\", "/"))[-MAX_NAME:]
    parts = [part for part in text.split("/") if part not in ("", ".", "..")]
    if parts and len(parts[0]) == 2 and parts[0][1] == ":":
        parts = parts[1:]
    return parts or ["unnamed"]


def _report_skipped(path: Path, names: list[str]) -> None:
    if names:
        shown = ", ".join("/".join(clean_name(name)) for name in names[:3]) + ", …" * (len(names) > 3)
        text = f"links to folders, broken links, pipes, devices or sparse files: {shown}"
        print(f"{path}: left out {len(names):,} {text}", file=sys.stderr)
