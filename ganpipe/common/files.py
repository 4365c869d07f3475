"""Atomic writes (write beside, sync, rename), numbered records, sha256 of files, and the main checkout."""

import errno
import hashlib
import os
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from ganpipe.common.errors import UserError

# Variable that names the folder on shared storage for unfinished trainings and what cells report.
UNFINISHED = "GANPIPE_UNFINISHED"


@contextmanager
def whole(path: Path) -> Iterator[Path]:
    """Yield a temporary path in the same folder; it replaces `path` once its content is on disk.

    A kill at any moment leaves the old file or the new one, never a part. An exception leaves the old one.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    # Always the same name, so that the next attempt overwrites a killed one's file.
    temporary = path.with_name(f".{path.name}.tmp")
    try:
        yield temporary
        sync(temporary)
        os.replace(temporary, path)
        sync(path.parent)
    except OSError as error:
        # A write to a full disk raises without the file's name.
        if error.errno and not error.filename:
            error.filename = str(path)
        raise
    finally:
        with suppress(OSError):  # the next attempt overwrites it
            temporary.unlink(missing_ok=True)


def claim(folder: Path) -> Path:
    """Create the record of a new attempt, N.json with N = 1, 2 …, and return its path.

    No two attempts get the same number, on whatever machines they run: the file system creates a file once.
    """
    folder.mkdir(parents=True, exist_ok=True)
    number = max((int(path.stem) for path in records(folder)), default=0)
    while True:
        number += 1
        with suppress(FileExistsError):
            (folder / f"{number}.json").touch(exist_ok=False)
            return folder / f"{number}.json"


def records(folder: Path) -> list[Path]:
    """List the records of the attempts in a folder, the newest first."""
    return sorted(folder.glob("[0-9]*.json"), key=lambda path: -int(path.stem))


def newer(record: Path) -> str | None:
    """Return the number of the newest attempt if it is another one than this; None: there is none."""
    newest = next(iter(records(record.parent)), record)  # no record at all: the storage is away
    return newest.stem if newest.stem != record.stem else None


@contextmanager
def temporary_space() -> Iterator[None]:
    """Turn the error of a full disk under temporary files into a UserError that tells how to use another."""
    try:
        yield
    except OSError as error:
        if error.errno not in (errno.ENOSPC, errno.EDQUOT) or error.filename:
            raise
        remedy = "free some space there, or set TMPDIR to another folder"
        raise UserError(f"{tempfile.gettempdir()}: {error.strerror}; {remedy}") from None


def sync(path: Path) -> None:
    """Flush a file's bytes, or a folder's names, to the disk, so that they survive a power cut."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def sha256(path: Path) -> str:
    """Return the sha256 of a file's bytes in hexadecimal."""
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def main_checkout(root: Path) -> Path:
    """Return the permanent checkout: DVC runs queued experiments in a copy that it deletes afterwards."""
    return Path(os.environ.get("DVC_ROOT") or root).resolve()
