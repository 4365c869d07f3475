"""The engines: toy cells and a real training through Ray, on nodes of this machine, and through submitit."""

import json
import os
import signal
import sys
import time
from collections.abc import Iterator
from contextlib import suppress
from functools import partial
from pathlib import Path
from typing import Any

import psutil
import pytest
from conftest import closed_address, mlflow_server, wait
from mlflow import MlflowClient
from ruamel.yaml import YAML
from test_end_to_end import BATCH_SIZE, dvc, tiny_checkout
from toy import add_hub, git, on_hub, order, toy_project

from ganpipe.cluster import board, on_ray, on_slurm, watch
from ganpipe.cluster.options import Options
from ganpipe.common import files
from ganpipe.experiments import revisions
from ganpipe.experiments.grid import _log, _start_workers

EPOCHS, STEPS = 20, 313  # of 1000 images in batches of 64
SLOWLY = """
import time

_g_loss = g_loss


def g_loss(*words):
    time.sleep(0.3)
    return _g_loss(*words)
"""
TIMED = "stages/train/perf.csv"  # tells how long it took


@pytest.fixture(autouse=True)
def environment(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let the engines' processes find this package, and DVC take a shell that stays beside its command."""
    monkeypatch.setenv("SHELL", "/bin/sh")
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join([str(Path.cwd()), *sys.path]))
    monkeypatch.setenv("RAY_USAGE_STATS_ENABLED", "0")
    monkeypatch.setenv("RAY_AUTH_MODE", "disabled")


