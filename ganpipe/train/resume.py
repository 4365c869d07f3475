"""Unfinished training: a folder outside DVC's reach, held by one process, which stops when it is asked to.

A stage that dvc runs has nobody to take its result once that dvc is gone: it stops as if asked to.
"""

import functools
import hashlib
import json
import os
import shutil
import signal
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from types import FrameType
from typing import Any

import psutil
from filelock import FileLock, Timeout

import ganpipe
from ganpipe.common import files, processes
from ganpipe.common.errors import UserError

POLL = 0.5  # seconds between looks at whether dvc is still there
SAME = 1.0  # seconds within which a second signal is the first one's echo: dvc's group gets some twice
PATIENCE = 60.0  # seconds that a successor waits for one whose dvc is gone to write its checkpoint


@dataclass(frozen=True)
class Holder:
    """Who holds a training, as written beside its lock.

    Attributes:
        pid: of the process that trains.
        checkout: the folder that it runs in, a copy for a queued experiment.
        dvc: id and start (seconds since 1970) of the dvc that runs it; None where none does.
    """

    pid: int
    checkout: str
    dvc: tuple[int, float] | None

    @property
    def orphaned(self) -> bool:
        """Whether the dvc that ran it is gone."""
        return self.dvc is not None and not processes.alive(*self.dvc)


def folder_for(root: Path, identity: dict[str, Any]) -> Path:
    """Return the folder of a training in the main checkout, also where DVC runs a temporary copy of it.

    Args:
        root: the checkout that the command runs in.
        identity: plain values that decide the result: params, digests of data and code.
    """
    key = hashlib.sha256(json.dumps(identity, sort_keys=True).encode()).hexdigest()[:16]
    return files.main_checkout(root) / ".ganpipe" / "unfinished" / key


@contextmanager
def held(folder: Path, root: Path) -> Iterator[None]:
    """Hold a folder, made if absent, and the checkout, where the result goes, for this process alone.

    Raises:
        UserError: another process holds one of them, the orphan of a killed command, say.
    """
    folder.mkdir(parents=True, exist_ok=True)
    (root / ".ganpipe").mkdir(exist_ok=True)
    me = Holder(os.getpid(), str(root.resolve()), _dvc())
    with ExitStack() as stack:
        for place in (root / ".ganpipe" / "train", folder):
            lock, note = FileLock(place.with_suffix(".lock")), place.with_suffix(".pid")
            _acquire(lock, note)
            stack.callback(lock.release)
            note.write_text(json.dumps(asdict(me)))
            stack.callback(note.unlink, missing_ok=True)
        yield


def _acquire(lock: FileLock, note: Path) -> None:
    with suppress(Timeout):
        lock.acquire(blocking=False)
        return
    holder = _read(note)
    if holder and holder.orphaned:
        print(f"train: waiting for process {holder.pid}, whose dvc is gone, to end", file=sys.stderr)
        with suppress(Timeout):
            lock.acquire(timeout=PATIENCE)
            return
        remedy = "stop it with `ganpipe doctor --fix`"
    else:
        remedy = f"wait for it, or stop it with `kill {holder.pid}`" if holder else "wait for it"
    who = (
        f"process {holder.pid} is training already, in {holder.checkout}"
        if holder
        else f"{lock.lock_file} is held"
    )
    raise UserError(f"{who}; {remedy} and run this again: training goes on from the last checkpoint")


def holders(root: Path) -> list[Holder]:
    """List who trains in a checkout and in the copies that DVC made of it."""
    found = []
    for note in sorted((root / ".ganpipe" / "unfinished").glob("*.pid")):
        lock = FileLock(note.with_suffix(".lock"))
        try:
            lock.acquire(blocking=False)
            lock.release()  # nobody's: the note is what a kill left
        except Timeout:
            found.append(_read(note))
    return [holder for holder in found if holder]


def _read(note: Path) -> Holder | None:
    try:
        values = json.loads(note.read_text())
        return Holder(values["pid"], values["checkout"], values["dvc"] and tuple(values["dvc"]))
    except (OSError, ValueError, KeyError):  # it ends, or was just begun
        return None


@functools.cache
def _line() -> list[tuple[int, int]]:
    return processes.ancestry(os.getpid(), ganpipe.PARENT) if "DVC_STAGE" in os.environ else []


def _dvc() -> tuple[int, float] | None:
    if not (line := _line()):
        return None
    pid = line[-1][1]
    try:
        return pid, psutil.Process(pid).create_time()
    except psutil.NoSuchProcess:
        return pid, 0.0


def orphaned() -> bool:
    """Say whether the dvc that runs this process is gone: what it started has another parent now."""
    try:
        return any(psutil.Process(child).ppid() != parent for child, parent in _line())
    except psutil.NoSuchProcess:
        return True


@contextmanager
def asked_to_stop() -> Iterator[list[int]]:
    """Collect SIGTERM, SIGINT and SIGUSR1 in a list instead of dying of them; a second one does its worst.

    The end of the dvc that runs this process counts as SIGTERM.
    """
    asked: list[int] = []
    first, done = 0.0, threading.Event()
    watched = (signal.SIGTERM, signal.SIGINT, signal.SIGUSR1)

    def note(signum: int, frame: FrameType | None = None) -> None:
        nonlocal first
        if not asked:
            first = time.monotonic()
            asked.append(signum)
        elif time.monotonic() - first > SAME:
            signal.signal(signum, before[signal.Signals(signum)])
            signal.raise_signal(signum)

    def watch() -> None:
        while not done.wait(POLL):
            if orphaned():
                return note(signal.SIGTERM)

    before = {each: signal.signal(each, note) for each in watched}
    watcher = threading.Thread(target=watch, daemon=True)
    if _line():
        watcher.start()
    try:
        yield asked
    finally:
        done.set()
        for each in watched:
            signal.signal(each, before[each])


def remove(folder: Path) -> None:
    """Remove a folder so that a kill half-way never leaves a part that looks like the whole."""
    doomed = folder.with_suffix(".removed")
    shutil.rmtree(doomed, ignore_errors=True)
    if folder.exists():
        folder.rename(doomed)
    shutil.rmtree(doomed, ignore_errors=True)
