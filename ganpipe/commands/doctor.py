"""Find what killed processes left in a checkout, and fix it. Live processes are left alone."""

import json
import os
import shutil
import signal
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import psutil

from ganpipe.common.errors import UserError
from ganpipe.common.files import whole
from ganpipe.common.git import git
from ganpipe.common.processes import ancestry, start_of
from ganpipe.tracking.mirror import end_killed, left_running
from ganpipe.tracking.ui import left_servers
from ganpipe.train.resume.unfinished import holders

DVC_PROGRAMS = {"dvc", "ganpipe", "ipykernel_launcher", "ipython"}  # programs that may hold DVC's locks
STOP_SECONDS = 120.0  # a trainer's time to write a checkpoint and exit


@dataclass(frozen=True)
class Finding:
    """Something that a killed process left."""

    problem: str
    remedy: str  # what `fix` does, in the imperative
    fix: Callable[[], object]


def doctor(root: Path, fix: bool) -> int:
    """Print what killed processes left, each with its remedy; return the number of problems that remain.

    With `fix`, the remedies are applied, each before the next check.

    Raises UserError: `root` is not a DVC repository.
    """
    if not (root / ".dvc").is_dir():
        raise UserError(f"{root.resolve()} has no .dvc; run this command in the folder of dvc.yaml")
    problems = fixed = 0
    # Processes that a fix would stop first; until then they must not hide the problems that follow.
    orphans = [] if fix else [holder.pid for holder in holders(root) if holder.orphaned]
    doomed = {process.pid for pid in orphans for process in _with_launchers(pid)}
    for check in (_trainers, _servers, _runs, _locks, _copies, _branch):
        try:
            for finding in check(root, doomed):
                problems += 1
                print(f"{finding.problem}\n  {'fixing' if fix else 'remedy'}: {finding.remedy}")
                if fix:
                    finding.fix()
                    fixed += 1
        except (UserError, OSError) as error:
            problems += 1
            print(error)
    if problems == 0:
        print("killed processes left nothing behind")
    elif not fix:
        print(f"{problems} found; `ganpipe doctor --fix` applies the remedies")
    elif fixed < problems:
        print(f"{problems - fixed} of {problems} not fixed")
    return problems - fixed


def _trainers(root: Path, doomed: set[int]) -> Iterator[Finding]:
    for holder in holders(root):
        if holder.orphaned:
            yield Finding(
                f"process {holder.pid} trains in {holder.checkout}, although the dvc that ran it is gone",
                "stop it; it writes a checkpoint, from which the next run resumes",
                partial(_stop, holder.pid),
            )


def _with_launchers(pid: int) -> list[psutil.Process]:
    """Return a trainer and the shells or launchers that wait for it."""
    with suppress(psutil.NoSuchProcess):
        return [psutil.Process(child) for child, _ in ancestry(pid, psutil.Process(pid).ppid())]
    return []


def _stop(pid: int) -> None:
    """Terminate a trainer and wait until it and its launchers have exited."""
    deadline = time.monotonic() + STOP_SECONDS
    for process in _with_launchers(pid):
        with suppress(psutil.NoSuchProcess):
            if process.pid == pid:
                process.terminate()
                process.resume()  # it may be suspended
            while process.is_running() and process.status() != psutil.STATUS_ZOMBIE:
                if time.monotonic() > deadline:
                    remedy = f"`kill -9 {pid}` ends it without a checkpoint"
                    raise UserError(f"process {pid} does not exit within {STOP_SECONDS:g} s; {remedy}")
                time.sleep(0.1)


def _servers(root: Path, doomed: set[int]) -> Iterator[Finding]:
    for session, pids in left_servers(root).items():
        numbers = ", ".join(map(str, pids))
        problem = f"MLflow's server (process {numbers}) runs, although its `ganpipe ui` is gone"
        yield Finding(problem, "stop it", partial(os.killpg, session, signal.SIGTERM))


def _runs(root: Path, doomed: set[int]) -> Iterator[Finding]:
    for run_id, name in left_running(root):
        problem = f"MLflow run {name} is RUNNING, although its process is gone"
        yield Finding(problem, "set it to KILLED", partial(end_killed, root, run_id))


