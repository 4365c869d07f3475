"""The files of published sets: downloaded once into a cache that all checkouts share, and checked."""

import errno
import hashlib
import os
import re
import socket
import sys
import textwrap
from dataclasses import dataclass
from pathlib import Path

from filelock import FileLock

from ganpipe.errors import UserError

# Seconds without a byte from the other side, after which it counts as out of reach.
PATIENCE = 60.0
DRIVE = re.compile(r"https://drive\.google\.com/file/d/([\w-]+)/view")
# What the user's own disk answers; everything else that goes wrong in a download is the other side's.
LOCAL_ERRORS = {errno.ENOSPC, errno.EDQUOT, errno.EACCES, errno.EPERM, errno.EROFS}


@dataclass(frozen=True)
class Published:
    """A file on the publisher's site.

    Attributes:
        name: of the file.
        md5: of its bytes, hexadecimal, as the publisher or torchvision's datasets fix it.
        addresses: each of them gives the same file; tried in this order.
    """

    name: str
    md5: str
    addresses: tuple[str, ...]


def cached(source: str, files: tuple[Published, ...], page: str) -> Path:
    """Return the cache's folder for a source after downloading what it lacks of `files`.

    The cache is the folder GANPIPE_DATA, else ganpipe/ in XDG_CACHE_HOME or ~/.cache. A file there whose md5
    is right is not downloaded again, whoever put it there; half a one is.

    Args:
        source: as in fetch.source.
        files: all that the set needs.
        page: where people find the files.

    Raises:
        UserError: a file cannot be had; says where to get it by hand and how to go on with it.
    """
    folder = _cache() / source
    if all(_is_whole(folder / file.name, file.md5) for file in files):
        return folder  # which may be read-only
    names = " and ".join(file.name for file in files)
    place = names if len(files) == 1 else "the folder that holds both"
    remedy = f"get {names} by hand from {page} and set fetch.path=<path of {place}>"
    folder.mkdir(parents=True, exist_ok=True)
    with FileLock(folder / ".lock"):  # experiments that run side by side want the same file
        for file in files:
            if not _is_whole(folder / file.name, file.md5):
                _download(source, file, folder, remedy)
    return folder


def _cache() -> Path:
    chosen = os.environ.get("GANPIPE_DATA")
    if chosen and not Path(chosen).expanduser().is_absolute():
        # A queued experiment would download everything into its own copy of the checkout.
        raise UserError(f"GANPIPE_DATA: found {chosen!r}, but it must be the absolute path of a folder")
    return Path(chosen or Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache", "ganpipe")).expanduser()


def _is_whole(path: Path, md5: str) -> bool:
    if not path.is_file():
        return False
    with open(path, "rb") as file:
        found = hashlib.file_digest(file, lambda: hashlib.md5(usedforsecurity=False))
    return found.hexdigest() == md5


def _download(source: str, file: Published, folder: Path, remedy: str) -> None:
    """Try the addresses in turn, with torchvision's downloader and its md5 check."""
    from torchvision.datasets import utils  # type: ignore[import-untyped]

    print(f"fetch: {source}: downloading {file.name} to {folder}", file=sys.stderr)
    failures, timeout = [], socket.getdefaulttimeout()
    socket.setdefaulttimeout(PATIENCE)  # torchvision sets none, and would wait for ever
    try:
        for address in file.addresses:
            try:
                if drive := DRIVE.fullmatch(address):
                    utils.download_file_from_google_drive(drive[1], folder, file.name, file.md5)
                else:
                    utils.download_url(address, folder, file.name, file.md5)
                return
            except Exception as error:  # urllib, ssl, gdown and torchvision raise many kinds
                if isinstance(error, OSError) and error.errno in LOCAL_ERRORS:
                    raise
                # gdown's errors span several lines.
                failures.append(f"{address} ({textwrap.shorten(str(error), 200) or type(error).__name__})")
    finally:
        socket.setdefaulttimeout(timeout)
    raise UserError(
        f"fetch.source={source}: {file.name} cannot be downloaded from {' or '.join(failures)}; {remedy}"
    )
