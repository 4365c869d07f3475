"""A cell on any machine: a clone by commit, one DVC experiment in it, and the results pushed and verified.

`python -m ganpipe.cluster.cell FOLDER` runs the cell of a folder of the board; the engines call `run`.
"""

import hashlib
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ganpipe.cluster import board
from ganpipe.cluster.board import Attempt, Order
from ganpipe.common import files, processes
from ganpipe.common.errors import UserError, lines_of, without_secrets
from ganpipe.common.git import OTHER_CHECKOUT, git_or_error
from ganpipe.experiments.grid import failure_reason
from ganpipe.experiments.revisions import open_repo
from ganpipe.experiments.run import dvc_environment

POLL = 2.0  # seconds between looks at whether the experiment has ended, or must
EMPTY_FILE = hashlib.md5(b"").hexdigest()  # DVC's name of it
KEPT = "kept"  # marks the clone of an experiment that could not be pushed


class Ended(Exception):
    """Another attempt has taken over, or the user asked for the end."""


def run(folder: Path, passed: Mapping[str, str] | None = None) -> str:
    """Run a cell, and return the state in which it ended: finished, failed or ended.

    In this order: clone the hub at the commit; `dvc exp run` there; push the data, then the experiment's ref,
    each verified; delete the clone. So what the hub lists is complete, and what is not pushed is still on
    this machine. Variables of `passed` are set where this machine's environment has none.
    """
    order, attempt = board.submitted(folder), Attempt(folder)
    environment = {**(passed or {}), **dvc_environment(), **order.environment}
    try:
        with attempt.beating():
            _run(order, attempt, environment)
        state, reason = "finished", ""
    except Ended as why:
        state, reason = "ended", str(why)
    except Exception as error:  # of any kind: a cell must not seem to run
        state, reason = "failed", _line(error)
    if state != "finished":
        attempt.note(state, reason)
    return state


def _line(error: Exception) -> str:
    """Describe an error on one line: a store of DVC's data may raise its own kinds."""
    if isinstance(error, UserError | OSError):
        return " ".join(lines_of(error))
    return without_secrets(f"{type(error).__name__}: {' '.join(str(error).split())}")


def _run(order: Order, attempt: Attempt, environment: dict[str, str]) -> None:
    if _is_pushed(order, attempt):
        attempt.note("finished")
        return
    scratch = Path(os.environ.get("GANPIPE_SCRATCH") or "~/.cache/ganpipe/cells").expanduser().resolve()
    scratch.mkdir(parents=True, exist_ok=True)
    _sweep(scratch)
    pid, began = attempt.process
    same = f"{order.name}@{order.commit[:12]}"
    clone = scratch / f"{same}@{attempt.record.stem}@{processes.NODE}@{pid}@{began:.2f}"

    attempt.note("cloning")
    if reason := attempt.must_end():
        raise Ended(reason)
    git_or_error(scratch, "clone", "--quiet", "--no-checkout", order.hub, str(clone))
    # By commit: a hub whose HEAD names a missing branch clones to an empty tree.
    git_or_error(clone, "checkout", "--quiet", "--detach", order.commit)
    _configure(clone, order, order.cache or str(scratch / "cache"))
    (scratch / "features").mkdir(exist_ok=True)  # of real images, which all cells of a node compare with
    (clone / ".ganpipe").mkdir()
    (clone / ".ganpipe" / "features").symlink_to(scratch / "features")

    attempt.note("running")
    unfinished = attempt.folder / "unfinished"
    _experiment(clone, order, attempt, environment | {files.UNFINISHED: str(unfinished)})
    try:
        attempt.revision = git_or_error(clone, "rev-parse", order.ref)
        attempt.note("pushing")
        _push_data(clone)
        if reason := attempt.must_end():
            raise Ended(reason)
        _push_ref(clone, order, attempt)
    except Ended:
        raise
    except Exception as error:
        (clone / ".dvc" / KEPT).touch()
        raise UserError(f"{_line(error)}; nothing is lost: {processes.NODE} keeps {clone}") from None
    attempt.note("finished")
    shutil.rmtree(unfinished, ignore_errors=True)
    for done in scratch.glob(f"{same}@*@{processes.NODE}@*"):  # also kept ones of earlier attempts
        if done == clone or _is_dead(done):
            shutil.rmtree(done, ignore_errors=True)


def _is_pushed(order: Order, attempt: Attempt) -> bool:
    """Return whether an earlier attempt has pushed the experiment; raise a UserError if somebody else has."""
    listed = git_or_error(attempt.folder, "ls-remote", order.hub, order.ref)
    if not listed:
        return False
    revision = listed.split()[0]
    if any(state.revision == revision for state in board.read_states(attempt.folder)):
        return True
    remedy = f"fetch it, or remove it there with `git push origin :{order.ref}`"
    raise UserError(f"the hub has another experiment {order.name} ({revision[:7]}); {remedy}")


