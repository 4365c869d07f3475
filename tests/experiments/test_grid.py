"""Grids in DVC's queue: what is queued, what is left alone, what is refused, and what a failure says."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from conftest import ROOT
from mlflow import MlflowClient
from ruamel.yaml import YAML

from ganpipe import params
from ganpipe.common.errors import UserError
from ganpipe.experiments import grid as experiments
from ganpipe.experiments import revisions

GRID = "xin2024-two-rates"
TINY = [
    "fetch.source=mnist5k",
    "preprocess.channels=1",
    "preprocess.resolution=32",
    "preprocess.held_out=0.1",
    "model.ngf=4",
    "model.ndf=4",
    "train.batch_size=256",
    "train.epochs=1",
    "train.snapshot_epochs=[1]",
    "sample.count=60",
    "evaluate.feature_resolution=32",
    "evaluate.kid_subset_size=20",
]
CELLS = [f"{GRID}-dlr=0.0064-glr={glr}" for glr in ("0.0032", "0.00128", "0.00064")]
NAMES = [f"{cell}-s{seed}" for cell in CELLS for seed in (0, 1)]


def git(checkout: Path, *words: str) -> str:
    """Run git and return what it printed."""
    return subprocess.run(["git", *words], cwd=checkout, capture_output=True, text=True, check=True).stdout


@pytest.fixture
def checkout(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A git checkout of the project as it is here, committed, and the working directory."""
    folder = tmp_path / "checkout"
    folder.mkdir()
    for name in ("dvc.yaml", "params.yaml", ".gitignore", ".dvcignore"):
        shutil.copy(ROOT / name, folder)
    shutil.copytree(ROOT / "ganpipe", folder / "ganpipe", ignore=shutil.ignore_patterns("__pycache__"))
    (folder / "stages/fetch").mkdir(parents=True)
    shutil.copy(ROOT / "stages/fetch/packaged.txt", folder / "stages/fetch")
    (folder / ".dvc").mkdir()
    for name in ("config", ".gitignore"):
        shutil.copy(ROOT / ".dvc" / name, folder / ".dvc")
    git(folder, "init", "-q", "-b", "main")
    git(folder, "config", "user.name", "test")
    git(folder, "config", "user.email", "test@example.com")
    git(folder, "add", ".")
    git(folder, "commit", "-q", "-m", "base")
    for name in [name for name in os.environ if name.startswith(("DVC_", "MLFLOW_", "GANPIPE_"))]:
        monkeypatch.delenv(name)
    monkeypatch.chdir(folder)
    return folder


def queued(checkout: Path) -> dict[str, params.Params]:
    """Return name → params of what waits in DVC's queue, read from git."""
    with revisions.opened(checkout) as repo:
        entries = list(repo.experiments.celery_queue.iter_queued())
    found = {}
    for entry in entries:
        text = git(checkout, "show", f"{entry.stash_rev}:params.yaml")
        found[entry.name] = params.parse(YAML(typ="safe", pure=True).load(text), entry.name)
    assert len(found) == len(entries)
    return found


