"""The MLflow mirror is complete, sends nothing twice and never delays a stage; real databases, no mocks."""

import base64
import io
import json
import math
import multiprocessing
import os
import re
import shutil
import signal
import socket
import sqlite3
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable
from contextlib import closing
from pathlib import Path
from typing import Any
from urllib.request import urlopen

import numpy as np
import psutil
import pytest
from conftest import save_generator, save_later_outputs, updated
from mlflow import MlflowClient
from mlflow.entities import Metric, Run
from PIL import Image
from ruamel.yaml import YAML

from ganpipe import models
from ganpipe.commands.doctor import doctor
from ganpipe.commands.trained import find_generator
from ganpipe.common import dataset
from ganpipe.common.errors import Interrupted, UserError
from ganpipe.common.files import main_checkout
from ganpipe.models import generator
from ganpipe.params import Params
from ganpipe.tracking.identity import TRACKED, Stage, identify
from ganpipe.tracking.mirror import ARTIFACTS, left_running, recording, stage_folders, status_after, update
from ganpipe.tracking.run import ATTEMPT, TABLES, Status
from ganpipe.tracking.sync import sync

BATCH_SIZE, TRAIN_IMAGES = 16, 20
STEPS, FEW = 600, 12  # with STEPS, the points of a run need several requests
KEYS = tuple(TABLES["history.csv"].values())
SHEETS = ("epochs", "traversal", "interpolation", "intervals", "snapshots", "nearest", "features")


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The main checkout of all tests' runs: one database, because creating one takes seconds."""
    return tmp_path_factory.mktemp("home")