def _sweep(scratch: Path) -> None:
    """Remove the clones of this machine's dead processes; one whose results could not be pushed stays."""
    for clone in scratch.glob(f"*@{processes.NODE}@*@*"):
        if _is_dead(clone) and not (clone / ".dvc" / KEPT).exists():
            shutil.rmtree(clone, ignore_errors=True)


def _is_dead(clone: Path) -> bool:
    pid, began = clone.name.rsplit("@", 2)[1:]
    return not processes.alive(int(pid), float(began))


def _configure(clone: Path, order: Order, cache: str) -> None:
    """Write what is true of this machine only: the cache, the remote's address, an identity for commits."""
    with open_repo(clone) as repo, repo.config.edit("local") as local:
        local["cache"]["dir"] = cache
        # Inside the clone, so that it is deleted with it.
        local["core"] |= {"remote": order.remote["name"], "site_cache_dir": str(clone / ".dvc" / "site")}
        local["remote"][order.remote["name"]] = {"url": order.remote["url"]}
        local["exp"]["auto_push"] = False  # a push that fails would only be a warning
    for key, value in (("user.name", "ganpipe"), ("user.email", "ganpipe@localhost")):
        if subprocess.run(["git", "-C", str(clone), "config", key], stdout=subprocess.DEVNULL).returncode:
            git_or_error(clone, "config", key, value)


def _experiment(clone: Path, order: Order, attempt: Attempt, environment: Mapping[str, str]) -> None:
    """Run the experiment in the clone; however this process ends, the experiment ends with it.

    Raises:
        Ended: another attempt has taken over, or the user asked for the end; the training has a checkpoint.
        UserError: the experiment failed; the text is the line of its log that best tells why.
    """
    dvc = ["dvc", "exp", "run", "--pull", "--allow-missing", "--name", order.name]
    for setting in order.settings:
        dvc += ["-S", setting]
    command = [sys.executable, "-m", "ganpipe.tracking.guard", sys.executable, "-m", *dvc]
    own = {name: value for name, value in environment.items() if not OTHER_CHECKOUT.match(name)}
    with open(attempt.log, "ab") as log:
        guard = subprocess.Popen(
            command,
            cwd=clone,
            env=own,
            stdin=subprocess.PIPE,
            stdout=log,
            stderr=log,
            start_new_session=True,  # as the guard asks for
        )
        try:
            while guard.poll() is None:
                if reason := attempt.must_end():
                    raise Ended(reason)
                _wait(guard)
        finally:
            assert guard.stdin is not None
            guard.stdin.close()  # ends what still runs, with time for a checkpoint
            guard.wait()
    listed = git_or_error(clone, "for-each-ref", order.ref)
    if not listed:
        raise UserError(failure_reason(board.read_tail(attempt.log)))


def _wait(guard: subprocess.Popen[bytes]) -> None:
    deadline = time.monotonic() + POLL
    while guard.poll() is None and time.monotonic() < deadline:
        time.sleep(0.1)


def _push_data(clone: Path) -> None:
    """Push the experiment's data, and verify by the remote's own listing that all of it is there."""
    with open_repo(clone) as repo:
        name = repo.config["core"]["remote"]
        try:
            try_remote(repo)  # which tells the reason, unlike a push
            repo.push()
        except Exception as error:  # each kind of store raises its own
            raise UserError(f"the DVC remote {name} does not take the data: {_line(error)}") from None
        if missing := missing_data(repo):
            raise UserError(f"the DVC remote {name} lacks {missing} objects after the push")


def try_remote(repo: Any) -> None:
    """Store an empty file in the default remote; one that fails raises its own kind of error.

    It is not enough to list the remote: S3 lists a bucket that does not exist like an empty one.
    """
    odb = repo.cloud.get_remote_odb()
    if not odb.oids_exist([EMPTY_FILE]):
        odb.add_bytes(EMPTY_FILE, b"")


def missing_data(repo: Any, targets: list[str] | None = None) -> int:
    """Return how many objects of the workspace's outputs the default remote lacks."""
    used = {info.value for infos in repo.used_objs(targets).values() for info in infos}
    return len(used - set(repo.cloud.get_remote_odb().oids_exist(list(used))))


def _push_ref(clone: Path, order: Order, attempt: Attempt) -> None:
    """Push the experiment's ref if the hub has none of this name, and verify it."""
    lease = f"--force-with-lease={order.ref}:"  # the ref must not exist: two attempts never both succeed
    try:
        git_or_error(clone, "push", "--quiet", lease, "origin", f"{order.ref}:{order.ref}")
    except UserError:
        if _is_pushed(order, attempt):
            return
        raise
    found = git_or_error(clone, "ls-remote", "origin", order.ref).split()
    if found[:1] != [attempt.revision]:
        found_text = " ".join(found) or "no ref"
        raise UserError(f"the hub has {found_text} after the push, expected {attempt.revision}")


if __name__ == "__main__":
    sys.exit(run(Path(sys.argv[1])) != "finished")
