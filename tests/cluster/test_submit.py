"""What is refused before any cell is submitted, and the table of cells."""

import os
import shutil
import time
from pathlib import Path

import pytest
from conftest import ROOT
from rich.console import Console
from toy import git, order, toy_project

from ganpipe.cluster import board, on_ray, watch
from ganpipe.cluster.board import State
from ganpipe.cluster.submit import Options, grid
from ganpipe.common import files
from ganpipe.common.errors import UserError

GRID = "xin2024-two-rates"
DIGITS = ["fetch.source=mnist5k", "preprocess.channels=1", "preprocess.resolution=32"]


@pytest.fixture
def checkout(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A checkout with this project's params, without remotes; it becomes the working directory."""
    folder = toy_project(tmp_path, monkeypatch)
    for name in ("params.yaml", "dvc.yaml", ".gitignore"):
        shutil.copy(ROOT / name, folder)
    (folder / "stages/fetch").mkdir(parents=True)
    shutil.copy(ROOT / "stages/fetch/packaged.txt", folder / "stages/fetch")
    git(folder, "add", ".")
    git(folder, "commit", "-q", "-m", "this project's params")
    git(folder, "push", "-q", "origin", "main")
    for name in [name for name in os.environ if name.startswith(("DVC_", "MLFLOW_", "GANPIPE_", "RAY_"))]:
        monkeypatch.delenv(name)
    monkeypatch.chdir(folder)
    return folder


def refused(on: str) -> list[str]:
    """Return the lines of a refusal."""
    with pytest.raises(UserError) as error:
        grid(Path(), GRID, 1, DIGITS, Options(run=True, on=on))
    assert not list(Path().glob("**/cell.json"))
    return str(error.value).splitlines()


def test_all_that_is_wrong_is_said_at_once(checkout: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A failure means cells that fail one by one on distant machines, or a user who mends one line a day."""
    pytest.importorskip("ray")
    git(checkout, "remote", "remove", "origin")
    with open("params.yaml", "a") as file:
        file.write("# changed\n")
    lines = refused("ray=localhost:1")
    for line, words in zip(
        lines,
        [
            "params.yaml: changed since the commit that nodes clone; commit and push",
            "no default DVC remote; `dvc remote add --default",
            "no git remote origin; `git remote add",
            "MLFLOW_TRACKING_URI: found sqlite",
            "GANPIPE_UNFINISHED: set it to a folder that all nodes see",
            "--on ray: nothing answers at localhost:1",
        ],
        strict=True,
    ):
        assert line.startswith(words)
    assert refused("ray=ray://localhost:1")[-1].startswith("--on ray: found ray://localhost:1, expected")
    monkeypatch.setattr("ganpipe.cluster.on_slurm.shutil.which", lambda program: None)
    assert "there is no sbatch on this machine" in refused("slurm")[-1]
    assert refused("rays") == ["--on rays: expected ray, ray=HOST:PORT, slurm or slurm=PARTITION"]
    monkeypatch.setattr(on_ray, "find_spec", lambda name: None)
    assert refused("ray")[-1] == "ray is not installed; `pip install 'ganpipe[cluster]'`"


def test_remotes_that_cannot_be_used_are_refused(
    checkout: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A failure means a night of training whose results have nowhere to go, or a password on a screen."""
    pytest.importorskip("ray")
    (tmp_path / "file").touch()
    (checkout / ".dvc/config").write_text(
        f"[core]\n    remote = disk\n['remote \"disk\"']\n    url = {tmp_path}/file/below\n"
    )
    git(checkout, "commit", "-qam", "a remote that is no folder")
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://me:secret@127.0.0.1:9")
    lines = refused("ray")
    assert len(lines) == 3 and "the DVC remote disk" in lines[0] and "cannot be used" in lines[0]
    assert lines[1] == "HEAD is not on the git remote origin; `git push`"
    assert lines[2].startswith("MLflow at http://***@127.0.0.1:9: ")
    git(checkout, "remote", "set-url", "origin", "https://me:secret@127.0.0.1:9/hub.git")
    lines = refused("ray")
    assert "the git remote origin (https://***@127.0.0.1:9/hub.git) cannot be read" in lines[1]
    assert "secret" not in "".join(lines)


def test_the_table_tells_the_living_from_the_lost(checkout: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A failure means that a user waits for cells that nothing will ever run, or submits them twice."""
    folders = [order(checkout, f"grid-{letter}-s0") for letter in "abcd"]
    for folder, job in zip(folders, ["slurm 1_0", "slurm 1_1", "ray elsewhere 1 1", ""], strict=True):
        board.write_job(folder, job)
    monkeypatch.setattr(watch.on_slurm, "alive", lambda job: job == "slurm 1_0")
    states = {folder: watch.state_of(folder) for folder in folders}
    assert [state.state for state in states.values()] == ["waiting", "lost", "waiting", "lost"]

    records = [files.claim(folder) for folder in folders]
    for record in records:
        board.write_state(record, State("running", node="elsewhere"))
    folders[0].joinpath("1.log").write_text("x\ntrain: 1,200/13,353 images (9%)  77/s  4:39 left  d_loss 1\n")
    assert [watch.state_of(folder).state for folder in folders] == ["running"] * 4
    console = Console(width=100)
    with console.capture() as text:
        console.print(watch.table("grid", {folders[0]: watch.state_of(folders[0])}))
    assert "a-s0" in text.get() and "train: 1,200/13,353" in text.get() and "4:39" in text.get()
    for record in records:
        os.utime(record, (0, time.time() - 2 * board.SILENCE))
    assert [watch.state_of(folder).state for folder in folders] == ["waiting", "lost", "waiting", "lost"]
    board.fail(folders[3], "its worker died 3 times")
    with pytest.raises(UserError, match="grid-d-s0: its worker died 3 times"):
        watch.finish(checkout, "grid", {folders[3]: watch.state_of(folders[3])})