def test_each_cell_and_seed_is_queued_once(checkout: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """A cell twice wastes hours, one left out spoils the study, and another's params belie its name."""
    experiments.grid(checkout, GRID, 1, TINY)
    assert set(queued(checkout)) == set(NAMES[::2])
    experiments.grid(checkout, GRID, 2, TINY)
    found = queued(checkout)
    assert set(found) == set(NAMES)
    assert "3 of 6 experiments queued, 3 queued before" in capsys.readouterr().out
    for i, name in enumerate(NAMES):
        values = found[name]
        rates = (values.train.dlr, values.train.glr, values.train.seed)
        assert rates == (0.0064, (0.0032, 0.00128, 0.00064)[i // 2], i % 2)
        assert values.train.snapshot_epochs == [1] and values.train.ema_halflife_kimg is None
    with pytest.raises(UserError) as refused:
        experiments.grid(checkout, GRID, 1, [*TINY, "train.epochs=2"])
    lines = str(refused.value).splitlines()
    assert [line.partition(": ")[0] for line in lines] == NAMES[::2]
    assert all("queued with other params or code; `dvc queue remove" in line for line in lines)
    assert set(queued(checkout)) == set(NAMES) and git(checkout, "status", "--porcelain") == ""


def test_bad_cells_are_refused_before_any_is_queued(checkout: Path) -> None:
    """Half a grid would run for a night before the first bad cell shows."""
    with open(checkout / "params.yaml", "a") as file:
        file.write("  bad:\n  - preprocess.resolution=64,50\n  - train.glr=0.0001,fast\n")
        file.write("  twins:\n  - train.epochs=1,01\n")
    with pytest.raises(UserError) as refused:
        experiments.grid(checkout, "bad")
    assert [line.partition(":")[0] for line in str(refused.value).splitlines()] == [
        "bad-resolution=64-glr=fast",
        "bad-resolution=50-glr=0.0001",
        "bad-resolution=50-glr=fast",
    ]
    with pytest.raises(UserError, match="twins-epochs=01: the cell twins-epochs=1 has the same params"):
        experiments.grid(checkout, "twins")
    with pytest.raises(UserError, match="grids.bda: no such grid"):
        experiments.grid(checkout, "bda")
    assert not queued(checkout)


def test_pictures_that_a_queued_copy_lacks_are_refused(checkout: Path, tmp_path: Path) -> None:
    """Every cell would fail in its first second, in a place where nobody looks."""
    (checkout / "pictures").mkdir()
    (checkout / "pictures/1.png").touch()

    def grid(path: str) -> None:
        words = [*TINY, "fetch.source=folder", f"fetch.path={path}"]
        experiments._wanted(params.load(), checkout, GRID, 1, words)

    with pytest.raises(UserError, match="names no pictures; give theirs with --set fetch.path"):
        grid("stages/fetch/packaged.txt")
    with pytest.raises(UserError, match="fetch.path: elsewhere is not there"):
        grid("elsewhere")
    with pytest.raises(UserError, match=r"only tracked files: give an absolute path, or run `dvc add"):
        grid("pictures")
    grid(str(checkout / "pictures"))
    (checkout / "pictures.dvc").touch()
    git(checkout, "add", "pictures.dvc")
    grid("pictures")
    grid("pictures/1.png")


@pytest.mark.parametrize(
    ("log", "reason"),
    [
        (
            "train: 10/20\nganpipe train: error: model.first_channels: no\nERROR: failed to reproduce\n",
            "ganpipe train: error: model.first_channels: no",
        ),
        (
            "Traceback\n  File x\ntorch.OutOfMemoryError: CUDA out of memory\nERROR: failed\n",
            "torch.OutOfMemory",
        ),
        ("ganpipe train: stopped by SIGINT after step 7; run it again\n", "ganpipe train: stopped by SIGINT"),
        ("Running stage\nERROR: output 'x' is already tracked\n\n", "ERROR: output 'x'"),
        ("", "it failed before its first stage"),
    ],
)
def test_the_reason_is_the_line_that_tells_it(log: str, reason: str) -> None:
    """`failed to reproduce 'train'` sends every user to the logs."""
    assert experiments.reason(log).startswith(reason)


@pytest.mark.long
def test_a_grid_runs_once_survives_a_failure_and_is_compared(checkout: Path) -> None:
    """The whole promise: six complete runs, none twice, and a ranking; a failed cell stops no other."""
    environment = os.environ | {"OMP_NUM_THREADS": "1", "COLUMNS": "200"}

    def ganpipe(*words: str) -> subprocess.CompletedProcess[str]:
        command = [sys.executable, "-m", "ganpipe", *words]
        return subprocess.run(command, cwd=checkout, env=environment, capture_output=True, text=True)

    settings = [word for setting in TINY for word in ("--set", setting)]
    ended = ganpipe("grid", GRID, "--seeds", "2", "--run", *settings)
    assert ended.returncode == 0, ended.stderr
    assert ended.stderr.count("finished") == 6
    client = MlflowClient(f"sqlite:///{checkout}/mlflow.db")
    experiment = client.get_experiment_by_name("ganpipe")
    assert experiment is not None
    runs = client.search_runs([experiment.experiment_id])
    assert {run.info.run_name for run in runs} == set(NAMES) and len(runs) == 6
    for run in runs:
        assert run.info.status == "FINISHED" and "eval/kid_lite0" in run.data.metrics
        assert len(client.get_metric_history(run.info.run_id, "train/d_loss")) == 18

    again = ganpipe("grid", GRID, "--seeds", "2", "--run", *settings)
    assert "0 of 6 experiments queued, 6 finished before" in again.stdout
    compared = ganpipe("compare", "--grid", GRID, "--csv", "table.csv", "--html", "page.html")
    assert compared.returncode == 0 and (checkout / "table.csv").read_text().count("\n") == 4
    assert [line.split()[0] for line in compared.stdout.splitlines() if "glr=" in line] == ["1", "2", "3"]

    with open(checkout / "params.yaml", "a") as file:
        file.write("  mixed:\n  - model.first_channels=1,8\n")
    git(checkout, "commit", "-qam", "a grid with a cell that cannot be built")
    mixed = ganpipe("grid", "mixed", "--seeds", "1", "--run", *settings)
    assert mixed.returncode == 2 and "mixed-first_channels=8-s0: finished" in mixed.stderr
    assert "mixed-first_channels=1-s0: ganpipe train: error: model.first_channels" in mixed.stderr