@pytest.fixture
def checkout(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A checkout of the toy project."""
    return toy_project(tmp_path, monkeypatch)


def states(folders: list[Path]) -> dict[str, str]:
    """Return name → state of cells."""
    return {folder.name: watch.state_of(folder).state for folder in folders}


def local_refs(checkout: Path) -> dict[str, str]:
    """Return name → commit of the checkout's experiments."""
    lines = git(checkout, "for-each-ref", "--format=%(objectname) %(refname)", "refs/exps/*/*/*").splitlines()
    return {ref.rpartition("/")[2]: sha for sha, ref in map(str.split, lines)}


def test_submitit_runs_cells(checkout: Path, tmp_path: Path) -> None:
    """A failure means that nothing runs on Slurm, or that a cell that failed looks finished."""
    pytest.importorskip("submitit")
    good = order(checkout, "grid-a-s0", "steps=1", "seed=0")
    bad = order(checkout, "grid-b-s0", "steps=-1", "seed=0")
    assert states([good, bad]) == {"grid-a-s0": "lost", "grid-b-s0": "lost"}
    on_slurm.submit([good, bad], Options(on="slurm", gpus=0), tmp_path / "shared/slurm", cluster="local")
    assert set(states([good, bad]).values()) <= {"waiting", "cloning", "running"}
    wait(lambda: set(states([good, bad]).values()) <= {"finished", "failed"}, "the end of both cells")
    assert states([good, bad]) == {"grid-a-s0": "finished", "grid-b-s0": "failed"}
    assert list(on_hub(checkout)) == ["grid-a-s0"]


def test_the_queue_of_one_machine_gives_each_worker_a_gpu(
    checkout: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A failure means that all trainings of a machine with four GPUs share the first."""
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "4,6")
    monkeypatch.setenv("GANPIPE_UNFINISHED", "of this experiment")
    monkeypatch.chdir(checkout)
    with revisions.open_repo(checkout) as repo:
        queue = repo.experiments.celery_queue
        for seed in range(2):
            repo.experiments.run(queue=True, params=[f"seed={seed}", "steps=150"])
        _start_workers(queue, checkout, 2)
        wait(lambda: len(list(queue.iter_active())) == 2, "two running experiments")
        running = list(queue.iter_active())

        def gpus() -> set[str]:
            logs = [_log(queue, entry.stash_rev) for entry in running]
            return {line.split()[-1] for log in logs for line in log.splitlines() if line.startswith("from")}

        wait(lambda: len(gpus()) == 2, "two GPUs in use")
        assert gpus() == {"4", "6"}
        queue.shutdown(kill=True)


@pytest.fixture
def cluster() -> Iterator[Any]:
    """A Ray cluster of a head without CPUs, which is killed at the end."""
    pytest.importorskip("ray")
    from ray.cluster_utils import Cluster

    head = {"num_cpus": 0, "node_ip_address": "127.0.0.9", "include_dashboard": False}
    started = Cluster(initialize_head=True, head_node_args=head | {"object_store_memory": 100_000_000})
    yield started
    started.shutdown()


def add_node(cluster: Any, scratch: Path, number: int, cpus: int = 1) -> Any:
    """Add the node 127.0.0.NUMBER with a scratch folder of its own: nodes share no cache."""
    with pytest.MonkeyPatch.context() as own:
        own.setenv("GANPIPE_SCRATCH", str(scratch))
        place = {"node_ip_address": f"127.0.0.{number}", "object_store_memory": 100_000_000}
        return cluster.add_node(num_cpus=cpus, **place)


def test_a_killed_node_s_cell_runs_on_another(checkout: Path, tmp_path: Path, cluster: Any) -> None:
    """A failure means that a machine that dies takes its cells with it, or that they train anew or twice."""
    folders = [order(checkout, f"grid-{x}-s0", f"steps={5 + 5 * i}", f"seed={i}") for i, x in enumerate("ab")]
    hold = folders[1] / "unfinished/hold"  # a slow machine must not finish the cell before its node is dead
    hold.parent.mkdir()
    hold.touch()
    options = Options(on=f"ray={cluster.address}", gpus=0)
    doomed = add_node(cluster, tmp_path / "21", 21)
    problems, gpus = on_ray.problems(options, [str(tmp_path / "hub.git")], tmp_path / "shared")
    assert (problems, gpus) == ([], 0)
    on_ray.submit(folders[::-1], options, gpus, tmp_path / "ray.log")
    wait(lambda: (folders[1] / "unfinished/step").exists(), "the first step")
    cluster.remove_node(doomed, allow_graceful=False)
    add_node(cluster, tmp_path / "22", 22)
    wait(lambda: "stopped with a checkpoint" in board.read_tail(folders[1] / "1.log"), "the end of attempt 1")
    hold.unlink()
    wait(lambda: set(states(folders).values()) == {"finished"}, "the end of both cells")
    assert [(folder / "2.log").exists() for folder in folders] == [False, True]
    text = board.read_tail(folders[1] / "2.log")
    assert "from step 1 " in text and "train: 10/10" in text
    assert "train: 10/10" not in board.read_tail(folders[1] / "1.log")
    watch.finish(checkout, "grid", {folder: watch.state_of(folder) for folder in folders})
    assert local_refs(checkout) == on_hub(checkout) and len(on_hub(checkout)) == 2


@pytest.mark.long
def test_cells_survive_a_kill_every_twenty_seconds(checkout: Path, tmp_path: Path, cluster: Any) -> None:
    """A failure means that a grid of a week ends with cells that are missing, failed, or there twice."""
    folders = [order(checkout, f"grid-{number}-s0", "steps=50", f"seed={number}") for number in range(24)]
    add_node(cluster, tmp_path / "scratch", 21, cpus=4)
    options = Options(on=f"ray={cluster.address}", gpus=0)
    on_ray.submit(folders, options, 0, tmp_path / "ray.log")
    kills = 0

    def over() -> bool:
        nonlocal kills
        current = [watch.state_of(folder) for folder in folders]
        alive = [state for state in current if state.state in ("cloning", "running", "pushing")]
        if alive and time.monotonic() > start + 20 * (kills + 1):
            with suppress(ProcessLookupError):  # it has ended since it reported
                os.kill(alive[kills % len(alive)].process[0], signal.SIGKILL)
                kills += 1
        return all(state.state in board.OVER for state in current)

    start = time.monotonic()
    wait(over, "the end of all cells", 900)
    attempts = sum(len(files.records(folder)) for folder in folders)
    print(f"{kills} kills, {attempts} attempts, {time.monotonic() - start:.0f} s")
    assert set(states(folders).values()) == {"finished"} and len(on_hub(checkout)) == 24
    assert kills >= 2 and attempts == 24 + kills
    # A cell is finished before it deletes its clone.
    wait(lambda: not list((tmp_path / "scratch").glob("*@*")), "the end of the last clones")


def copied(folder: Path) -> int:
    """Return the step of the newest checkpoint that a cell's training has copied, 0 without one."""
    texts = [path.read_text() for path in folder.glob("unfinished/*/*.json")]
    names = [Path(name) for text in texts if text for name in json.loads(text)["files"]]
    return max((int(name.stem) for name in names if name.suffix == ".checkpoint"), default=0)


def went_on(folder: Path, attempt: int, step: int) -> bool:
    """Return whether an attempt of a cell trains, and has copied a checkpoint after this step."""
    return "train: " in board.read_tail(folder / f"{attempt}.log") and copied(folder) > step


def outputs(checkout: Path, revision: str) -> dict[str, str]:
    """Return path → md5 of an experiment's outputs."""
    lock = YAML(typ="safe").load(git(checkout, "show", f"{revision}:dvc.lock"))
    outs = [out for stage in lock["stages"].values() for out in stage["outs"]]
    return {out["path"]: out["md5"] for out in outs if out["path"] != TIMED}


@pytest.mark.long
def test_a_training_survives_the_death_of_three_nodes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, cluster: Any
) -> None:
    """A failure means that a machine's death costs a training, changes its result, or doubles its run."""
    (tmp_path / "checkout").mkdir()
    checkout = tiny_checkout(tmp_path / "checkout", EPOCHS)
    often = checkout / "ganpipe/train/options.py"
    text = often.read_text()
    often.write_text(text.replace("checkpoint_seconds: float = 30.0", "checkpoint_seconds: float = 0.2"))
    assert often.read_text() != text
    with open(checkout / "ganpipe/train/losses.py", "a") as file:
        file.write(SLOWLY)  # a fast machine would end the training before its node
    git(checkout, "commit", "-qam", "checkpoints in a training of two minutes")
    add_hub(checkout)
    dvc(checkout, "exp", "run", "-S", "train.seed=5", "--name", "undisturbed", "train")
    expected = outputs(checkout, local_refs(checkout)["undisturbed"])

    address = closed_address()
    server = mlflow_server(address, f"sqlite:///{tmp_path}/server.db", tmp_path / "artifacts")
    try:
        monkeypatch.setenv("MLFLOW_TRACKING_URI", address)
        folder = order(checkout, "grid-a-s0", "train.seed=5")
        options = Options(on=f"ray={cluster.address}", gpus=0)
        step = 0
        for number in range(3):
            place = tmp_path / f"node{number}"
            node = add_node(cluster, place, 21 + number)
            if number == 0:
                on_ray.submit([folder], options, 0, tmp_path / "ray.log")
            wait(partial(went_on, folder, number + 1, step), f"a checkpoint of attempt {number + 1}", 600)
            for process in psutil.process_iter(["environ"]):  # all at once, also the training and its mirror
                if (process.info["environ"] or {}).get("GANPIPE_SCRATCH") == str(place):
                    process.kill()
            step = copied(folder)
            cluster.remove_node(node, allow_graceful=False)
            assert step < STEPS and not on_hub(checkout)
        wait(lambda: watch.state_of(folder).state == "failed", "the end of the last retry", 300)
        assert "its worker died 3 times" in watch.state_of(folder).reason
        add_node(cluster, tmp_path / "node3", 24)
        on_ray.submit([folder], options, 0, tmp_path / "ray.log")
        wait(lambda: watch.state_of(folder).state == "finished", "the end of the cell", 600)
        watch.finish(checkout, "grid", {folder: watch.state_of(folder)})
        assert outputs(checkout, on_hub(checkout)["grid-a-s0"]).items() >= expected.items()

        client = MlflowClient(address)
        assert (experiment := client.get_experiment_by_name("ganpipe"))
        (run,) = client.search_runs([experiment.experiment_id])
        steps = [point.step for point in client.get_metric_history(run.info.run_id, "train/d_loss")]
        assert run.info.status == "FINISHED"
        assert steps == [BATCH_SIZE * i for i in range(1, STEPS + 1)]
    finally:
        os.killpg(server.pid, signal.SIGTERM)
        server.wait()
