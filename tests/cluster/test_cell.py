"""The cell: what it leaves on the hub, on the remote and on its node, however it ends."""

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from conftest import wait
from toy import git, on_hub, order, toy_project

from ganpipe.cluster import board, cell
from ganpipe.commands.doctor import _busy
from ganpipe.common import files


def clones(checkout: Path) -> list[Path]:
    """List the clones of cells on this machine."""
    return sorted((checkout.parent / "scratch").glob("*@*"))


@pytest.fixture
def checkout(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A checkout of the toy project, with a hub and a remote."""
    return toy_project(tmp_path, monkeypatch)


def state(folder: Path) -> board.State:
    """Return the state of a cell's newest attempt."""
    return next(board.read_states(folder))


def test_a_cell_leaves_a_complete_experiment_and_no_clone(checkout: Path, tmp_path: Path) -> None:
    """A failure means a result that is not at home, has no data, or ran another commit's code."""
    (checkout / "toy.py").write_text("raise SystemExit('the code of another checkout')")
    folder = order(checkout, "grid-a-s0", "steps=3", "seed=0")
    assert cell.run(folder) == "finished", state(folder)
    (name, revision), *others = on_hub(checkout).items()
    assert name == "grid-a-s0" and revision == state(folder).revision and not others
    git(checkout, "fetch", "-q", "origin", "refs/exps/*:refs/exps/*")
    assert git(checkout, "show", f"{revision}:params.yaml") == "steps: 3\nseed: 0"
    assert git(checkout, "rev-parse", f"{revision}~1") == git(checkout, "rev-parse", "HEAD")
    md5 = git(checkout, "show", f"{revision}:dvc.lock").partition("out.txt\n      hash: md5\n      md5: ")[2][
        :32
    ]
    stored = tmp_path / "storage/files/md5" / md5[:2] / md5[2:]
    assert stored.read_text() == "True 0 3"
    assert not clones(checkout) and not (folder / "unfinished").exists()
    assert "train: 3/3" in board.read_tail(folder / "1.log")


def test_a_name_that_the_hub_has_is_never_replaced(checkout: Path) -> None:
    """A failure means that a rerun destroys an earlier result, or trains for hours before it is refused."""
    folder = order(checkout, "grid-a-s0", "steps=1", "seed=0")
    ref = board.submitted(folder).ref
    other = git(checkout, "rev-parse", "HEAD")
    git(checkout, "push", "-q", "origin", f"HEAD:{ref}")
    assert cell.run(folder) == "failed"
    assert f"the hub has another experiment grid-a-s0 ({other[:7]})" in state(folder).reason
    assert on_hub(checkout) == {"grid-a-s0": other} and not clones(checkout)


def test_results_that_cannot_be_pushed_stay_and_do_not_look_finished(checkout: Path, tmp_path: Path) -> None:
    """A failure means a night's training deleted, or an experiment at home whose data are nowhere."""
    folder = order(checkout, "grid-a-s0", "steps=2", "seed=0")
    shutil.rmtree(tmp_path / "storage")
    (tmp_path / "storage").write_text("no folder")  # a remote that is reached and refuses
    assert cell.run(folder) == "failed"
    (clone,) = clones(checkout)
    assert str(clone) in state(folder).reason and "remote storage does not take" in state(folder).reason
    assert not on_hub(checkout) and (clone / "out.txt").read_text() == "True 0 2"

    # The clone of the failure survives the next cell's sweep; the same cell, run again, removes it.
    (tmp_path / "storage").unlink()
    dead = clone.with_name(f"{clone.name.rsplit('@', 2)[0]}@1@1.00")
    clone.rename(dead)
    assert cell.run(order(checkout, "grid-b-s0", "steps=1", "seed=1")) == "finished"
    assert clones(checkout) == [dead]
    assert cell.run(folder) == "finished"
    assert "from step" not in board.read_tail(folder / "2.log")  # restored from the node's cache
    assert set(on_hub(checkout)) == {"grid-a-s0", "grid-b-s0"} and not clones(checkout)


def test_another_attempt_that_was_first_counts(checkout: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A failure means that a retry of a cell that died after its push fails, or trains again."""
    folder = order(checkout, "grid-a-s0", "steps=1", "seed=0")
    assert cell.run(folder) == "finished"
    last = state(folder)
    (folder / "1.json").write_text(json.dumps({"state": "pushing", "revision": last.revision}))
    assert cell.run(folder) == "finished" and not (folder / "2.log").exists()

    # A partitioned attempt that arrives at its push after the other: the hub keeps the first.
    monkeypatch.setattr(cell, "_is_pushed", lambda *_: False)
    (folder / "1.json").write_text(json.dumps({"state": "ended"}))
    assert cell.run(folder) == "failed" and "git push: " in state(folder).reason
    assert on_hub(checkout) == {"grid-a-s0": last.revision} and len(clones(checkout)) == 1


def test_what_is_wrong_with_a_cell_is_said(checkout: Path, tmp_path: Path) -> None:
    """A failure means that a user's mistake shows as `failed to reproduce`, or as a traceback."""
    folder = order(checkout, "grid-a-s0", "steps=-1", "seed=0")
    assert cell.run(folder) == "failed"
    assert state(folder).reason == "ganpipe train: error: train.steps: expected at least 0"
    assert not on_hub(checkout) and len(clones(checkout)) == 1
    shutil.rmtree(tmp_path / "hub.git")
    assert cell.run(folder) == "failed" and state(folder).reason.startswith("git ls-remote: fatal: ")


@contextmanager
def started(folder: Path) -> Iterator[subprocess.Popen[bytes]]:
    """Run a cell in a process of its own, which is killed at the latest when the context ends."""
    with subprocess.Popen([sys.executable, "-m", "ganpipe.cluster.cell", str(folder)]) as process:
        try:
            yield process
        finally:
            process.kill()


def counted(folder: Path) -> int:
    """Return the checkpoint of a cell's stage; 0 before the first."""
    path = folder / "unfinished/step"
    return int(path.read_text()) if path.exists() else 0


def test_a_killed_cell_is_swept_and_resumed_and_an_older_attempt_stops(checkout: Path) -> None:
    """A failure means lost work, a disk full of clones, or two attempts that train one cell side by side."""
    folder = order(checkout, "grid-a-s0", "steps=5", "seed=0")
    hold = folder / "unfinished/hold"  # each attempt waits after its step, until it is to end
    hold.parent.mkdir()
    hold.touch()
    with started(folder):
        wait(lambda: counted(folder) == 1, "a checkpoint")
        (clone,) = clones(checkout)
    # Its experiment ends with it, although nobody was there to end it.
    wait(lambda: not _busy(clone, set()), "the end of the experiment of a killed cell")
    assert clones(checkout) == [clone]
    assert counted(folder) == 1

    with started(folder) as older:
        wait(lambda: counted(folder) == 2, "another checkpoint")
        assert not clone.exists()
        newer = files.claim(folder)  # another node takes over
        assert older.wait(60) == 1
    assert newer.name == "3.json" and not on_hub(checkout)
    newer.write_text(json.dumps({"state": "running", "node": "elsewhere"}))
    first, second = (json.loads((folder / f"{n}.json").read_text()) for n in (1, 2))
    assert second["reason"] == "attempt 3 has taken over from attempt 2" and first["state"] == "running"

    (folder / board.END).touch()
    assert cell.run(folder) == "ended" and state(folder).reason == "as asked"
    (folder / board.END).unlink()
    hold.unlink()
    assert cell.run(folder) == "finished"
    assert "from step 1 " in board.read_tail(folder / "2.log")
    assert all("stopped with a checkpoint" in board.read_tail(folder / f"{n}.log") for n in (1, 2))
    assert list(on_hub(checkout)) == ["grid-a-s0"] and not clones(checkout)


def test_a_cell_costs_little_more_than_its_experiment(checkout: Path, tmp_path: Path) -> None:
    """A failure means that many short cells spend more time on clones and pushes than on training."""
    folder = order(checkout, "grid-a-s0", "steps=0", "seed=0")

    def cost(*command: str, cwd: Path) -> float:
        before = os.times()
        subprocess.run([sys.executable, "-m", *command], cwd=cwd, check=True, stdout=subprocess.DEVNULL)
        after = os.times()
        return sum(after[2:4]) - sum(before[2:4])

    whole = cost("ganpipe.cluster.cell", str(folder), cwd=Path.cwd())
    alone = cost("dvc", "exp", "run", "-S", "seed=1", cwd=checkout)
    print(f"a cell takes {whole:.1f} CPU seconds, its experiment {alone:.1f}")
    assert whole - alone < 4