def _locks(root: Path, doomed: set[int]) -> Iterator[Finding]:
    """Find what blocks DVC: lock files (with core.hardlink_lock), and lists of readers and writers."""
    from dvc.config import Config
    from dvc.lock import LockError, make_lock

    hardlink = bool(Config(str(root / ".dvc"))["core"].get("hardlink_lock"))
    folders = root / ".dvc/tmp", root / ".dvc/tmp/exps"
    for path in (folders[0] / "lock", *(folder / "rwlock.lock" for folder in folders)):
        if hardlink and path.exists() and not _busy(root, doomed, dvc=True):  # it does not name its owner
            yield Finding(f"{path} is a lock, although no dvc runs here", "remove it", path.unlink)
    for folder in folders:
        guard = make_lock(str(folder / "rwlock.lock"), str(folder), hardlink_lock=hardlink)
        with suppress(LockError, FileNotFoundError), guard:  # a LockError means that a dvc is using the list
            path = folder / "rwlock"
            if problem := _stale_entries(path, remove=False):
                fix = partial(_stale_entries, path, remove=True)
                yield Finding(f"{path} {problem}", "remove what is stale", fix)


def _stale_entries(path: Path, remove: bool) -> str:
    """Describe (and remove) what dead processes left in a rwlock file; the caller holds the file's guard."""
    entries: dict[str, Any] = {"write": {}, "read": {}}  # {path: owner} and {path: [owner, …]}
    dead = set()
    try:
        written = path.stat().st_mtime
        for kind, locks in json.loads(path.read_text()).items():
            for locked, value in locks.items():
                owners = value if isinstance(value, list) else [value]
                alive = [owner for owner in owners if start_of(owner["pid"]) < written + 1]
                dead |= {owner["pid"] for owner in owners if owner not in alive}
                if alive:
                    entries[kind][locked] = alive if isinstance(value, list) else alive[0]
    except (ValueError, AttributeError, KeyError, TypeError):
        if remove:
            path.unlink()
        return "is not readable, which a kill or a full disk can cause"
    if dead and remove:
        with whole(path) as temporary:
            temporary.write_text(json.dumps(entries))
    return f"names dead processes: {', '.join(map(str, sorted(dead)))}" if dead else ""


def _copies(root: Path, doomed: set[int]) -> Iterator[Finding]:
    folder = root / ".dvc/tmp/exps"
    for copy in sorted([*folder.glob("tmp*/"), *folder.glob("standalone/tmp*/")]):
        if not _busy(root, doomed, dvc=True) and not _busy(copy, doomed):
            size = sum(path.lstat().st_size for path in copy.rglob("*") if not path.is_dir())
            yield Finding(
                f"{copy} is the copy of a killed experiment, {size / 1e6:,.0f} MB",
                "remove it; unfinished training is in .ganpipe, and finished results are in DVC's cache",
                partial(shutil.rmtree, copy),
            )


def _branch(root: Path, doomed: set[int]) -> Iterator[Finding]:
    """Find a HEAD that a killed `dvc exp run` left detached at the commit from which it started."""
    head, started_from = git(root, "rev-parse", "HEAD"), git(root, "rev-parse", "refs/exps/exec/EXEC_HEAD")
    if not head or head != started_from or git(root, "symbolic-ref", "-q", "HEAD"):
        return
    branch = git(root, "rev-parse", "--abbrev-ref", "@{-1}")
    same = branch and git(root, "rev-parse", f"refs/heads/{branch}") == head
    if same and not _busy(root, doomed, dvc=True):
        yield Finding(
            f"HEAD is detached from {branch}, as a killed `dvc exp run` leaves it",
            f"switch to {branch}; no file changes, so params.yaml keeps the experiment's values",
            partial(git, root, "symbolic-ref", "-m", "ganpipe doctor", "HEAD", f"refs/heads/{branch}"),
        )


def _busy(folder: Path, doomed: set[int], dvc: bool = False) -> bool:
    """Return whether a process works in a folder; with `dvc`, a program of DVC that may hide its folder."""
    for process in psutil.process_iter(["pid", "cwd", "cmdline"]):
        programs = {Path(word).name for word in (process.info["cmdline"] or [])[:4]}
        inside = Path(cwd).is_relative_to(folder.resolve()) if (cwd := process.info["cwd"]) else dvc
        if inside and (not dvc or programs & DVC_PROGRAMS) and process.pid not in {os.getpid(), *doomed}:
            return True
    return False
