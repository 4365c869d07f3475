"""Downloads into a cache that all checkouts share; interrupted ones resume, and complete ones are checked."""

import os
import sys
import textwrap
import time
from collections.abc import Sequence
from contextlib import nullcontext
from pathlib import Path
from typing import Any, NamedTuple

import requests
from filelock import AcquireReturnProxy, FileLock, Timeout
from pydantic import ConfigDict
from pydantic.dataclasses import dataclass
from rich.filesize import decimal
from urllib3.exceptions import HTTPError

from ganpipe.common import files
from ganpipe.common.errors import UserError
from ganpipe.common.progress import Progress

TIMEOUT = 60.0  # seconds without a byte from the server after which a connection is given up
# Connections in a row without a new byte before an address is given up, with waits of 1, 2, 4 and 8 s.
ATTEMPTS = 5
# Status codes of a server that is busy or failing for the moment; all other errors are final.
BUSY = {408, 425, 429, 500, 502, 503, 504}
# Limits files of unknown size, so that an endless answer does not fill the disk. The largest set has 2 GB.
MAX_BYTES = 10**11
BLOCK = 1 << 18
MB = 10**6
sleep = time.sleep


@dataclass(frozen=True, config=ConfigDict(extra="forbid"))
class Remote:
    """A file on the web; its size or sha256 is None where unknown."""

    name: str  # of the file in the cache
    size: int | None  # bytes
    sha256: str | None
    addresses: tuple[str, ...]  # mirrors, in the order in which they are tried


class BrokenError(requests.ConnectionError):
    """A connection ended early, or its answer does not continue the part on disk; a retry may help."""


class WrongFileError(requests.RequestException):
    """The address offers another file than expected; a retry does not help."""


def cached(source: str, remotes: Sequence[Remote], remedy: str, offline: bool) -> list[Path]:
    """Return the paths of files in the cache, after downloading those that are missing.

    A file whose sha256 is right is not downloaded again, no matter who put it there; a damaged one is. A file
    of unknown sha256 counts as complete, because it gets its name only when its download is.

    The files lie in a folder named after the source. `remedy` tells how to get them without the download.

    Raises UserError: a file cannot be downloaded, or is missing while the network is disabled (`offline`).
    """
    folder = cache() / source
    absent = [remote for remote in remotes if not _is_complete(folder / remote.name, remote.sha256)]
    if absent:  # if nothing is missing, the folder may be read-only
        if offline:
            names = " and ".join(remote.name for remote in absent)
            problem = f"GANPIPE_OFFLINE is set, and {folder} lacks {names}"
            raise UserError(f"fetch.source={source}: {problem}; unset it, or {remedy}")
        folder.mkdir(parents=True, exist_ok=True)
        with _lock(folder):
            for remote in absent:
                if not _is_complete(folder / remote.name, remote.sha256):  # by now, through another process
                    _download(source, remote, folder, remedy)
    return [folder / remote.name for remote in remotes]


