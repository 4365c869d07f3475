"""Unfinished training: a folder outside DVC's reach, named after what is trained, held by one process."""

import hashlib
import json
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout

from ganpipe import files
from ganpipe.errors import UserError


def folder_for(root: Path, identity: dict[str, Any]) -> Path:
    """Return the folder of a training in the main checkout, also where DVC runs a temporary copy of it.

    Args:
        root: the checkout that the command runs in.
        identity: plain values that decide the result: params, digests of data and code.
    """
    key = hashlib.sha256(json.dumps(identity, sort_keys=True).encode()).hexdigest()[:16]
    return files.main_checkout(root) / ".ganpipe" / "unfinished" / key


@contextmanager
def held(folder: Path) -> Iterator[None]:
    """Hold a folder for this process alone; made if absent.

    Raises:
        UserError: another process holds it, the orphan of a killed command, say.
    """
    folder.mkdir(parents=True, exist_ok=True)
    lock, owner = FileLock(folder.with_suffix(".lock"), blocking=False), folder.with_suffix(".pid")
    try:
        lock.acquire()
    except Timeout:
        pid = owner.read_text() if owner.exists() else "unknown"
        raise UserError(
            f"this very training is running already, in process {pid}; wait for it, or stop it with "
            f"`kill {pid}` and run the command again: it goes on from the last checkpoint"
        ) from None
    try:
        owner.write_text(str(os.getpid()))
        yield
    finally:
        owner.unlink(missing_ok=True)
        lock.release()


def remove(folder: Path) -> None:
    """Remove a folder so that a kill half-way never leaves a part that looks like the whole."""
    doomed = folder.with_suffix(".removed")
    shutil.rmtree(doomed, ignore_errors=True)
    if folder.exists():
        folder.rename(doomed)
    shutil.rmtree(doomed, ignore_errors=True)
