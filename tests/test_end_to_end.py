"""The real `dvc repro` and `dvc exp run` in a checkout of their own, with MLflow afterwards."""

import json
import math
import os
import re
import shutil
import signal
import sqlite3
import subprocess
import sys
import time
from collections.abc import Callable
from contextlib import closing
from pathlib import Path
from typing import Any

import pandas as pd
import psutil
import pytest
from conftest import ROOT
from mlflow import MlflowClient
from mlflow.entities import Run

from ganpipe import params
from ganpipe.common.processes import start_of
from ganpipe.tracking.register import register
from ganpipe.tracking.sync import sync

TINY = {
    "  resolution: 28": "  resolution: 16",
    "architecture: resize": "architecture: dcgan",
    "  batch_size: 32": "  batch_size: 64",
    "drift_weight: 0.5": "drift_weight: 0.0",
    "extractor: lite2": "extractor: lite0",
    "ngf: 32": "ngf: 4",
    "ndf: 32": "ndf: 4",
    "max_images: null": "max_images: 1000",
    "count: 1500": "count: 180",
    "feature_resolution: 128": "feature_resolution: 32",
    "kid_subset_size: 100": "kid_subset_size: 20",
}
TRAIN_IMAGES, BATCH_SIZE, STEPS = 1000, 64, 32  # of two epochs
# A run by what its experiment changes: train.glr and sample.seed, as MLflow has them.
Key = tuple[str, str]
FIRST, IN_PLACE, QUEUED = ("0.001", "0"), ("0.001", "7"), ("2e-05", "0")


def environment() -> dict[str, str]:
    """Return this process's environment for DVC, with the Python of these tests first on the path."""
    kept = {k: v for k, v in os.environ.items() if not k.startswith(("DVC_", "MLFLOW_", "GANPIPE_"))}
    path = f"{Path(sys.executable).parent}{os.pathsep}{kept['PATH']}"
    return kept | {"PATH": path, "OMP_NUM_THREADS": "1"}


def dvc(checkout: Path, *words: str) -> str:
    """Run DVC and return what it printed."""
    command = [sys.executable, "-m", "dvc", *words]
    ended = subprocess.run(
        command, cwd=checkout, env=environment(), stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
    )
    assert ended.returncode == 0, ended.stdout
    return ended.stdout


def tiny_checkout(folder: Path, epochs: int) -> Path:
    """Make a folder a git checkout of the project as it is here, with a tiny setting; return it."""
    for name in ("dvc.yaml", "params.yaml", ".gitignore", ".dvcignore"):
        shutil.copy(ROOT / name, folder)
    shutil.copytree(ROOT / "ganpipe", folder / "ganpipe")  # with what is compiled already
    for stage in ("fetch", "preprocess", "train", "sample", "evaluate"):
        (folder / "stages" / stage).mkdir(parents=True)
        shutil.copy(ROOT / "stages" / stage / "README.md", folder / "stages" / stage)
    shutil.copy(ROOT / "stages/fetch/packaged.txt", folder / "stages/fetch")
    (folder / ".dvc").mkdir()
    for name in ("config", ".gitignore"):
        shutil.copy(ROOT / ".dvc" / name, folder / ".dvc")
    # Else each command starts a process that asks for DVC's newest version.
    (folder / ".dvc/config.local").write_text("[core]\n    check_update = false\n")
    shutil.copytree(ROOT / ".dvc/plots", folder / ".dvc/plots")

    text = (folder / "params.yaml").read_text()
    lines = text.splitlines()
    text = "\n".join(f"  epochs: {epochs}" if line.startswith("  epochs:") else line for line in lines) + "\n"
    for old, new in TINY.items():
        assert text.count(old) == 1, old
        text = text.replace(old, new)
    (folder / "params.yaml").write_text(text)

    identity = ["-c", "user.name=test", "-c", "user.email=test@example.com"]
    for words in (["init", "-q", "-b", "main"], ["add", "."], [*identity, "commit", "-q", "-m", "base"]):
        subprocess.run(["git", *words], cwd=folder, check=True)
    subprocess.run(["git", "config", "user.name", "test"], cwd=folder, check=True)
    subprocess.run(["git", "config", "user.email", "test@example.com"], cwd=folder, check=True)
    return folder


