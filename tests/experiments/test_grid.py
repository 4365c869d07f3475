"""Grids and single recipes as DVC experiments: queued once, checked before dvc starts, failures explained."""

import os
import shlex
import shutil
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
from conftest import ROOT
from mlflow import MlflowClient
from ruamel.yaml import YAML

from ganpipe import params
from ganpipe.common.errors import UserError
from ganpipe.experiments import recipes, revisions
from ganpipe.experiments.grid import PATIENCE, _poll_queue, failure_reason, grid, planned

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
    """A git checkout of the project's code and params, committed; it becomes the working directory."""
    folder = tmp_path / "checkout"
    folder.mkdir()
    for name in ("dvc.yaml", "params.yaml", ".gitignore", ".dvcignore"):
        shutil.copy(ROOT / name, folder)
    shutil.copytree(ROOT / "ganpipe", folder / "ganpipe")  # with what is compiled already
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
    """Return name → params of the experiments in DVC's queue, read from git."""
    with revisions.open_repo(checkout) as repo:
        entries = list(repo.experiments.celery_queue.iter_queued())
    values = {}
    for entry in entries:
        text = git(checkout, "show", f"{entry.stash_rev}:params.yaml")
        values[entry.name] = params.parse(YAML(typ="safe", pure=True).load(text), entry.name)
    assert len(values) == len(entries)
    return values


