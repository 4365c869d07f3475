"""What a kill leaves in a checkout, and its remedy. What is alive is never touched.

In this order, each mended before the next is looked for: trainers without their dvc, MLflow's runs, DVC's
locks, its copies of the checkout, the branch.
"""

import json
import os
import shutil
import subprocess
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import psutil

from ganpipe.common import files, processes
from ganpipe.common.errors import UserError
from ganpipe.tracking import mirror as tracking
from ganpipe.train import resume as unfinished

DVC = {"dvc", "ganpipe", "ipykernel_launcher", "ipython"}  # programs that may hold DVC's locks
LONGEST_END = 120.0  # seconds for a trainer to write a checkpoint and end


@dataclass(frozen=True)
class Finding:
    """Something that a kill left.

    Attributes:
        what: one line.
        remedy: what `fix` does, in the imperative.
        fix: does it.
    """

    what: str
    remedy: str
    fix: Callable[[], object]


def doctor(root: Path, fix: bool) -> int:
    """Say what a kill left and what is to be done, and do it if asked.

    Args:
        root: the main checkout.
        fix: do it.

    Returns:
        How many findings are left.

    Raises:
        UserError: no checkout with DVC is here.
    """
    if not (root / ".dvc").is_dir():
        raise UserError(f"{root.resolve()} has no .dvc; run it in the folder of dvc.yaml")
    found = left = 0
    # What would be stopped first hides nothing of what would follow.
    orphans = [] if fix else [holder.pid for holder in unfinished.holders(root) if holder.orphaned]
    doomed = {process.pid for pid in orphans for process in _line(pid)}
    for check in (_trainers, _runs, _locks, _copies, _branch):
        try:
            for finding in check(root, doomed):
                found, left = found + 1, left + 1
                print(f"{finding.what}\n  {'now' if fix else 'to do'}: {finding.remedy}")
                if fix:
                    finding.fix()
                    left -= 1
        except (UserError, OSError) as error:
            found, left = found + 1, left + 1
            print(error)
    if not found:
        print("nothing was left by a kill")
    elif left:
        print(f"{left} left" if fix else f"{left} found; `ganpipe doctor --fix` does what is to do")
    return left


def _trainers(root: Path, doomed: set[int]) -> Iterator[Finding]:
    for holder in unfinished.holders(root):
        if holder.orphaned:
            yield Finding(
                f"process {holder.pid} trains on in {holder.checkout}, though the dvc that ran it is gone",
                "stop it; it writes a checkpoint, from which the next run goes on",
                partial(_stop, holder.pid),
            )


def _line(pid: int) -> list[psutil.Process]:
    """Return a trainer and the shells or launchers that wait for it."""
    with suppress(psutil.NoSuchProcess):
        line = processes.ancestry(pid, psutil.Process(pid).ppid())
        return [psutil.Process(each) for each, _ in line]
    return []


def _stop(pid: int) -> None:
    deadline = time.monotonic() + LONGEST_END
    for process in _line(pid):
        with suppress(psutil.NoSuchProcess):
            if process.pid == pid:
                process.terminate()
                process.resume()  # it may have been stopped
            while process.is_running() and process.status() != psutil.STATUS_ZOMBIE:
                if time.monotonic() > deadline:
                    raise UserError(
                        f"process {pid} does not end; `kill -9 {pid}` costs what followed its last checkpoint"
                    )
                time.sleep(0.1)


def _runs(root: Path, doomed: set[int]) -> Iterator[Finding]:
    for run, name in tracking.left_running(root):
        what = f"MLflow's run {name} is RUNNING, though its process is gone"
        yield Finding(what, "set it to KILLED", partial(tracking.end_killed, root, run))


def _locks(root: Path, doomed: set[int]) -> Iterator[Finding]:
    """Find what blocks DVC: locks that are files (core.hardlink_lock), and lists of who reads and writes."""
    from dvc.config import Config
    from dvc.lock import LockError, make_lock

    hardlink = bool(Config(str(root / ".dvc"))["core"].get("hardlink_lock"))
    folders = root / ".dvc/tmp", root / ".dvc/tmp/exps"
    for path in (folders[0] / "lock", *(folder / "rwlock.lock" for folder in folders)):
        if hardlink and path.exists() and not _dvc_lives(root, doomed):  # it does not say whose it is
            yield Finding(f"{path} is a lock, though no dvc is here", "remove it", path.unlink)
    for folder in folders:
        guard = make_lock(str(folder / "rwlock.lock"), str(folder), hardlink_lock=hardlink)
        with suppress(LockError, FileNotFoundError), guard:  # else somebody is at it
            path = folder / "rwlock"
            if what := _clean(path, write=False):
                yield Finding(f"{path} {what}", "take out what is stale", partial(_clean, path, write=True))


