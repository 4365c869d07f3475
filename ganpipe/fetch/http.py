"""One file over HTTP: goes on where an earlier try stopped, and waits longer after each failure."""

import errno
import json
import os
import re
import sys
import textwrap
import time
from contextlib import nullcontext
from pathlib import Path
from typing import IO, Any

import requests
import urllib3

from ganpipe.common.progress import Progress

# Seconds without a byte from the other side, after which the connection counts as lost.
PATIENCE = 60.0
# Connections in a row that bring nothing new before an address is given up; waits of 1, 2, 4 and 8 s between.
TRIES = 5
sleep = time.sleep
# A file that says nothing of its length is followed no further: a server that never ends would fill the disk.
# The largest set here has 2 GB.
MAX_BYTES = 10**11
BLOCK = 1 << 18
MB = 10**6
# Answers that mean "later"; other errors of a server are final.
LATER = {408, 425, 429, 500, 502, 503, 504}
# What the user's own disk answers; everything else that goes wrong in a download is the other side's.
LOCAL_ERRORS = {errno.ENOSPC, errno.EDQUOT, errno.EACCES, errno.EPERM, errno.EROFS, errno.EFBIG, errno.EIO}


class LostError(Exception):
    """The connection ended early, or what came cannot follow what is there."""


class RefusedError(Exception):
    """The address has another file than the one that is wanted; trying again is no use."""


class Resumable:
    """A downloader for pooch. What has come stays in a file `<name>.part` until all of it is there.

    A part is gone on with if the server still has the same file: it says so by the file's ETag or date, or,
    where it gives neither, the sha256 is known and will tell. Proxies come from the environment.

    Attributes:
        glued: whether what has come was put together from several connections, and so could be of two files.
    """

    def __init__(self, part: Path, title: str, size: int | None, checked: bool) -> None:
        """Prepare.

        Args:
            part: the file for what has come; `<part>.json` beside it holds what the server said of it.
            title: for the progress bar.
            size: the file's bytes, where they are known; never more are taken.
            checked: whether the sha256 is known, so that a file glued together wrongly would be noticed.
        """
        self.part, self.title, self.size, self.checked = part, title, size, checked
        self.note = part.with_name(f"{part.name}.json")
        self.glued = self._length() > 0

    def __call__(self, url: str, output_file: Any, pooch: Any, check_only: bool = False) -> None:
        """Write the file at `url` to the path `output_file`.

        Raises:
            requests.RequestException, urllib3.exceptions.HTTPError, LostError, RefusedError: not to be had.
            OSError: the disk is full, or the like.
        """
        most, idle = self._length(), 0
        while True:
            try:
                self._connect(url)
                break
            except (requests.RequestException, urllib3.exceptions.HTTPError, LostError, OSError) as error:
                if isinstance(error, OSError) and error.errno in LOCAL_ERRORS:
                    raise
                answer = getattr(error, "response", None)
                if answer is not None and answer.status_code not in LATER:
                    raise
                idle = 1 if self._length() > most else idle + 1
                most = max(most, self._length())
                if idle >= TRIES:
                    raise
                wait = 2 ** (idle - 1)
                print(f"{self.title}: {reason(error)}; trying again in {wait} s", file=sys.stderr)
                sleep(wait)
        os.replace(self.part, output_file)
        self.note.unlink(missing_ok=True)

    def forget(self) -> None:
        """Delete what has come."""
        self.part.unlink(missing_ok=True)
        self.note.unlink(missing_ok=True)

    def _length(self) -> int:
        return self.part.stat().st_size if self.part.exists() else 0

    def _connect(self, url: str) -> None:
        """Get what is missing in one connection; return once all is there."""
        start, version = self._length(), self._version(url)
        if start and start == self.size:
            return
        # The bytes as they are kept, so that a range is one of them.
        headers = {"Accept-Encoding": "identity"}
        if start and (version or self.checked):
            headers["Range"] = f"bytes={start}-"
            if version:
                headers["If-Range"] = version
        with requests.get(url, headers=headers, stream=True, timeout=PATIENCE) as answer:
            if answer.status_code == 416 and start:
                if answer.headers.get("Content-Range") == f"bytes */{start}":
                    return
                self.forget()
                raise LostError("the file is shorter than what came of it before")
            answer.raise_for_status()
            if answer.status_code == 206:
                span = re.fullmatch(r"bytes (\d+)-\d+/(\d+|\*)", answer.headers.get("Content-Range", ""))
                said = _version_of(answer)
                if span is None or int(span[1]) != start or (version and said and said != version):
                    self.forget()
                    raise LostError("the server answered with a part of another file")
                total = int(span[2]) if span[2] != "*" else None
            elif answer.status_code != 200:
                raise LostError(f"the server answered {answer.status_code} {answer.reason}")
            else:
                start, length = 0, answer.headers.get("Content-Length", "")
                total = int(length) if length.isdecimal() else None
            if self.size is not None and total not in (None, self.size):
                raise RefusedError(f"the file there has {total:,} bytes, not {self.size:,}")
            if not start:
                self.note.write_text(json.dumps({"url": url, "version": _version_of(answer)}))
            self.glued = start > 0
            with open(self.part, "ab" if start else "wb") as file:
                self._copy(answer.raw, file, start, self.size or total)

    def _copy(self, stream: Any, file: IO[bytes], done: int, total: int | None) -> None:
        bar = (
            Progress(self.title, total // MB, done // MB, unit="MB")
            if total and total > MB
            else nullcontext()
        )
        with bar as progress:
            # read1 gives what has come at once: nothing of it is lost if the connection breaks.
            while block := stream.read1(BLOCK, decode_content=False):
                if done + len(block) > (most := MAX_BYTES if total is None else total):
                    self.forget()
                    raise RefusedError(f"the file there goes on after {most:,} bytes")
                file.write(block)
                if progress is not None:
                    progress.advance((done + len(block)) // MB - done // MB)
                done += len(block)
        if total is not None and done < total:
            raise LostError(f"the connection ended after {done:,} of {total:,} bytes")
        file.flush()
        os.fsync(file.fileno())

    def _version(self, url: str) -> str | None:
        """Return what this server said of the version that the part is of; None: nothing."""
        try:
            said = json.loads(self.note.read_text())
            return said["version"] if said["url"] == url else None
        except (OSError, ValueError, KeyError, TypeError):
            return None


def reason(error: BaseException) -> str:
    """Say in a line what went wrong at the bottom of what libraries wrap around it."""
    while error.__context__ is not None:
        error = error.__context__
    return textwrap.shorten(str(error), 200) or type(error).__name__


def _version_of(answer: requests.Response) -> str | None:
    """Return a strong ETag, else the date of the last change."""
    tag = answer.headers.get("ETag", "W/")
    return answer.headers.get("Last-Modified") if tag.startswith("W/") else tag