def test_each_cell_and_seed_is_queued_once(checkout: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """A failure means that a cell is queued twice, left out, or with another cell's params."""
    grid(checkout, GRID, 1, TINY)
    assert set(queued(checkout)) == set(NAMES[::2])
    grid(checkout, GRID, 2, TINY)
    experiments = queued(checkout)
    assert set(experiments) == set(NAMES)
    assert "3 of 6 experiments queued, 3 queued before" in capsys.readouterr().out
    for i, name in enumerate(NAMES):
        values = experiments[name]
        rates = (values.train.dlr, values.train.glr, values.train.seed)
        assert rates == (0.0064, (0.0032, 0.00128, 0.00064)[i // 2], i % 2)
        assert values.train.snapshot_epochs == [1] and values.train.ema_halflife_kimg is None
    with pytest.raises(UserError) as refused:
        grid(checkout, GRID, 1, [*TINY, "train.epochs=2"])
    lines = str(refused.value).splitlines()
    assert [line.partition(": ")[0] for line in lines] == NAMES[::2]
    assert all("queued with other params or code; `dvc queue remove" in line for line in lines)
    assert set(queued(checkout)) == set(NAMES) and git(checkout, "status", "--porcelain") == ""


def test_bad_cells_are_refused_before_any_is_queued(checkout: Path) -> None:
    """A failure means that half a grid runs for a night before the first wrong cell shows."""
    with open(checkout / "params.yaml", "a") as file:
        file.write("  bad:\n  - preprocess.resolution=64,50\n  - train.glr=0.0001,fast\n")
        file.write("  twins:\n  - train.epochs=1,01\n")
    with pytest.raises(UserError) as refused:
        grid(checkout, "bad")
    assert [line.partition(":")[0] for line in str(refused.value).splitlines()] == [
        "bad-resolution=64-glr=fast",
        "bad-resolution=50-glr=0.0001",
        "bad-resolution=50-glr=fast",
    ]
    with pytest.raises(UserError, match="twins-epochs=01: the cell twins-epochs=1 has the same params"):
        grid(checkout, "twins")
    with pytest.raises(UserError, match="grids.bda: no such grid"):
        grid(checkout, "bda")
    assert not queued(checkout)


def test_pictures_that_a_queued_copy_lacks_are_refused(checkout: Path, tmp_path: Path) -> None:
    """A failure means that each cell fails at its start, in a log that nobody reads."""
    (checkout / "pictures").mkdir()
    (checkout / "pictures/1.png").touch()

    def plan(path: str) -> None:
        planned(params.load(), checkout, GRID, 1, [*TINY, "fetch.source=folder", f"fetch.path={path}"])

    with pytest.raises(UserError, match="fetch.source=folder: it reads your own pictures; set fetch.path"):
        plan("stages/fetch/packaged.txt")
    with pytest.raises(UserError, match="fetch.path: elsewhere does not exist"):
        plan("elsewhere")
    with pytest.raises(UserError, match=r"only tracked files: give an absolute path, or run `dvc add"):
        plan("pictures")
    plan(str(checkout / "pictures"))
    (checkout / "pictures.dvc").touch()
    git(checkout, "add", "pictures.dvc")
    plan("pictures")
    plan("pictures/1.png")


def ganpipe(*words: str, **environment: str) -> subprocess.CompletedProcess[str]:
    """Run a command in the working directory."""
    return subprocess.run(
        [sys.executable, "-m", "ganpipe", *words],
        env=os.environ | {"OMP_NUM_THREADS": "1", "COLUMNS": "200"} | environment,
        capture_output=True,
        text=True,
    )


def options(settings: list[str]) -> list[str]:
    """Return settings as options of a command."""
    return [word for setting in settings for word in ("-S", setting)]


def test_a_recipe_is_queued_with_exactly_its_params(checkout: Path, tmp_path: Path) -> None:
    """A failure means that `ganpipe run` starts another experiment than asked, or prints another command."""
    pictures = tmp_path / """it's "a" (b), c [d]"""
    pictures.mkdir()
    settings = [
        "train.snapshot_epochs=[1, 3]",
        "train.glr=1e-05",
        "fetch.source=folder",
        f"fetch.path={pictures}",
    ]
    ended = ganpipe("run", "xin2024-8", *options(settings), "--name", "mine", "--queue")
    assert ended.returncode == 0, ended.stderr
    default = params.load()
    expected = recipes.apply_settings(
        default, recipes.recipe_settings(default, "xin2024-8", settings), "test"
    )
    assert queued(checkout) == {"mine": expected}
    assert expected.train.snapshot_epochs == [1, 3] and expected.fetch.path == str(pictures)
    line = ended.stdout.splitlines()[0]
    assert line.startswith("dvc exp run --queue --name mine -S ") and shlex.split(line)[:3] == [
        "dvc",
        "exp",
        "run",
    ]
    (checkout / "train.glr=1e-05").touch()  # a name that a pattern without quotes could match
    command = f"{shlex.quote(sys.executable)} -m {line.replace('--name mine', '--name pasted')}"
    subprocess.run(["bash", "-O", "failglob", "-c", command], check=True, stdout=subprocess.DEVNULL)
    assert queued(checkout) == {"mine": expected, "pasted": expected}


def test_a_wrong_recipe_is_refused_before_dvc_starts(checkout: Path, tmp_path: Path) -> None:
    """A failure means that a mistake shows only after dvc has started, or with a traceback."""
    ended = ganpipe("run", "dgcan")
    assert ended.returncode == 2 and "recipes.dgcan: no such recipe" in ended.stderr and not ended.stdout
    ended = ganpipe("run", "dcgan", "-S", "train.glr=fast", "-S", "train.gglr=1")
    lines = ended.stderr.splitlines()
    assert ended.returncode == 2 and not ended.stdout and len(lines) == 2
    assert all(line.startswith("ganpipe run: error: dcgan: train.g") for line in lines)
    ended = ganpipe("run", "xin2024-5", "--queue", "-S", "fetch.source=folder")
    assert ended.returncode == 2 and "your own pictures; set fetch.path" in ended.stderr and not ended.stdout
    assert not queued(checkout) and git(checkout, "status", "--porcelain") == ""
    os.mkfifo(pictures := tmp_path / "cat.png")
    ended = ganpipe("run", "beyond", "-S", f"fetch.path={tmp_path}")
    assert ended.returncode == 2 and f"DVC cannot hash {pictures}" in ended.stderr and not ended.stdout


def test_a_recipe_runs_with_this_python_and_ends_with_dvcs_exit_code(checkout: Path) -> None:
    """A failure means that stages run another Python, or that a script takes a failed run for a success."""
    (checkout / "empty").mkdir()
    settings = ["fetch.source=folder", "fetch.path=empty"]
    ended = ganpipe("run", "dcgan", *options(settings), PATH="/usr/bin:/bin")
    assert "ganpipe fetch: error: fetch" in ended.stderr and "failed to reproduce 'fetch'" in ended.stderr
    assert ended.returncode == 255


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
def test_the_reason_is_the_line_that_explains_the_failure(log: str, reason: str) -> None:
    """A failure means that users see `failed to reproduce 'train'` instead of the reason."""
    assert failure_reason(log).startswith(reason)


def test_a_worker_that_ended_is_started_again(monkeypatch: pytest.MonkeyPatch) -> None:
    """One may end just as a grid begins after another one: the night would go on with half of the cores."""
    now, workers, starts = [100.0], [0], list[float]()

    def start(*_: object) -> None:
        starts.append(now[0])
        workers[0] = 2

    def sleep(seconds: float) -> None:
        now[0] += seconds

    clock = SimpleNamespace(monotonic=lambda: now[0], sleep=sleep)
    monkeypatch.setattr("ganpipe.experiments.grid.time", clock)
    monkeypatch.setattr("ganpipe.experiments.grid._start_workers", start)
    queue = SimpleNamespace(iter_active=lambda: ["running"] * workers[0])
    waiting = dict.fromkeys("abc", "cell")
    looks = _poll_queue(queue, waiting, ROOT, 2)
    for _ in range(20):
        next(looks)
    assert starts == [100]
    workers[0], ended = 1, now[0]
    for _ in range(20):
        next(looks)
    assert len(starts) == 2 and starts[1] - ended > PATIENCE / 2
    # The last cell needs no second worker.
    workers[0] = 1
    del waiting["a"], waiting["b"]
    for _ in range(20):
        next(looks)
    assert len(starts) == 2


@pytest.mark.long
def test_a_grid_runs_once_survives_a_failure_and_is_compared(checkout: Path) -> None:
    """A failure means an incomplete or repeated run, no ranking, or a failed cell that stops another."""
    settings = options(TINY)
    ended = ganpipe("grid", GRID, "--seeds", "2", "--run", *settings)
    assert ended.returncode == 0, ended.stderr
    assert ended.stderr.count("finished") == 6
    client = MlflowClient(f"sqlite:///{checkout}/mlflow.db")
    experiment = client.get_experiment_by_name("ganpipe")
    assert experiment is not None
    runs = client.search_runs([experiment.experiment_id])
    assert {run.info.run_name for run in runs} == set(NAMES) and len(runs) == 6
    for run in runs:
        assert run.info.status == "FINISHED" and "eval/kid_lite2" in run.data.metrics
        assert len(client.get_metric_history(run.info.run_id, "train/d_loss")) == 18

    again = ganpipe("grid", GRID, "--seeds", "2", "--run", *settings)
    assert "0 of 6 experiments queued, 6 finished before" in again.stdout
    compared = ganpipe("compare", "--grid", GRID, "--csv", "table.csv", "--html", "page.html")
    assert compared.returncode == 0 and (checkout / "table.csv").read_text().count("\n") == 4
    cells = [line.split()[0] for line in compared.stdout.splitlines() if line.lstrip().startswith("glr=")]
    assert set(cells[:3]) == {"glr=0.0032", "glr=0.00128", "glr=0.00064"}
    assert f"{cells[0]}: lowest KID" in compared.stdout or f"{cells[0]}: better than all" in compared.stdout

    with open(checkout / "params.yaml", "a") as file:
        file.write("  mixed:\n  - model.first_channels=1,8\n")
    git(checkout, "commit", "-qam", "a grid with a cell that cannot be built")
    mixed = ganpipe("grid", "mixed", "--seeds", "1", "--run", *settings)
    assert mixed.returncode == 2 and "mixed-first_channels=8-s0: finished" in mixed.stderr
    assert "mixed-first_channels=1-s0: ganpipe train: error: model.first_channels" in mixed.stderr
