"""Files that are whole or absent: write beside, sync, rename; their sha256; and where work is kept."""

import hashlib
import os
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path


@contextmanager
def whole(path: Path) -> Iterator[Path]:
    """Give a temporary name in the same folder to write to; it takes the place of `path` once all is on disk.

    A kill at any moment leaves the old file or the new one, never a part. On an exception the old file stays.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    # Always the same name, so that what a kill leaves is overwritten by the next try.
    temporary = path.with_name(f".{path.name}.tmp")
    try:
        yield temporary
        sync(temporary)
        os.replace(temporary, path)
        sync(path.parent)
    except OSError as error:
        # A full disk is noticed by a write, which does not know the file's name.
        if error.errno and not error.filename:
            error.filename = str(path)
        raise
    finally:
        with suppress(OSError):  # what cannot be removed is overwritten by the next try
            temporary.unlink(missing_ok=True)


def sync(path: Path) -> None:
    """Put a file's bytes, or a folder's names, on the disk, to outlive a power cut."""
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
    """Return the checkout that outlives a command: DVC runs queued ones in a copy, deleted afterwards."""
    return Path(os.environ.get("DVC_ROOT") or root).resolve()
