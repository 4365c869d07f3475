"""`ganpipe train` by several processes, one of which is killed."""

import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from contextlib import nullcontext
from pathlib import Path

import pytest
from conftest import ROOT, digits, updated
from ruamel.yaml import YAML
from test_ranks import run_ranks

from ganpipe.params import Params
from ganpipe.train import stage
from ganpipe.train.devices.ranks import Ranks
from ganpipe.train.options import TrainOptions
from ganpipe.train.plan import plan_training


@pytest.fixture
def checkout(tmp_path: Path, small_params: Params, write_packed: Callable[..., Path]) -> Path:
    """A checkout with sixty digits of 16 px."""
    write_packed(tmp_path, digits()[::83][:60, 6:22, 6:22], held_out=5)
    shutil.copytree(ROOT / "ganpipe", tmp_path / "ganpipe")
    for name in ("fetch", "train", "sample", "evaluate"):
        (tmp_path / "stages" / name).mkdir()
    change(tmp_path, small_params)
    return tmp_path


def change(root: Path, values: Params) -> None:
    """Write params.yaml."""
    with open(root / "params.yaml", "w") as file:
        YAML().dump(values.model_dump(), file)


def start(root: Path, devices: int) -> "subprocess.Popen[str]":
    """Start to train, with a checkpoint for each step and an address at which no MLflow is even tried."""
    environment = os.environ | {"GANPIPE_DEVICES": str(devices), "GANPIPE_CHECKPOINT_SECONDS": "0"}
    environment |= {"PYTHONPATH": str(root), "MLFLOW_TRACKING_URI": "sqlite:"}
    command = [sys.executable, "-m", "ganpipe", "train"]
    return subprocess.Popen(command, cwd=root, env=environment, text=True, stderr=subprocess.PIPE)


def finished(root: Path, values: Params, devices: int) -> bytes:
    """Train to the end in forked ranks, which need not import torch again; return the generator's bytes."""

    def rank(ranks: Ranks) -> None:
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(stage, "join_ranks", lambda device: nullcontext(ranks))
            stage.train(plan_training(values.model, values.train, root), root, TrainOptions())

    assert run_ranks(devices, rank) == [None] * devices
    generator = root / "stages/train/generator.safetensors"
    content = generator.read_bytes()
    generator.unlink()
    return content


@pytest.mark.parametrize("count", [2, pytest.param(3, marks=pytest.mark.long)])
def test_a_killed_rank_ends_the_training_which_resumes(
    checkout: Path, small_params: Params, count: int, capfd: pytest.CaptureFixture[str]
) -> None:
    """A training would wait for a dead rank, or end in another model than without the kill."""
    values = updated(small_params, train__epochs=20, train__flip=True, train__extra_update_every=3)
    change(checkout, values)
    whole = finished(checkout, values, count)
    running = start(checkout, count)
    saved: list[Path] = []
    while len(saved) < 1 or int(saved[-1].stem) < 8:
        assert running.poll() is None
        saved = sorted((checkout / ".ganpipe/unfinished").glob("*/attempts/0/*.checkpoint"))
        time.sleep(0.02)
    children = Path(f"/proc/{running.pid}/task/{running.pid}/children").read_text().split()
    began = time.monotonic()
    os.kill(int(children[1]), signal.SIGKILL)
    _, err = running.communicate(timeout=60)
    assert running.returncode == 2 and time.monotonic() - began < 60
    assert f"rank 1 of {count} was killed by SIGKILL" in err and "Traceback" not in err
    assert not any(Path(f"/proc/{child}").exists() for child in children)
    capfd.readouterr()
    assert finished(checkout, values, count) == whole
    assert "resuming after step " in capfd.readouterr().err