@pytest.fixture(scope="module")
def checkout(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The project with a tiny setting, after its first `dvc repro`."""
    folder = tiny_checkout(tmp_path_factory.mktemp("checkout"), epochs=2)
    dvc(folder, "repro")
    return folder


def runs(checkout: Path, database: str = "mlflow.db") -> dict[Key, Run]:
    """Return the MLflow runs of a checkout."""
    client = MlflowClient(f"sqlite:///{checkout}/{database}")
    experiment = client.get_experiment_by_name("ganpipe")
    assert experiment is not None
    found = client.search_runs([experiment.experiment_id])
    by_key = {(run.data.params["train.glr"], run.data.params["sample.seed"]): run for run in found}
    assert len(by_key) == len(found)
    return by_key


def assert_complete(checkout: Path, run: Run, database: str = "mlflow.db") -> None:
    """Check that a run holds every step, both grids at their images seen, and the evaluation."""
    client = MlflowClient(f"sqlite:///{checkout}/{database}")
    assert run.info.status == "FINISHED"
    steps = [point.step for point in client.get_metric_history(run.info.run_id, "train/d_loss")]
    assert steps == [BATCH_SIZE * i for i in range(1, STEPS + 1)]
    assert {"eval/kid_lite0", "eval/fd_lite0", "eval/recall", "perf/images_per_second"} <= set(
        run.data.metrics
    )
    names = [file.path for file in client.list_artifacts(run.info.run_id, "images")]
    pictures = [name for name in names if name.endswith(".png")]
    assert len([name for name in pictures if "fixed_z" in name]) == 2
    assert any("final" in name for name in pictures) and any("real_fake" in name for name in pictures)


def test_first_repro_gives_everything(checkout: Path) -> None:
    """The README's first command would not do what it promises."""
    metrics = json.loads((checkout / "stages/evaluate/metrics.json").read_text())
    assert metrics["n"] == 60 and metrics["kid_lite0"] > 0 and metrics["fd_lite0_floor"] is not None
    assert len(pd.read_csv(checkout / "stages/train/history.csv")) == STEPS
    assert {path.name for path in (checkout / "stages/train/grids").iterdir()} == {"1.png", "2.png"}
    assert_complete(checkout, runs(checkout)[FIRST])
    shown = dvc(checkout, "metrics", "show")
    assert "kid_lite0" in shown
    changed = subprocess.run(
        ["git", "status", "--porcelain"], cwd=checkout, capture_output=True, text=True
    ).stdout
    assert changed.split() == ["A", "dvc.lock"]


def test_second_repro_runs_nothing(checkout: Path) -> None:
    """Every `dvc repro` would cost a training."""
    printed = dvc(checkout, "repro")
    assert "Data and pipelines are up to date." in printed and "Running stage" not in printed


def test_experiments_run_in_place_and_from_the_queue(checkout: Path) -> None:
    """Runs in the copies that a queue makes must resume, log and finish as those in the workspace do."""
    printed = dvc(checkout, "exp", "run", "-S", "sample.seed=7")
    assert "Running stage 'sample'" in printed and "Running stage 'train'" not in printed
    changes = ["-S", "train.glr=0.00002", "-S", "sample.seed=0"]
    dvc(checkout, "exp", "run", *changes, "--queue", "--name", "rate")
    dvc(checkout, "exp", "run", "--run-all")
    found = runs(checkout)
    assert set(found) == {FIRST, IN_PLACE, QUEUED}
    for run in found.values():
        assert_complete(checkout, run)
    assert found[QUEUED].info.run_name == "rate"
    assert not list((checkout / ".ganpipe/unfinished").glob("*/"))
    table = dvc(checkout, "exp", "show", "--only-changed", "--csv")
    assert {"train.glr", "sample.seed", "kid_lite0"} <= {
        name.rpartition(":")[2] for name in table.splitlines()[0].split(",")
    }
    # "!" stands for a number that is not in git or DVC's cache.
    assert all("!" not in line for line in table.splitlines() if line.startswith(("rate", ",workspace")))
    difference = dvc(checkout, "params", "diff", "HEAD", "rate")
    assert "train.glr" in difference and "2e-05" in difference


def held(checkout: Path, run: Run, database: str = "mlflow.db") -> dict[str, Any]:
    """Return what a run holds that does not depend on when it was recorded."""
    client = MlflowClient(f"sqlite:///{checkout}/{database}")
    points = {
        key: [(point.step, point.value) for point in client.get_metric_history(run.info.run_id, key)]
        for key in run.data.metrics
    }
    files = {file.path for file in client.list_artifacts(run.info.run_id)}
    tags = {key: value for key, value in run.data.tags.items() if key.startswith(("ganpipe.", "dvc."))}
    # Recorded live, a run knows the commit that it started from; afterwards, that of the experiment.
    origin = {key: tags.pop(key, None) for key in ("ganpipe.git_commit", "ganpipe.git_dirty")}
    assert tags.pop("ganpipe.model")
    tags.pop("ganpipe.attempt", None)
    assert origin["ganpipe.git_commit"]
    return {"points": points, "files": files, "params": run.data.params, "tags": tags} | {
        "name": run.info.run_name,
        "status": run.info.status,
    }


def test_sync_makes_a_lost_database_again(checkout: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A deleted mlflow.db, here with the write-ahead log left behind, would cost every run its record."""
    before = {key: held(checkout, run) for key, run in runs(checkout).items() if key != FIRST}
    (checkout / "mlflow.db").unlink()
    (checkout / "mlflow.db-wal").write_bytes(b"what SQLite left" * 999)
    ended = subprocess.run(
        [sys.executable, "-m", "ganpipe", "sync"],
        cwd=checkout,
        env=environment(),
        capture_output=True,
        text=True,
    )
    assert ended.returncode == 0, ended.stderr
    assert ended.stdout.count("points") >= 2, ended.stdout
    # A copy: this process still holds the deleted database open, and would read that.
    with (
        closing(sqlite3.connect(checkout / "mlflow.db")) as new,
        closing(sqlite3.connect(checkout / "copy.db")) as target,
    ):
        new.backup(target)

    def assert_as_before() -> None:
        found = runs(checkout, "copy.db")
        assert {key: held(checkout, run, "copy.db") for key, run in found.items()} == before
        for run in found.values():
            assert_complete(checkout, run, "copy.db")

    assert_as_before()
    for name in [name for name in os.environ if name.startswith(("DVC_", "MLFLOW_", "GANPIPE_"))]:
        monkeypatch.delenv(name)
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{checkout}/copy.db")
    monkeypatch.chdir(checkout)
    again = sync(Path())
    assert str(again).count("complete already") >= 2, again
    assert_as_before()
    for said in ("is the generator of run rate", "has these weights already"):
        assert register(Path(), "digits", "rate")[0] == f"digits version 1 {said}"


def test_plots(checkout: Path) -> None:
    """Without them a user compares losses in a spreadsheet."""
    dvc(checkout, "plots", "show", "-o", "plots")
    page = (checkout / "plots/index.html").read_text()
    assert "d_loss" in page and "g_loss" in page and "real_fake.png" in page and "grids_2.png" in page


@pytest.mark.parametrize(
    ("command", "signum", "epochs"),
    [
        ("dvc repro train", signal.SIGTERM, 24),
        *(
            pytest.param(command, signum, 400, marks=pytest.mark.long)
            for command in ("dvc repro train", "ganpipe train")
            for signum in (signal.SIGTERM, signal.SIGINT, signal.SIGUSR1)
        ),
    ],
)
def test_a_signal_keeps_everything_and_the_next_start_goes_on(
    checkout: Path, command: str, signum: signal.Signals, epochs: int
) -> None:
    """A cluster's stop, Ctrl-C, or the end of dvc would cost a night, or count as a finished training."""
    rate = f"0.000{signum}{len(command)}{epochs}1"  # one of its own, and so a run of its own
    key = (rate, str(params.load(checkout / "params.yaml").sample.seed))
    text = (checkout / "params.yaml").read_text()
    for name, value in {"glr": rate, "epochs": epochs}.items():
        text = re.sub(rf"\n  {name}: \S+", f"\n  {name}: {value}", text)
    (checkout / "params.yaml").write_text(text)
    words = [sys.executable, "-m", *command.split()]
    again = "./mlflow.db"  # under its plain name this process may hold one that another test deleted

    # One that has trained some steps, when its whole process group gets the signal.
    process = begin(checkout, words)
    until(lambda: len(history(checkout)) > 20)
    trainer = psutil.Process(json.loads((checkout / ".ganpipe/train.pid").read_text())["pid"])
    os.killpg(process.pid, signum)
    began = time.monotonic()
    (folder,) = (checkout / ".ganpipe/unfinished").glob("*/")
    until(lambda: bool([*folder.rglob(f"{history(checkout)[-1]:09d}.checkpoint")]))
    assert time.monotonic() - began < 30
    assert process.wait() != 0 if command.startswith("dvc") else process.wait() == 128 + signum
    until(lambda: start_of(trainer.pid) == math.inf)
    done = history(checkout)
    assert done == list(range(1, len(done) + 1))
    # Told by its mirror, a moment later.
    until(lambda: key in (found := runs(checkout, again)) and found[key].info.status == "KILLED")

    # The next start.
    process = begin(checkout, words)
    if epochs > 100:  # long enough for the mirror, which needs some seconds, to be seen
        until(lambda: runs(checkout, again)[key].info.status == "RUNNING")
        assert process.poll() is None
    assert process.wait() == 0
    assert f"resuming after step {done[-1]} of" in (checkout.parent / "said").read_text()
    table = pd.read_csv(checkout / "stages/train/history.csv")
    assert table.step.tolist() == list(range(1, -(-epochs * TRAIN_IMAGES // BATCH_SIZE) + 1))
    run = runs(checkout, again)[key]
    client = MlflowClient(f"sqlite:///{checkout}/{again}")
    steps = [point.step for point in client.get_metric_history(run.info.run_id, "train/d_loss")]
    assert run.info.status == "FINISHED" and steps == table.nimg.tolist()
    assert not list((checkout / ".ganpipe/unfinished").glob("*/"))


def begin(checkout: Path, words: list[str]) -> subprocess.Popen[bytes]:
    """Start a command in a process group of its own, what it says in a file."""
    with open(checkout.parent / "said", "wb") as said:
        return subprocess.Popen(
            words,
            cwd=checkout,
            env=environment() | {"GANPIPE_LOG_SECONDS": "0"},
            start_new_session=True,
            stdout=said,
            stderr=said,
        )


def history(checkout: Path) -> list[int]:
    """Return the steps in the history of the unfinished training."""
    paths = list((checkout / ".ganpipe/unfinished").glob("*/history.csv"))
    lines = paths[0].read_text().splitlines(keepends=True)[1:] if paths else []
    return [int(line.split(",")[0]) for line in lines if line.endswith("\n")]


def until(done: Callable[[], bool]) -> None:
    """Wait until something holds."""
    deadline = time.monotonic() + 120
    while not done():
        assert time.monotonic() < deadline
        time.sleep(0.01)
