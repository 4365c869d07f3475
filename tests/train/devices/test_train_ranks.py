"""`ganpipe train` by several processes, one of which is killed."""

import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest
from conftest import ROOT, digits, updated
from ruamel.yaml import YAML

from ganpipe.params import Params


@pytest.fixture
def checkout(tmp_path: Path, small_params: Params, write_packed: Callable[..., Path]) -> Path:
    """A checkout with sixty digits of 16 px."""
    write_packed(tmp_path, digits()[::83][:60, 6:22, 6:22], held_out=5)
    shutil.copytree(ROOT / "ganpipe", tmp_path / "ganpipe")
    for stage in ("fetch", "train", "sample", "evaluate"):
        (tmp_path / "stages" / stage).mkdir()
    change(tmp_path, small_params)
    return tmp_path


def change(root: Path, values: Params) -> None:
    """Write params.yaml."""
    with open(root / "params.yaml", "w") as file:
        YAML().dump(values.model_dump(), file)


def start(root: Path, devices: int) -> "subprocess.Popen[str]":
    """Start to train, with a checkpoint for each step."""
    environment = os.environ | {"GANPIPE_DEVICES": str(devices), "GANPIPE_CHECKPOINT_SECONDS": "0"}
    environment |= {"PYTHONPATH": str(root), "MLFLOW_TRACKING_URI": f"sqlite:///{root}/mlflow.db"}
    command = [sys.executable, "-m", "ganpipe", "train"]
    return subprocess.Popen(command, cwd=root, env=environment, text=True, stderr=subprocess.PIPE)


def trained(root: Path, devices: int) -> bytes:
    """Train to the end; return the generator's bytes."""
    running = start(root, devices)
    _, err = running.communicate(timeout=120)
    assert running.returncode == 0, err
    content = (root / "stages/train/generator.safetensors").read_bytes()
    shutil.rmtree(root / "stages/train")
    (root / "stages/train").mkdir()
    return content


@pytest.mark.parametrize("count", [2, pytest.param(3, marks=pytest.mark.long)])
def test_a_killed_rank_ends_the_training_which_resumes(
    checkout: Path, small_params: Params, count: int
) -> None:
    """A training would wait for a dead rank, or end in another model than without the kill."""
    change(checkout, updated(small_params, train__epochs=20, train__flip=True, train__extra_update_every=3))
    whole = trained(checkout, count)
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
    assert trained(checkout, count) == whole
