"""The folder of an unfinished training in .ganpipe/unfinished, and the lock of its process."""

import hashlib
import json
import os
import shutil
import sys
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout

from ganpipe.common import files, processes
from ganpipe.common.errors import UserError
from ganpipe.common.processes import NODE
from ganpipe.train.signals import dvc_process

MOMENT = 1.0  # seconds to wait for a process that is ending and has removed its note already
PATIENCE = 60.0  # seconds to wait for a process whose dvc is gone to write its checkpoint


@dataclass(frozen=True)
class Holder:
    """The process that holds a training, as written beside its lock."""

    pid: int
    checkout: str  # the folder that it runs in, a copy for a queued experiment
    dvc: Sequence[float] | None  # number and start (seconds since 1970) of the dvc that runs it, if any
    host: str = NODE

    @property
    def orphaned(self) -> bool:
        """Whether the dvc that ran it is gone; False on another host, whose processes are not seen here."""
        dvc = self.dvc if self.host == NODE else None
        return dvc is not None and not processes.alive(int(dvc[0]), dvc[1])


def folder_for(root: Path, identity: dict[str, Any]) -> Path:
    """Return the folder of the training with these params and digests, in the main checkout of `root`."""
    key = hashlib.sha256(json.dumps(identity, sort_keys=True).encode()).hexdigest()[:16]
    return files.main_checkout(root) / ".ganpipe" / "unfinished" / key


@contextmanager
def locked(folder: Path, root: Path) -> Iterator[None]:
    """Lock a training's folder, created if absent, and the checkout that receives the result.

    Raises UserError: another process holds one of them, such as the orphan of a killed command.
    """
    folder.mkdir(parents=True, exist_ok=True)
    (root / ".ganpipe").mkdir(exist_ok=True)
    holder = Holder(os.getpid(), str(root.resolve()), dvc_process())
    with ExitStack() as stack:
        for path in (root / ".ganpipe" / "train", folder):
            lock, note = FileLock(path.with_suffix(".lock")), path.with_suffix(".pid")
            _acquire(lock, note)
            stack.callback(lock.release)
            note.write_text(json.dumps(asdict(holder)))
            stack.callback(note.unlink, missing_ok=True)
        yield


def _acquire(lock: FileLock, note: Path) -> None:
    with suppress(Timeout):
        lock.acquire(timeout=MOMENT)
        return
    reason, remedy = f"{lock.lock_file} is locked", "wait for the process that holds it"
    if holder := _read(note):
        where = "" if holder.host == NODE else f" on {holder.host}"
        reason = f"process {holder.pid}{where} is already training in {holder.checkout}"
        remedy = f"wait for it, or stop it with `kill {holder.pid}`"
        if holder.orphaned:
            print(f"train: waiting for process {holder.pid}, whose dvc is gone, to end", file=sys.stderr)
            with suppress(Timeout):
                lock.acquire(timeout=PATIENCE)
                return
            remedy = "stop it with `ganpipe doctor --fix`"
    raise UserError(f"{reason}; {remedy}, then run this again: training resumes from the last checkpoint")


def holders(root: Path) -> list[Holder]:
    """List the processes that train in a checkout and in the copies that DVC made of it."""
    living = []
    for note in sorted((root / ".ganpipe" / "unfinished").glob("*.pid")):
        lock = FileLock(note.with_suffix(".lock"))
        try:
            lock.acquire(blocking=False)
            lock.release()  # nobody holds it: a killed process left the note
        except Timeout:
            living.append(_read(note))
    return [holder for holder in living if holder]


def _read(note: Path) -> Holder | None:
    try:
        return Holder(**json.loads(note.read_text()))
    except (OSError, ValueError, TypeError):  # the process is about to end, or has just started
        return None


def remove(folder: Path) -> None:
    """Remove a folder so that a kill half-way never leaves a part that looks like the whole."""
    doomed = folder.with_suffix(".removed")
    shutil.rmtree(doomed, ignore_errors=True)
    if folder.exists():
        folder.rename(doomed)
    shutil.rmtree(doomed, ignore_errors=True)
