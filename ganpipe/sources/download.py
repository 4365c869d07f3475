"""Files from the web: downloaded once into a cache that all checkouts share, and checked."""

import errno
import os
import sys
import textwrap
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from filelock import FileLock

from ganpipe import files
from ganpipe.errors import UserError

# What the user's own disk answers; everything else that goes wrong in a download is the other side's.
LOCAL_ERRORS = {errno.ENOSPC, errno.EDQUOT, errno.EACCES, errno.EPERM, errno.EROFS}


@dataclass(frozen=True)
class Remote:
    """A file on the web.

    Attributes:
        name: of the file in the cache.
        size: in bytes; None: not known.
        sha256: of its bytes, hexadecimal; None: not known.
        addresses: each of them gives the same file; tried in this order.
    """

    name: str
    size: int | None
    sha256: str | None
    addresses: tuple[str, ...]


def cached(source: str, remotes: Iterable[Remote], remedy: str) -> list[Path]:
    """Return the files in the cache after downloading those that it lacks.

    A file there whose sha256 is right is not downloaded again, whoever put it there; half a one is. One whose
    sha256 nobody knows counts as whole, because it gets its name only when it is.

    Args:
        source: as in fetch.source; names the folder in the cache.
        remotes: all that the set needs.
        remedy: what people can do where a file cannot be had.

    Raises:
        UserError: a file cannot be had.
    """
    folder = cache() / source
    if all(_is_whole(folder / remote.name, remote.sha256) for remote in remotes):
        return [folder / remote.name for remote in remotes]  # which may be read-only
    folder.mkdir(parents=True, exist_ok=True)
    with FileLock(folder / ".lock"):  # experiments that run side by side want the same file
        for remote in remotes:
            if not _is_whole(folder / remote.name, remote.sha256):
                _download(source, remote, folder, remedy)
    return [folder / remote.name for remote in remotes]


def cache() -> Path:
    """Return the cache: the folder GANPIPE_DATA, else ganpipe/ in XDG_CACHE_HOME or ~/.cache."""
    chosen = os.environ.get("GANPIPE_DATA")
    if chosen and not Path(chosen).expanduser().is_absolute():
        # A queued experiment would download everything into its own copy of the checkout.
        raise UserError(f"GANPIPE_DATA: found {chosen!r}, but it must be the absolute path of a folder")
    return Path(chosen or Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache", "ganpipe")).expanduser()


def state(source: str, remotes: tuple[Remote, ...]) -> str:
    """Say in a few words how much of a source is in the cache, by the files' names and sizes."""
    sizes = [path.stat().st_size for path in (cache() / source).glob("[!.]*")]
    if remotes and all((cache() / source / remote.name).is_file() for remote in remotes):
        return "downloaded"
    return human(sum(sizes)) if sizes else "no"


def human(size: float) -> str:
    """Write bytes as people do: 345 MB."""
    for unit in ("bytes", "kB", "MB"):
        if size < 999.5:
            return f"{size:.0f} {unit}"
        size /= 1000
    return f"{size:.1f} GB"


def _is_whole(path: Path, sha256: str | None) -> bool:
    return path.is_file() and sha256 in (None, files.sha256(path))


def _download(source: str, remote: Remote, folder: Path, remedy: str) -> None:
    """Try the addresses in turn."""
    import pooch  # its parts take a while to import

    pooch.get_logger().setLevel("WARNING")
    print(f"fetch: {source}: downloading {remote.name} to {folder}", file=sys.stderr)
    failures = []
    for address in remote.addresses:
        try:
            pooch.retrieve(address, remote.sha256, fname=remote.name, path=folder)
            return
        except Exception as error:  # requests, urllib3 and pooch raise many kinds
            if isinstance(error, OSError) and error.errno in LOCAL_ERRORS:
                raise
            failures.append(f"{address} ({textwrap.shorten(str(error), 200) or type(error).__name__})")
    raise UserError(
        f"fetch.source={source}: {remote.name} cannot be downloaded from {' or '.join(failures)}; {remedy}"
    )