@pytest.fixture(autouse=True)
def environment(home: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Work as DVC's queue does: in a temporary folder, with DVC_ROOT naming the main checkout."""
    for name in ("MLFLOW_TRACKING_URI", "MLFLOW_EXPERIMENT_NAME", "DVC_EXP_NAME", "DVC_EXP_BASELINE_REV"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("DVC_ROOT", str(home))
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir(tmp_path / "elsewhere")


@pytest.fixture
def checkout(tmp_path: Path, small_params: Params, write_packed: Callable[..., Path]) -> Callable[..., Path]:
    """Return a function that makes a checkout with all stages' files; each seed is another experiment."""

    def make(seed: int, steps: int = FEW, root: Path = tmp_path / "checkout", **changes: Any) -> Path:
        values = updated(
            small_params, train__seed=seed, train__batch_size=BATCH_SIZE, train__glr=0.0002, **changes
        )
        for name in ("train", "sample", "evaluate"):
            (root / "ganpipe" / name).mkdir(parents=True)
            (root / "ganpipe" / name / "stage.py").write_text(f'"""{name}."""\n')
        YAML().dump(values.model_dump(), root / "params.yaml")
        data = write_packed(root, np.zeros((TRAIN_IMAGES, 8, 8, 1), np.uint8))
        train = root / "stages/train"
        (train / "grids").mkdir(parents=True)
        model = values.model.model_dump() | {"train": values.train.model_dump(), "batch_size": BATCH_SIZE}
        model |= {"train_images": TRAIN_IMAGES, "nimg": steps * BATCH_SIZE}
        model |= {"ended": "finished", "interventions": 0}
        model["data_digest"] = dataset.load(data).digest
        (train / "model.json").write_text(json.dumps(model))
        grow(train, steps)
        for epoch in (1, 2, 10):
            Image.new("L", (32, 32), epoch).save(train / f"grids/{epoch}.png")
        save_later_outputs(root, Image.new("RGB", (32, 32), (seed % 256, 0, 0)))
        metrics = {"kid_lite0": 0.1 + 0.2, "fd_lite0_floor": None, "n": 20, "protocol": "lite0"}
        (root / "stages/evaluate/metrics.json").write_text(json.dumps(metrics))
        return root

    return make


def grow(folder: Path, steps: int, tail: str = "") -> None:
    """Write the tables of the first `steps` steps; d_loss is the step's reciprocal."""
    rows = [f"{i},{i * BATCH_SIZE},{i / 2},0,{1 / i:.6g},2.5,0.75,0.25,8,9\n" for i in range(1, steps + 1)]
    header = "step,nimg,epoch,attempt,d_loss,g_loss,d_real,d_fake,d_grad_norm,g_grad_norm\n"
    (folder / "history.csv").write_text(header + "".join(rows) + tail)
    speeds = [f"{i},{i * BATCH_SIZE},{i / 10},{100 + i}\n" for i in range(10, steps + 1, 10)]
    (folder / "perf.csv").write_text("step,nimg,seconds,images_per_second\n" + "".join(speeds))
    judged = [f"{i},{i * BATCH_SIZE},{1 / i:.6g},{i}.5,40.5\n" for i in range(100, steps + 1, 100)]
    (folder / "evals.csv").write_text("step,nimg,kid_light,spread,real_spread\n" + "".join(judged))
    (folder / "events.csv").write_text("step,attempt,what,action,back_to,text\n")


def client_of(folder: Path) -> MlflowClient:
    """Open a database without ganpipe.tracking."""
    return MlflowClient(tracking_uri=f"sqlite:///{folder}/mlflow.db")


@pytest.fixture
def client(home: Path) -> MlflowClient:
    """A client of all tests' database."""
    return client_of(home)


def record(
    root: Path,
    last: Stage,
    train_folder: Path | None = None,
    status: Status = "FINISHED",
    name: str | None = None,
) -> str:
    """Bring the run of a checkout's experiment up to date and return its id."""
    folders = stage_folders(root, last, train_folder)
    return update(main_checkout(root), identify(root, name), folders, status).id


def runs(client: MlflowClient, experiment: str = "ganpipe") -> list[Run]:
    """Return all runs of an experiment that are not deleted."""
    named = client.get_experiment_by_name(experiment)
    return list(client.search_runs([named.experiment_id])) if named else []


def run_of(client: MlflowClient, seed: int, status: str | None = None, steps: int = 0) -> Run:
    """Return the one run of a training seed, once it has a status and the losses of `steps` steps."""
    deadline = time.monotonic() + 120
    while time.monotonic() < deadline:
        of_seed = [run for run in runs(client) if run.data.params.get("train.seed") == str(seed)]
        assert len(of_seed) <= 1
        # `grow` writes the step's reciprocal as d_loss.
        done = [run for run in of_seed if 1 / run.data.metrics.get("train/d_loss", math.inf) > steps - 0.5]
        if done and status in (None, done[0].info.status):
            return done[0]
        time.sleep(0.1)
    pytest.fail(f"the run of seed {seed} did not reach step {steps} and status {status}")


def points(client: MlflowClient, run: str, key: str) -> list[tuple[int, float]]:
    """Return a metric's steps and values, in order."""
    return sorted((metric.step, metric.value) for metric in client.get_metric_history(run, key))


def pictures(client: MlflowClient, run: str) -> Counter[tuple[str, int]]:
    """Count a run's pictures by key and step, read from MLflow's file names."""
    names = [Path(file.path).name for file in client.list_artifacts(run, "images")]
    pattern = re.compile(r"(.+?)[+%]step[+%](\d+)[+%].*(?<!compressed)\.png")
    return Counter((match[1], int(match[2])) for name in names if (match := pattern.match(name)))


def state(client: MlflowClient, run: str) -> dict[str, Any]:
    """Return everything that a run holds."""
    data, info = client.get_run(run).data, client.get_run(run).info
    artifacts = [file.path for folder in (None, "images") for file in client.list_artifacts(run, folder)]
    history = {key: points(client, run, key) for key in data.metrics}
    return {"info": dict(info), "tags": data.tags, "params": data.params, "at": artifacts, "points": history}


def closed_address() -> str:
    """Return an address on loopback where nothing listens."""
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return f"http://127.0.0.1:{listener.getsockname()[1]}"


def test_run_is_complete(checkout: Callable[..., Path], client: MlflowClient, home: Path) -> None:
    """A failure means that MLflow shows less than the files in stages/ hold, or other values."""
    root = checkout(seed=1, steps=STEPS)
    run = record(root, "evaluate")
    held = client.get_run(run)
    for key, values in {
        "train/d_loss": [float(f"{1 / i:.6g}") for i in range(1, STEPS + 1)],
        "train/g_loss": [2.5] * STEPS,
        "train/d_real": [0.75] * STEPS,
        "train/d_fake": [0.25] * STEPS,
        "train/d_grad_norm": [8.0] * STEPS,
        "train/g_grad_norm": [9.0] * STEPS,
    }.items():
        expected = [(i * BATCH_SIZE, value) for i, value in enumerate(values, 1)]
        assert points(client, run, key) == expected
    speeds = [(i * BATCH_SIZE, 100.0 + i) for i in range(10, STEPS + 1, 10)]
    assert points(client, run, "perf/images_per_second") == speeds
    spreads = [(i * BATCH_SIZE, i + 0.5) for i in range(100, STEPS + 1, 100)]
    assert points(client, run, "train/spread") == spreads
    assert held.data.tags["ganpipe.ended"] == "finished"
    last = STEPS * BATCH_SIZE
    evals = {key: points(client, run, key) for key in held.data.metrics if key.startswith("eval/")}
    assert evals == {"eval/kid_lite0": [(last, 0.1 + 0.2)], "eval/n": [(last, 20.0)]}
    grids = {("samples~fixed_z", epoch * TRAIN_IMAGES): 1 for epoch in (1, 2, 10)}
    finals = {("samples~final", 0): 1, ("samples~real_fake", 0): 1}
    finals |= {(f"sheets~{name}", 0): 1 for name in SHEETS}
    assert pictures(client, run) == grids | finals
    assert held.data.params["train.seed"] == "1"
    assert held.data.params["train.snapshot_epochs"] == "[1,2]"
    assert held.info.status == "FINISHED"
    assert held.info.run_name == f"repro-{held.data.tags['ganpipe.key'][:6]}"
    assert held.info.artifact_uri.startswith((home / "mlruns").as_uri())
    files = {file.path for file in client.list_artifacts(run)}
    tables = {"metrics.json", "card.md", "snapshots.csv", "intervals.csv", "intervals.json"}
    sheets = {f"{name}.png" for name in (*SHEETS, "grid", "real_fake")} | {"interpolation.webp"}
    assert files == {"images", "params.yaml", "events.csv"} | tables | sheets
    stored = home / "mlruns/ganpipe" / run / "artifacts"
    assert YAML(typ="safe").load(stored / "params.yaml")["train"]["batch_size"] == BATCH_SIZE
    grid = next(path for path in (stored / "images").glob("*step+200+*.png"))
    assert np.asarray(Image.open(grid)).min() == np.asarray(Image.open(grid)).max() == 10
    assert list(Path().iterdir()) == [], "a file was left in the current folder"


def test_the_snapshots_numbers_are_curves(checkout: Callable[..., Path], client: MlflowClient) -> None:
    """A failure means that runs cannot be compared after the same epochs, or that old numbers stay."""
    root = checkout(seed=92)
    table = root / "stages/evaluate/snapshots.csv"
    table.write_text("epoch,nimg,kid,fd,recall\n1,20,0.5,90.0,\n10,200,0.25,80.0,0.125\n")
    run = record(root, "evaluate")
    assert record(root, "evaluate") == run
    assert points(client, run, "snapshots/kid") == [(20, 0.5), (200, 0.25)]
    assert points(client, run, "snapshots/recall") == [(200, 0.125)]
    assert {key for key in client.get_run(run).data.metrics if key.startswith("snapshots/")} == {
        f"snapshots/{name}" for name in ("kid", "fd", "recall")
    }
    table.write_text(table.read_text().replace("0.25", "0.75"))  # evaluated again, on a GPU
    record(root, "evaluate")
    record(root, "evaluate")
    assert points(client, run, "snapshots/kid") == [(20, 0.5), (200, 0.25), (200, 0.75)]
    assert client.get_run(run).data.metrics["snapshots/kid"] == 0.75


def test_pages_of_a_grid(
    checkout: Callable[..., Path], client: MlflowClient, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A failure means that a run's page lacks scores, data or links to the grid's other runs."""
    monkeypatch.setenv("MLFLOW_EXPERIMENT_NAME", "pages")
    ids = {}
    for seed in (0, 1):
        root = checkout(seed=70 + seed, steps=STEPS, root=tmp_path / f"checkout{seed}")
        ids[seed] = record(root, "evaluate", name=f"xin2024-two-rates-glr=2-s{seed}")
    first = client.get_run(ids[0])
    assert {run.data.tags["ganpipe.grid"] for run in runs(client, "pages")} == {"xin2024-two-rates"}
    assert first.data.tags["ganpipe.cell"] == "xin2024-two-rates-glr=2"
    note = first.data.tags["mlflow.note.content"]
    number = first.info.experiment_id
    assert f"[xin2024-two-rates-glr=2-s1](#/experiments/{number}/runs/{ids[1]})" in note
    assert ids[0] not in note and "`mnist5k`, 16 px, digest" in note
    assert first.inputs is not None
    (data,) = first.inputs.dataset_inputs
    assert data.dataset.name == "mnist5k"
    assert first.data.tags["ganpipe.data_digest"].startswith(data.dataset.digest)
    scalars = {key: value for key, value in first.data.metrics.items() if key[:5] in ("final", "best/")}
    last = [float(f"{1 / i:.6g}") for i in range(571, STEPS + 1)]
    assert scalars.pop("final/d_loss") == pytest.approx(sum(last) / 30)
    assert scalars.pop("final/images_per_second") == 405.0
    assert scalars == {
        "final/g_loss": 2.5,
        "final/seconds": 60.0,
        "final/kid_light": float(f"{1 / 600:.6g}"),
        "best/kid_light": float(f"{1 / 600:.6g}"),
        "best/nimg": 600.0 * BATCH_SIZE,
    }
    before = state(client, ids[1])
    record(tmp_path / "checkout0", "evaluate", name="xin2024-two-rates-glr=2-s0")
    assert state(client, ids[1]) == before and state(client, ids[0])["tags"] == first.data.tags


def test_the_generator_is_the_runs_model(
    checkout: Callable[..., Path],
    client: MlflowClient,
    small_params: Params,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """A failure means a model that is pickled code, generates other images, or is sent at each update."""
    import mlflow

    root = checkout(seed=75)
    train = root / "stages/train"
    content = json.loads((train / "model.json").read_text())
    save_generator(train, small_params)
    (train / "model.json").write_text(json.dumps(content | json.loads((train / "model.json").read_text())))
    expected = find_generator(None, root)
    run = record(root, "evaluate")
    uri = f"runs:/{run}/generator"
    monkeypatch.setenv("MLFLOW_TRACKING_URI", client.tracking_uri)
    answer = mlflow.pyfunc.load_model(uri).predict(["x"], params={"n": 3, "seed": 5, "z_scale": 0.5})
    z = generator.z_of_seeds(expected.spec.params, 5, 3, 0.5)
    images = [np.asarray(Image.open(io.BytesIO(base64.b64decode(image["png"])))) for image in answer]
    assert np.array_equal(np.stack(images), generator.images_of(expected.network, z)[..., 0])
    assert [image["seed"] for image in answer] == [5, 6, 7]
    loaded = find_generator(uri, Path(os.environ["DVC_ROOT"]))
    assert np.array_equal(generator.images_of(loaded.network, z), generator.images_of(expected.network, z))
    with pytest.raises(UserError, match=r"runs:/0/generator: cannot be downloaded from MLflow at sqlite"):
        find_generator("runs:/0/generator", Path(os.environ["DVC_ROOT"]))
    local = Path(client.download_artifacts(run, "generator", str(root)))
    names = {path.suffix for path in local.rglob("*") if path.is_file()}
    assert ".pkl" not in names and ".pt" not in names
    before = client.get_run(run).data.tags["ganpipe.model"]
    record(root, "evaluate")
    assert client.get_run(run).data.tags["ganpipe.model"] == before
    other = models.build_generator(expected.spec)
    generator.save_generator(other, expected.spec, train / "generator.safetensors")
    record(root, "evaluate")
    after = client.get_run(run).data.tags["ganpipe.model"]
    models_held = client.search_logged_models([client.get_run(run).info.experiment_id])
    assert [model.model_id for model in models_held] == [after] and after != before


def test_second_call_changes_nothing(checkout: Callable[..., Path], client: MlflowClient) -> None:
    """A failure means that points or pictures are sent twice, or that a run's end time changes."""
    root = checkout(seed=2, steps=STEPS)
    run = record(root, "evaluate")
    before, count = state(client, run), len(runs(client))
    assert record(root, "evaluate") == run
    assert state(client, run) == before
    assert len(runs(client)) == count


def test_growing_history_arrives_once(checkout: Callable[..., Path], client: MlflowClient) -> None:
    """A failure means lost or repeated steps in a live run, or that a half-written line is read."""
    root = checkout(seed=3, steps=1)
    folder = root / "stages/train"
    for steps, tail in (
        (1, ""),
        (7, "8,128,4.0,0.12"),
        (8, ""),
        (8, "9"),
        (333, "334,5344,167,1"),
        (600, ""),
    ):
        grow(folder, steps, tail)
        run = record(root, "train", folder, status="RUNNING")
        assert [step for step, _ in points(client, run, "train/d_loss")] == [
            BATCH_SIZE * i for i in range(1, steps + 1)
        ]
    assert client.get_run(run).info.status == "RUNNING"


def test_rescued_attempts_stand_apart(checkout: Callable[..., Path], client: MlflowClient) -> None:
    """A failure means that a rescue is not visible in the curves, or that a step has two values."""
    root = checkout(seed=30, steps=5)
    folder = root / "stages/train"
    record(root, "train", folder, status="RUNNING")
    lines = (folder / "history.csv").read_text().splitlines(keepends=True)
    again = [f"{i},{i * BATCH_SIZE},{i / 2},1,0.5,2.5,0.75,0.25,8,9\n" for i in (4, 5, 6)]
    (folder / "history.csv").write_text("".join(lines[:4] + again))
    (folder / "events.csv").write_text("step,attempt,what,action,back_to,text\n6,0,diverged,rescue,3,nan\n")
    model = json.loads((folder / "model.json").read_text()) | {"interventions": 1}
    (folder / "model.json").write_text(json.dumps(model))
    run = record(root, "train")
    record(root, "train")
    assert [step for step, _ in points(client, run, "train/d_loss")] == [BATCH_SIZE * i for i in range(1, 6)]
    rescued = points(client, run, "train/d_loss attempt 1")
    assert rescued == [(BATCH_SIZE * i, 0.5) for i in (4, 5, 6)]
    assert client.get_run(run).data.tags["ganpipe.interventions"] == "1"
    assert "events.csv" in {file.path for file in client.list_artifacts(run)}


def test_partly_sent_run_is_completed(checkout: Callable[..., Path], client: MlflowClient) -> None:
    """A failure means that an interrupted update leaves a gap or repeated steps for good."""
    root = checkout(seed=4, steps=5)
    run = record(root, "train")
    grow(root / "stages/train", STEPS)
    # Another client died while it sent the next rows one metric at a time.
    ahead = [Metric("train/d_loss", 1.0 / i, 0, i * BATCH_SIZE) for i in range(6, 301)]
    client.log_batch(run, metrics=ahead)
    client.log_batch(run, metrics=[Metric("train/g_loss", 2.5, 0, i * BATCH_SIZE) for i in range(6, 9)])
    record(root, "train")
    for key in KEYS:
        assert [step for step, _ in points(client, run, key)] == [BATCH_SIZE * i for i in range(1, STEPS + 1)]


def test_picture_without_preview_is_sent_again(
    checkout: Callable[..., Path], client: MlflowClient, home: Path
) -> None:
    """A failure means that a kill between a picture and its preview leaves a hole in the UI's slider."""
    root = checkout(seed=5)
    run = record(root, "evaluate")
    images = home / "mlruns/ganpipe" / run / "artifacts/images"
    for path in [*images.glob("*fixed_z+step+40+*.webp"), *images.glob("*final*.webp")]:
        path.unlink()
    record(root, "evaluate")
    assert len(list(images.glob("*fixed_z+step+40+*.webp"))) == len(list(images.glob("*final*.webp"))) == 1


def test_changed_results_replace_the_old(checkout: Callable[..., Path], client: MlflowClient) -> None:
    """A failure means that a stage that ran again, such as on a GPU, still shows its old result."""
    root = checkout(seed=6)
    run = record(root, "evaluate")
    before = client.get_run(run).data.tags
    Image.new("RGB", (32, 32), (0, 99, 0)).save(root / "stages/sample/grid.png")
    (root / "stages/evaluate/metrics.json").write_text(json.dumps({"kid_lite0": 0.5, "n": 20}))
    record(root, "evaluate")
    data = client.get_run(run).data
    assert data.metrics["eval/kid_lite0"] == 0.5
    assert [value for _, value in points(client, run, "eval/n")] == [20.0]
    assert pictures(client, run)["samples~final", 0] == 1
    assert data.tags["ganpipe.sha256.grid.png"] != before["ganpipe.sha256.grid.png"]
    local = client.download_artifacts(run, "grid.png", str(root))
    assert Image.open(local).getpixel((0, 0)) == (0, 99, 0)


def test_later_stages_are_left_out(checkout: Callable[..., Path], client: MlflowClient) -> None:
    """A failure means that a new run shows the numbers and pictures of the experiment before it."""
    root = checkout(seed=7)
    run = record(root, "train")
    assert not [key for key in client.get_run(run).data.metrics if key.startswith("eval/")]
    assert {key for key, _ in pictures(client, run)} == {"samples~fixed_z"}
    record(root, "sample")
    assert {key for key, _ in pictures(client, run)} == {
        *("samples~fixed_z", "samples~final"),
        *(f"sheets~{name}" for name in ("epochs", "traversal", "interpolation")),
    }


def test_params_data_and_code_make_the_run(checkout: Callable[..., Path], client: MlflowClient) -> None:
    """A failure means that two experiments share a run, or one experiment has two."""
    root = checkout(seed=8)
    first = record(root, "evaluate")
    text = (root / "params.yaml").read_text()
    (root / "params.yaml").write_text(re.sub(r"count: \d+", "count: 21", text))
    assert record(root, "evaluate") != first
    (root / "params.yaml").write_text("# a comment is no other experiment\n" + text)
    assert record(root, "evaluate") == first
    (root / "ganpipe/evaluate/stage.py").write_text("print()\n")
    assert record(root, "evaluate") != first
    (root / "ganpipe/evaluate/stage.py").write_text('"""evaluate."""\n')
    assert record(root, "evaluate") == first
    client.delete_run(first)
    again = record(root, "evaluate")
    assert again != first
    assert len(points(client, again, "train/d_loss")) == FEW


def test_model_of_other_params_is_refused(checkout: Callable[..., Path], client: MlflowClient) -> None:
    """A failure means that a changed parameter is shown with the numbers of the old one."""
    root = checkout(seed=9)
    text, count = (root / "params.yaml").read_text(), len(runs(client))
    for old, new, name in (
        (r"glr: \S+", "glr: 0.1", r"train\.glr was 0\.0002 and is now 0\.1"),
        (r"nz: \d+", "nz: 9", r"model\.nz was 8 and is now 9"),
        (r"batch_size: 16", "batch_size: 17", r"train\.batch_size was 16 and is now 17"),
    ):
        (root / "params.yaml").write_text(re.sub(old, new, text))
        with pytest.raises(UserError, match=name + ".*dvc repro"):
            record(root, "train")
    (root / "params.yaml").write_text(text)
    np.save(root / "stages/preprocess/images.npy", np.ones((TRAIN_IMAGES, 8, 8, 1), np.uint8))
    dataset.write_description(root / "stages/preprocess")
    with pytest.raises(UserError, match="the data"):
        record(root, "train")
    assert len(runs(client)) == count


def test_names(checkout: Callable[..., Path], client: MlflowClient, monkeypatch: pytest.MonkeyPatch) -> None:
    """A failure means that an experiment cannot be found in MLflow by the name that DVC gives it."""
    root = checkout(seed=10)
    run = record(root, "train")
    monkeypatch.setenv("DVC_EXP_NAME", "lr-1")
    monkeypatch.setenv("DVC_EXP_BASELINE_REV", "f" * 40)
    assert record(root, "train") == run
    named = client.get_run(run)
    assert (named.info.run_name, named.data.tags["dvc.exp_name"]) == ("lr-1", "lr-1")
    assert named.data.tags["dvc.exp_baseline_rev"] == "f" * 40
    record(root, "train", name="chosen")
    monkeypatch.delenv("DVC_EXP_NAME")
    record(root, "train")
    assert client.get_run(run).info.run_name == "chosen"


def test_recording_follows_the_stage(checkout: Callable[..., Path], client: MlflowClient) -> None:
    """A failure means that a training cannot be watched in MLflow, or that its last steps are lost."""
    root = checkout(seed=11, steps=3)
    final, unfinished = root / "stages/train", root / "unfinished"
    final.rename(unfinished)
    with recording(root, "train", unfinished, interval=0.05):
        for steps in (3, 10):
            grow(unfinished, steps)
            run = run_of(client, 11, steps=steps)
        assert run.info.status == "RUNNING"
        grow(unfinished, STEPS)
        unfinished.rename(final)
    assert run_of(client, 11).info.status == "FINISHED"
    assert len(points(client, run.info.run_id, "train/d_loss")) == STEPS


def test_a_short_stage_is_left_to_the_last_one(
    checkout: Callable[..., Path], client: MlflowClient, capsys: pytest.CaptureFixture[str]
) -> None:
    """A failure means that each short stage loads MLflow, or that its results never arrive."""
    root = checkout(seed=12)
    for stage in TRACKED[:-1]:
        with recording(root, stage):
            pass
        assert not psutil.Process().children()
    with recording(root, TRACKED[-1]):
        pass
    run = run_of(client, 12, status="FINISHED")
    assert len(points(client, run.info.run_id, "train/d_loss")) == FEW and not capsys.readouterr().err
    assert {"samples~final", "samples~fixed_z"} <= {key for key, _ in pictures(client, run.info.run_id)}


@pytest.mark.parametrize(
    ("ended_by", "status"),
    [
        (None, "FINISHED"),
        (UserError("diverged"), "FAILED"),
        (MemoryError(), "FAILED"),
        (Interrupted(15, 3), "KILLED"),
        (KeyboardInterrupt(), "KILLED"),
        (SystemExit(143), "KILLED"),
    ],
)
def test_status(ended_by: BaseException | None, status: str) -> None:
    """A failure means that a failed run is shown as finished, or an interrupted one as failed."""
    assert status_after(ended_by) == status


def test_killed_stage_leaves_no_running_run(checkout: Callable[..., Path], client: MlflowClient) -> None:
    """A failure means that `kill -9` leaves a run RUNNING for ever, or with an older run's samples."""
    root = checkout(seed=25, steps=4)
    stage = (
        "import os, psutil, sys; from pathlib import Path; from ganpipe.tracking.mirror import recording\n"
    )
    stage += "with recording(Path(sys.argv[1]), 'sample', interval=0.01):\n"
    stage += "    while not psutil.Process().children(): pass\n"
    stage += "    os.kill(os.getpid(), 9)"
    subprocess.run([sys.executable, "-c", stage, str(root)], check=False)
    run = run_of(client, 25, status="KILLED")
    assert len(points(client, run.info.run_id, "train/d_loss")) == 4
    assert {key for key, _ in pictures(client, run.info.run_id)} == {"samples~fixed_z"}


def test_only_the_newest_attempt_sets_the_status(checkout: Callable[..., Path], client: MlflowClient) -> None:
    """A failure means that the late mirror of a killed trainer marks its successor KILLED."""
    root = checkout(seed=26, steps=4)
    experiment, folders = identify(root), stage_folders(root, "train")

    def mirror(status: Status, attempt: str) -> str:
        run = update(main_checkout(root), experiment, folders, status, attempt).id
        return client.get_run(run).info.status

    old, new, later = "1000.50 here 7", "1012.25 here 8", "2000.00 here 7"
    assert mirror("RUNNING", old) == "RUNNING"
    assert mirror("RUNNING", new) == "RUNNING"
    assert mirror("KILLED", old) == "RUNNING"
    assert mirror("FINISHED", new) == "FINISHED"
    assert mirror("KILLED", old) == mirror("RUNNING", old) == "FINISHED"
    assert mirror("RUNNING", later) == "RUNNING"
    assert mirror("KILLED", later) == "KILLED"


def test_a_run_whose_stage_and_mirror_were_killed(
    checkout: Callable[..., Path], client: MlflowClient
) -> None:
    """A failure means that a power cut leaves a run RUNNING for ever, or that a live run is set to KILLED."""
    root = checkout(seed=27, steps=4)
    stage = "import sys; from pathlib import Path; from ganpipe.tracking.mirror import recording\n"
    stage += "with recording(Path(sys.argv[1]), 'sample', interval=0.01): sys.stdin.readline()"
    with subprocess.Popen([sys.executable, "-c", stage, str(root)], stdin=subprocess.PIPE) as process:
        run = run_of(client, 27, status="RUNNING").info
        assert run.run_id not in dict(left_running(root))
        (mirror,) = psutil.Process(process.pid).children()
        mirror.kill()
        process.kill()
    assert left_running(root) == [(run.run_id, run.run_name)]
    (root / ".dvc").mkdir()
    assert doctor(root, fix=False) == 1 and client.get_run(run.run_id).info.status == "RUNNING"
    assert doctor(root, fix=True) == 0
    assert client.get_run(run.run_id).info.status == "KILLED" and not left_running(root)
    client.set_tag(run.run_id, ATTEMPT, f"1.00 elsewhere {os.getpid()}")
    client.update_run(run.run_id, status="RUNNING")
    assert not left_running(root), "its process may live on the other machine"
    for malformed in ("", "x", "now here 7", "1.00 a b c", f"x {socket.gethostname()} 7", "1 2"):
        client.set_tag(run.run_id, ATTEMPT, malformed)
        assert not left_running(root), malformed
    assert doctor(root, fix=False) == 0
    record(root, "evaluate")


def test_server_away(
    checkout: Callable[..., Path],
    client: MlflowClient,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """A failure means that an unreachable server delays or ends a training, or that its run is lost."""
    root = checkout(seed=61)
    monkeypatch.setenv("MLFLOW_TRACKING_URI", closed_address())
    with (
        pytest.raises(RuntimeError, match="the stage's own"),
        recording(root, "train", root / "stages/train", interval=0.1),
    ):
        raise RuntimeError("the stage's own")
    (line,) = capsys.readouterr().err.splitlines()
    assert "ganpipe sync" in line
    monkeypatch.delenv("MLFLOW_TRACKING_URI")
    text = (root / "params.yaml").read_text()
    (root / "params.yaml").write_text(re.sub(r"glr: \S+", "glr: 0.1", text))
    with recording(root, "evaluate"):
        pass
    (line,) = capsys.readouterr().err.splitlines()
    assert "run `dvc repro`" in line and "ganpipe sync" not in line, "sync cannot complete this run"
    (root / "params.yaml").write_text(text)
    assert len(points(client, record(root, "train"), "train/d_loss")) == FEW


@pytest.mark.long
def test_server_killed_for_ten_seconds(
    checkout: Callable[..., Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A failure means that a server's restart loses steps of a run, or delays the training loop."""
    address, most = closed_address(), 50_000
    store = f"sqlite:///{tmp_path}/server.db"
    words = ["server", "--backend-store-uri", store, "--artifacts-destination", f"{tmp_path}/artifacts"]
    command = [sys.executable, "-m", "mlflow", *words, "--port", address.rpartition(":")[2], "--workers", "1"]
    monkeypatch.setenv("MLFLOW_SERVER_ENABLE_JOB_EXECUTION", "false")

    def start() -> "subprocess.Popen[bytes]":
        silent = subprocess.DEVNULL
        return subprocess.Popen(command, stdout=silent, stderr=silent, start_new_session=True)

    def answers() -> bool:
        try:
            with urlopen(f"{address}/health", timeout=2):
                return True
        except OSError:
            return False

    server = start()
    try:
        while not answers():
            time.sleep(0.2)
        root = checkout(seed=62, steps=most)
        folder = root / "stages/train"
        rows = (folder / "history.csv").read_text().splitlines(keepends=True)
        grow(folder, 0)
        monkeypatch.setenv("MLFLOW_TRACKING_URI", address)
        waits: list[float] = []
        killed = back = 0.0
        last = most  # the step that ends it, once the server is back
        with (
            recording(root, "train", folder, interval=0.5),
            open(folder / "history.csv", "a") as history,
        ):
            client = MlflowClient(tracking_uri=address)
            history.write(rows[1])
            history.flush()
            waits.append(0.0)
            while not (live := runs(client)) or "train/d_loss" not in live[0].data.metrics:
                time.sleep(0.2)
            while len(waits) < last:
                began = time.monotonic()
                history.write(rows[1 + len(waits)])
                history.flush()
                waits.append(time.monotonic() - began)
                time.sleep(0.01)
                if not killed and len(waits) > 500:
                    os.killpg(server.pid, signal.SIGKILL)
                    server.wait()
                    killed = time.monotonic()
                if killed and not back and time.monotonic() - killed > 10:
                    server, back = start(), time.monotonic()
                if back and last == most and len(waits) % 100 == 0 and answers():
                    last = len(waits) + 500
            grow(folder, last)
        assert back - killed > 10 and last < most
        (run,) = runs(client)
        assert run.info.status == "FINISHED"
        for key in KEYS:
            expected = [BATCH_SIZE * i for i in range(1, last + 1)]
            assert [step for step, _ in points(client, run.info.run_id, key)] == expected
    finally:
        os.killpg(server.pid, signal.SIGTERM)
        server.wait()
    print(f"{last} steps; longest wait of the loop: {1000 * max(waits):.1f} ms")
    assert max(waits) < 0.05


def _record(root: Path, home: Path, start: Any) -> None:
    os.environ["DVC_ROOT"] = str(home)
    import mlflow  # noqa: F401

    start.wait()
    record(root, "train")


def test_two_processes_make_one_database(checkout: Callable[..., Path], tmp_path: Path) -> None:
    """A failure means that two queue workers that start together damage MLflow's database for good."""
    roots = [checkout(seed=seed, steps=5, root=tmp_path / str(seed)) for seed in (70, 71)]
    home = tmp_path / "fresh"
    home.mkdir()
    # A spawned process would import mlflow again, which takes seconds.
    context = multiprocessing.get_context("fork")
    start = context.Barrier(2)
    workers = [context.Process(target=_record, args=(root, home, start)) for root in roots]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join(60)
    assert [worker.exitcode for worker in workers] == [0, 0]
    client = client_of(home)
    assert [len(points(client, run.info.run_id, "train/d_loss")) for run in runs(client)] == [5, 5]
    with closing(sqlite3.connect(home / "mlflow.db")) as connection:
        assert connection.execute("PRAGMA journal_mode").fetchone() == ("wal",)
    assert sorted(path.name for path in home.iterdir() if "mlflow.db" not in path.name) == [
        ".ganpipe",
        "mlruns",
    ]


def test_deleted_experiment_is_named(
    checkout: Callable[..., Path], client: MlflowClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A failure means that a deleted experiment stops all updates without naming the remedy."""
    root = checkout(seed=63, steps=2)
    monkeypatch.setenv("MLFLOW_EXPERIMENT_NAME", "other")
    run = client.get_run(record(root, "train"))
    client.delete_experiment(run.info.experiment_id)
    with pytest.raises(UserError, match=f"restore --experiment-id {run.info.experiment_id}"):
        record(root, "train")


PIPELINE = """
stages:
  fetch: {cmd: exit 1, params: [fetch]}
  preprocess:
    cmd: exit 1
    params: [preprocess]
    outs: [stages/preprocess/images.npy, stages/preprocess/index.csv]
  train:
    cmd: exit 1
    deps: [ganpipe/train, stages/preprocess/images.npy]
    params: [model, train]
    outs:
      - stages/train/model.json
      - stages/train/history.csv
      - stages/train/evals.csv
      - stages/train/events.csv
      - stages/train/perf.csv
      - stages/train/grids
  sample:
    cmd: exit 1
    deps: [ganpipe/sample, stages/train/model.json]
    params: [sample]
    outs: [SAMPLE]
  evaluate:
    cmd: exit 1
    deps: [ganpipe/evaluate, stages/sample/grid.png]
    params: [evaluate]
    outs: [EVALUATE]
"""


def test_sync(
    checkout: Callable[..., Path],
    client: MlflowClient,
    home: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    small_params: Params,
) -> None:
    """A failure means that runs stay incomplete after MLflow was unreachable, or grow at each sync."""
    from dvc.repo import Repo

    for name, value in {"GIT_AUTHOR_NAME": "t", "GIT_AUTHOR_EMAIL": "t@t", "HOME": str(tmp_path)}.items():
        monkeypatch.setenv(name, value)
        monkeypatch.setenv(name.replace("AUTHOR", "COMMITTER"), value)
    monkeypatch.delenv("DVC_ROOT")
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{home}/mlflow.db")
    monkeypatch.setenv("MLFLOW_EXPERIMENT_NAME", "sync")
    root = checkout(seed=80, steps=4)
    pipeline = PIPELINE
    for stage in ("sample", "evaluate"):
        outputs = ", ".join(f"stages/{stage}/{name}" for name in ARTIFACTS[stage])
        pipeline = pipeline.replace(stage.upper(), outputs)
    (root / "dvc.yaml").write_text(pipeline)
    (root / ".gitignore").write_text("/stages/\n/mlflow.db*\n/mlruns/\n/.ganpipe/\n")

    def git(*words: str) -> str:
        return subprocess.run(["git", *words], cwd=root, check=True, capture_output=True, text=True).stdout

    monkeypatch.chdir(root)

    def save(repo: Any, name: str) -> None:
        repo.commit(force=True)
        repo.experiments.save(name=name, force=True)

    git("init", "-q", "-b", "main")
    Repo.init(str(root)).close()
    git("add", ".")
    git("commit", "-qm", "first")
    with Repo(str(root)) as repo:
        save(repo, "a")
        shutil.rmtree(root / "stages")
        moved = checkout(seed=81, steps=6, root=tmp_path / "other")
        shutil.move(moved / "stages", root / "stages")
        shutil.copy(moved / "params.yaml", root)
        save(repo, "b")
        Image.new("RGB", (9, 9)).save(root / "stages/evaluate/real_fake.png")
        YAML().dump(
            updated(small_params, train__seed=81, train__batch_size=16, evaluate__seed=5).model_dump(),
            root / "params.yaml",
        )
        save(repo, "lost")
        lost = Path(repo.cache.local.oid_to_path(_md5(root / "stages/evaluate/real_fake.png")))
        lost.unlink()
        # As after `dvc exp run train`: the samples were made by other code.
        (root / "ganpipe/sample/stage.py").write_text("print()\n")
        git("add", ".")
        head, stale = git("rev-parse", "HEAD").strip(), git("stash", "create").strip()
        git("update-ref", f"refs/exps/{head[:2]}/{head[2:]}/stale", stale)
        git("checkout", "HEAD", "--", "ganpipe")
        # The workspace: a changed param makes evaluate stale.
        text = (root / "params.yaml").read_text()
        (root / "params.yaml").write_text(re.sub(r"neighbours: \d+", "neighbours: 99", text))
    shutil.rmtree(root / ".dvc/tmp", ignore_errors=True)

    first = sync(root)
    names = {run.info.run_name: run for run in runs(client, "sync")}
    assert len(names) == 4, first
    assert [line.partition(":")[0] for line in first] == ["workspace", "a", "b", "lost", "stale"]
    assert "up to train" in first[4]
    assert "up to sample" in first[0]
    assert "skipped" in first[3]
    assert "real_fake.png is not in DVC's cache" in first[3]
    for name, steps in (("a", 4), ("b", 6)):
        run = names[name]
        assert len(points(client, run.info.run_id, "train/d_loss")) == steps
        assert sum(pictures(client, run.info.run_id).values()) == 5 + len(SHEETS)
        assert run.data.tags["ganpipe.git_commit"] == git("rev-parse", f"refs/exps/{_ref(git, name)}").strip()
        assert run.data.tags["ganpipe.git_dirty"] == "false"
        assert run.data.tags["dvc.exp_baseline_rev"] == git("rev-parse", "HEAD").strip()
    before = {run.info.run_id: state(client, run.info.run_id) for run in names.values()}
    second = sync(root)
    assert ["complete already" in line for line in second] == [True, True, True, False, True]
    assert {run.info.run_id: state(client, run.info.run_id) for run in runs(client, "sync")} == before

    # A deleted run is created again, and a colleague's clone records the experiment that it has pulled.
    client.delete_run(names["a"].info.run_id)
    assert re.match(r"a: up to evaluate, run a: \d+ points", sync(root)[1])
    assert len(runs(client, "sync")) == 4
    git("init", "-q", "--bare", "-b", "main", str(tmp_path / "hub"))
    git("remote", "add", "origin", str(tmp_path / "hub"))
    git("push", "-q", "origin", "main")
    store = f"[core]\n    remote = store\n['remote \"store\"']\n    url = {tmp_path}/store\n"
    (root / ".dvc/tmp").mkdir(exist_ok=True)  # DVC does not create it again
    (root / ".dvc/config.local").write_text(store)
    with Repo(str(root)) as repo:
        repo.experiments.push("origin", ["b"], push_cache=True)
    colleague = tmp_path / "colleague"
    git("clone", "-q", str(tmp_path / "hub"), str(colleague))
    (colleague / ".dvc/config.local").write_text(store)
    monkeypatch.chdir(colleague)
    monkeypatch.setenv("MLFLOW_EXPERIMENT_NAME", "colleague")
    with Repo(str(colleague)) as repo:
        repo.experiments.pull("origin", ["b"], pull_cache=True)
    assert "nothing to record" in (lines := sync(colleague))[0]
    assert re.match(r"b: up to evaluate, run b: \d+ points", lines[1])
    (pulled,) = runs(client, "colleague")
    assert pulled.data.params == names["b"].data.params
    assert len(points(client, pulled.info.run_id, "train/d_loss")) == 6


def _ref(git: Callable[..., str], name: str) -> str:
    refs = git("for-each-ref", "--format=%(refname)", "refs/exps").split()
    return next(ref.removeprefix("refs/exps/") for ref in refs if ref.endswith(f"/{name}"))


def _md5(path: Path) -> str:
    import hashlib

    return hashlib.md5(path.read_bytes()).hexdigest()