def _clean(path: Path, write: bool) -> str:
    """Say what a dead process left in a rwlock file, and take it out; to be called under its guard."""
    kept: dict[str, Any] = {"write": {}, "read": {}}
    dead = set()
    try:
        written = path.stat().st_mtime
        for kind, entries in json.loads(path.read_text()).items():
            for place, owners in entries.items():
                several = owners if isinstance(owners, list) else [owners]
                living = [owner for owner in several if _wrote(owner["pid"], written)]
                dead |= {owner["pid"] for owner in several if owner not in living}
                if living:
                    kept[kind][place] = living if isinstance(owners, list) else living[0]
    except (ValueError, AttributeError, KeyError, TypeError):
        if write:
            path.unlink()
        return "is not readable, as a kill or a full disk leaves it"
    if dead and write:
        with files.whole(path) as temporary:
            temporary.write_text(json.dumps(kept))
    return f"names dead processes: {', '.join(map(str, sorted(dead)))}" if dead else ""


def _wrote(pid: int, when: float) -> bool:
    """Say whether a process lives and is old enough to have written something."""
    try:
        process = psutil.Process(pid)
        return process.status() != psutil.STATUS_ZOMBIE and process.create_time() < when + 1
    except psutil.NoSuchProcess:
        return False


def _copies(root: Path, doomed: set[int]) -> Iterator[Finding]:
    folder = root / ".dvc/tmp/exps"
    for copy in sorted([*folder.glob("tmp*/"), *folder.glob("standalone/tmp*/")]):
        if not _dvc_lives(root, doomed) and not _used(copy, doomed):
            size = sum(path.lstat().st_size for path in copy.rglob("*") if not path.is_dir())
            yield Finding(
                f"{copy} is a copy that a killed experiment left, {size / 1e6:,.0f} MB",
                "remove it; unfinished training is in .ganpipe, finished results are in DVC's cache",
                partial(shutil.rmtree, copy),
            )


def _branch(root: Path, doomed: set[int]) -> Iterator[Finding]:
    """Find HEAD where a killed `dvc exp run` left it: detached, at the commit that DVC began from."""
    head, begun = _git(root, "rev-parse", "HEAD"), _git(root, "rev-parse", "refs/exps/exec/EXEC_HEAD")
    branch = _git(root, "rev-parse", "--abbrev-ref", "@{-1}")
    if _git(root, "symbolic-ref", "-q", "HEAD") or not head or head != begun or _dvc_lives(root, doomed):
        return
    if branch and _git(root, "rev-parse", f"refs/heads/{branch}") == head:
        switch = partial(_git, root, "symbolic-ref", "-m", "ganpipe doctor", "HEAD", f"refs/heads/{branch}")
        yield Finding(
            f"HEAD is detached from {branch}, as a killed `dvc exp run` leaves it",
            f"go back to {branch}; no file changes, so params.yaml keeps the experiment's values",
            switch,
        )


def _dvc_lives(root: Path, doomed: set[int]) -> bool:
    """Say whether what may be using DVC works in the checkout or in a copy of it, or hides where."""
    for process in psutil.process_iter(["pid", "cwd", "cmdline"]):
        words, place = process.info["cmdline"] or [], process.info["cwd"]
        if DVC & {Path(word).name for word in words[:4]} and process.pid not in {os.getpid(), *doomed}:
            if place is None or Path(place).is_relative_to(root.resolve()):
                return True
    return False


def _used(folder: Path, doomed: set[int]) -> bool:
    """Say whether a process works in a folder."""
    every = psutil.process_iter(["pid", "cwd"])
    places = [process.info["cwd"] for process in every if process.pid not in doomed]
    return any(place and Path(place).is_relative_to(folder.resolve()) for place in places)


def _git(root: Path, *words: str) -> str:
    """Return what git says, empty where it fails."""
    ended = subprocess.run(["git", "-C", str(root), *words], capture_output=True, text=True)
    return "" if ended.returncode else ended.stdout.strip()