def cache() -> Path:
    """Return the cache: the folder GANPIPE_DATA, else ganpipe/ in XDG_CACHE_HOME or ~/.cache."""
    chosen = os.environ.get("GANPIPE_DATA")
    if chosen and not Path(chosen).expanduser().is_absolute():
        # A queued experiment would download everything into its own copy of the checkout.
        raise UserError(f"GANPIPE_DATA: found {chosen!r}, expected the absolute path of a folder")
    return Path(chosen or Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache", "ganpipe")).expanduser()


def state(source: str, remotes: tuple[Remote, ...]) -> str:
    """Return how much of a source is in the cache, by names and sizes: "downloaded", "5 kB" or "no"."""
    if remotes and all((cache() / source / remote.name).is_file() for remote in remotes):
        return "downloaded"
    sizes = [path.stat().st_size for path in (cache() / source).glob("[!.]*")]
    return decimal(sum(sizes)) if sizes else "no"


def _lock(folder: Path) -> AcquireReturnProxy:
    """Let one process at a time download to a folder, because parallel experiments need the same files."""
    lock = FileLock(folder / ".lock")
    try:
        return lock.acquire(timeout=0)
    except Timeout:
        print(f"fetch: waiting for another process that downloads to {folder}", file=sys.stderr)
        return lock.acquire()


def _is_complete(path: Path, sha256: str | None) -> bool:
    return path.is_file() and sha256 in (None, files.sha256(path))


def _download(source: str, remote: Remote, folder: Path, remedy: str) -> None:
    """Download a file from the first of its addresses that works."""
    size = f" ({decimal(remote.size)})" if remote.size else ""
    print(f"fetch: {source}: downloading {remote.name}{size} to {folder}", file=sys.stderr)
    part, note = (folder / f"{remote.name}.{suffix}" for suffix in ("part", "part.version"))
    failures = []
    for address in remote.addresses:
        try:
            _Transfer(address, remote, part, note, f"fetch {source}").run()
        except (requests.RequestException, HTTPError) as error:
            failures.append(f"{address} ({_reason(error)})")
        else:
            os.replace(part, folder / remote.name)
            note.unlink(missing_ok=True)
            return
    tried = " or ".join(failures)
    raise UserError(f"fetch.source={source}: {remote.name} cannot be downloaded from {tried}; {remedy}")


class _Transfer(NamedTuple):
    """The download of a file from one address into a part, a file that outlives a kill and is resumed.

    A note beside the part records the address and the version of the file there: the strong ETag or the date
    that the server sent. The server is asked to continue that version only (If-Range). Without a version, a
    part is resumed only if the sha256 is known, which would reveal parts of different files.
    """

    address: str
    remote: Remote
    part: Path
    note: Path
    title: str

    def run(self) -> None:
        """Download and check the file; once more from the start if joined parts have another sha256."""
        for _ in range(2):
            joined = self._receive_all()
            if _is_complete(self.part, self.remote.sha256):
                return
            self._discard()
            if not joined:
                break
        raise WrongFileError(f"its bytes are not those with the sha256 {self.remote.sha256}")

    def _receive_all(self) -> bool:
        """Connect until every byte is on disk; return whether they came over more than one connection."""
        longest, attempts = self._length(), 0
        while True:
            try:
                return self._receive()
            except (requests.ConnectionError, requests.Timeout, HTTPError) as error:
                attempts = 1 if self._length() > longest else attempts + 1
                longest = max(longest, self._length())
                if attempts >= ATTEMPTS:
                    raise
                wait = 2 ** (attempts - 1)
                print(f"{self.title}: {_reason(error)}; trying again in {wait} s", file=sys.stderr)
                sleep(wait)

    def _receive(self) -> bool:
        """Append the missing bytes over one connection; return whether there were bytes before."""
        start, version = self._length(), self._version()
        if start and start == self.remote.size:
            return True
        headers = {"Accept-Encoding": "identity"}  # so that a range counts bytes of the file itself
        if start and (version or self.remote.sha256):
            headers |= {"Range": f"bytes={start}-"} | ({"If-Range": version} if version else {})
        with requests.get(self.address, headers=headers, stream=True, timeout=TIMEOUT) as answer:
            status, span = answer.status_code, answer.headers.get("Content-Range", "")
            if status == 416 and span == f"bytes */{start}":  # nothing is missing
                return True
            changed = version and _version_of(answer) not in ("", version)
            if status == 416 or (status == 206 and (changed or not span.startswith(f"bytes {start}-"))):
                self._discard()
                raise BrokenError("the server answered with a part of another file")
            if status not in (200, 206):
                if status not in BUSY:
                    answer.raise_for_status()
                raise BrokenError(f"the server answered {status} {answer.reason}")
            length = span.rpartition("/")[2] if status == 206 else answer.headers.get("Content-Length", "")
            total = int(length) if length.isdecimal() and len(length) < 20 else None
            if self.remote.size is not None and total not in (None, self.remote.size):
                raise WrongFileError(f"the file there has {total:,} bytes, not {self.remote.size:,}")
            if status == 200:
                start = 0
                self._discard()  # before the note, so that it never describes bytes of another version
                self.note.write_text(f"{self.address}\n{_version_of(answer)}", encoding="utf-8")
            self._append(answer.raw, start, self.remote.size or total)
        return start > 0

    def _append(self, stream: Any, done: int, total: int | None) -> None:
        """Append a stream to the part, which has `done` of `total` bytes, and put it on the disk."""
        limit = MAX_BYTES if total is None else total
        bar = Progress(self.title, total // MB, done // MB, "MB") if total and total > MB else nullcontext()
        with open(self.part, "ab") as file, bar as progress:
            # read1 returns what has arrived, so that no byte is lost if the connection breaks.
            while block := stream.read1(BLOCK, decode_content=False):
                if done + len(block) > limit:
                    self._discard()
                    raise WrongFileError(f"the file there goes on after {limit:,} bytes")
                file.write(block)
                if progress is not None:
                    progress.advance((done + len(block)) // MB - done // MB)
                done += len(block)
        if total is not None and done < total:
            raise BrokenError(f"the connection ended after {done:,} of {total:,} bytes")
        files.sync(self.part)

    def _discard(self) -> None:
        self.part.unlink(missing_ok=True)
        self.note.unlink(missing_ok=True)

    def _length(self) -> int:
        return self.part.stat().st_size if self.part.exists() else 0

    def _version(self) -> str:
        """Return the version that the part belongs to, or "" if this server named none."""
        note = self.note.read_text(encoding="utf-8", errors="replace") if self.note.exists() else ""
        address, _, version = note.partition("\n")
        return version if address == self.address else ""


def _version_of(answer: requests.Response) -> str:
    """Return a strong ETag, else the date of the last change, else ""."""
    tag = answer.headers.get("ETag", "W/")
    return answer.headers.get("Last-Modified", "") if tag.startswith("W/") else tag


def _reason(error: BaseException) -> str:
    """Return the message of the error at the bottom of those that libraries wrap around it, in one line."""
    while cause := error.__cause__ or error.__context__:
        error = cause
    return textwrap.shorten(str(error), 200) or type(error).__name__
