"""Files from the web: downloaded once into a cache that all checkouts share, and checked by their sha256."""

import os
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from filelock import FileLock, Timeout

from ganpipe.common import files
from ganpipe.common.errors import UserError


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


def cached(source: str, remotes: Sequence[Remote], remedy: str, offline: bool) -> list[Path]:
    """Return the files in the cache after downloading those that it lacks.

    A file there whose sha256 is right is not downloaded again, whoever put it there; half a one is. One whose
    sha256 nobody knows counts as whole, because it gets its name only when it is.

    Args:
        source: as in fetch.source; names the folder in the cache.
        remotes: all that the set needs.
        remedy: what people can do where a file cannot be had.
        offline: whether the network must be left alone.

    Raises:
        UserError: a file cannot be had.
    """
    folder = cache() / source

    def missing() -> list[Remote]:
        return [remote for remote in remotes if not _is_whole(folder / remote.name, remote.sha256)]

    if lacks := missing():  # else the folder may be read-only
        names = " and ".join(remote.name for remote in lacks)
        if offline:
            raise UserError(
                f"fetch.source={source}: GANPIPE_OFFLINE is set, and {folder} lacks {names}; "
                f"unset it, or {remedy}"
            )
        folder.mkdir(parents=True, exist_ok=True)
        with _alone(folder):  # experiments that run side by side want the same file
            for remote in missing():
                _download(source, remote, folder, remedy)
    return [folder / remote.name for remote in remotes]


@contextmanager
def _alone(folder: Path) -> Iterator[None]:
    lock = FileLock(folder / ".lock")
    try:
        lock.acquire(timeout=0)
    except Timeout:
        print(f"fetch: waiting for another process that downloads to {folder}", file=sys.stderr)
        lock.acquire()
    try:
        for left in folder.glob("tmp????????"):  # pooch's, after a kill
            left.unlink()
        yield
    finally:
        lock.release()


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
    """Try the addresses in turn; once more from the start where glued parts make another file."""
    # Imported here because they take a while, and mostly there is nothing to download.
    import pooch
    from requests import RequestException
    from urllib3.exceptions import HTTPError

    from ganpipe.fetch.http import LostError, RefusedError, Resumable, reason

    pooch.get_logger().setLevel("WARNING")
    size = f" ({human(remote.size)})" if remote.size else ""
    print(f"fetch: {source}: downloading {remote.name}{size} to {folder}", file=sys.stderr)
    part = folder / f"{remote.name}.part"
    getter = Resumable(part, f"fetch {source}", remote.size, checked=remote.sha256 is not None)
    failures = []
    for address in remote.addresses:
        for _ in range(2):
            try:
                pooch.retrieve(address, remote.sha256, remote.name, folder, downloader=getter)
                return
            except (RequestException, HTTPError, LostError, RefusedError) as error:
                failures.append(f"{address} ({reason(error)})")
                break
            except ValueError:
                failures.append(f"{address} (its bytes are not those with the sha256 {remote.sha256})")
                if not getter.glued:
                    break
    tried = " or ".join(dict.fromkeys(failures))
    raise UserError(f"fetch.source={source}: {remote.name} cannot be downloaded from {tried}; {remedy}")
