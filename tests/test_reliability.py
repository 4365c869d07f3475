"""Trials that no training is lost: random kills, failing system calls, damage, interruption at every step.

`pytest` runs short forms; `pytest -m long -rP tests/test_reliability.py` runs the full ones and prints
numbers. docs/reliability.md has the latest.
"""

import itertools
import multiprocessing
import os
import random
import re
import shutil
import signal
import subprocess
import time
from collections import Counter
from collections.abc import Callable
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import ROOT, digits, updated

from ganpipe import models
from ganpipe.common.stages import OUTPUTS
from ganpipe.models.layers import NetworkSpec
from ganpipe.params import Params
from ganpipe.train.options import TrainOptions
from ganpipe.train.plan import plan_training
from ganpipe.train.players import Players, state_of
from ganpipe.train.resume import checkpoint
from ganpipe.train.stage import train

EXACT = [name for name in OUTPUTS["train"] if name != "perf.csv"]  # that one holds times


@pytest.fixture
def checkout(tmp_path: Path, write_packed: Callable[..., Path]) -> Callable[..., Path]:
    """Return a function that makes a checkout with sixty digits of so many pixels a side."""

    def make(name: str, side: int = 16) -> Path:
        images = digits()[::83][:60]
        images = images[:, 6:22, 6:22] if side == 16 else np.pad(images, ((0, 0), (2, 2), (2, 2), (0, 0)))
        write_packed(tmp_path / name, images, held_out=5)
        (tmp_path / name / "ganpipe").symlink_to(ROOT / "ganpipe")
        return tmp_path / name

    return make


def result(root: Path) -> dict[str, bytes]:
    """Return all files of a finished training that must not depend on interruptions."""
    folder = root / "stages/train"
    paths = [path for name in EXACT for path in (folder / name, *(folder / name).rglob("*"))]
    return {path.relative_to(root).as_posix(): path.read_bytes() for path in paths if path.is_file()}


@pytest.mark.parametrize("kills", [10, pytest.param(1000, marks=pytest.mark.long)])
def test_random_kills_change_no_byte(
    checkout: Callable[..., Path], small_params: Params, kills: int, capfd: pytest.CaptureFixture[str]
) -> None:
    """`kill -9` at some moment would lose a training or silently change its result."""
    params = updated(
        small_params,
        train__epochs=max(9, kills // 15),
        train__flip=True,
        train__extra_update_every=3,
        train__snapshot_epochs=[1, 3, 9, 27, 81, 243],
    )
    undisturbed, root, fork = checkout("undisturbed"), checkout("killed"), multiprocessing.get_context("fork")
    plan = plan_training(params.model, params.train, undisturbed)
    train(plan, undisturbed, TrainOptions(checkpoint_seconds=1e9))
    whole = result(undisturbed)
    plan = plan_training(params.model, params.train, root)
    run = partial(train, plan, root, TrainOptions(checkpoint_seconds=0))
    steps = whole["stages/train/history.csv"].count(b"\n") - 1

    def finishes_within(seconds: float | None) -> bool:
        """Train until it is killed after so many seconds, and return whether the training finished before."""
        child = fork.Process(target=run)
        child.start()
        child.join(seconds)
        child.kill()
        child.join()
        assert child.exitcode in (0, -signal.SIGKILL)
        if child.exitcode:
            return False
        assert result(root) == whole
        shutil.rmtree(root / "stages/train")
        return True

    started, draw, done, finished, where = time.monotonic(), random.Random(0), 0, 0, Counter[str]()
    first_step = seconds_to_a_step(fork.Process(target=run), root)
    while done < kills:
        if finishes_within(draw.uniform(0, 3 * first_step)):
            finished += 1
            continue
        done += 1
        unfinished = root / ".ganpipe/unfinished"
        where["within a write"] += bool([*unfinished.rglob(".*.tmp")])
        where["after the last step"] += bool([*unfinished.rglob(f"{steps:09d}.checkpoint")])
    assert finishes_within(None)
    assert not [*(root / ".ganpipe/unfinished").rglob("*.damaged")]
    capfd.readouterr()  # discard what the children printed
    print(
        f"{done} random kills of {steps}-step trainings, {finished + 1} of which came to their end with the "
        f"bytes of the undisturbed one; {where['within a write']} kills left a half-written file, "
        f"{where['after the last step']} came after the last step; {time.monotonic() - started:.0f} s"
    )


def seconds_to_a_step(child: multiprocessing.process.BaseProcess, root: Path) -> float:
    """Kill a child once the first checkpoint exists, and return the seconds that this took."""
    began = time.monotonic()
    child.start()
    while not [*(root / ".ganpipe/unfinished").rglob("*.checkpoint")]:
        assert child.is_alive() and time.monotonic() - began < 60
        time.sleep(0.001)
    child.kill()
    child.join()
    return time.monotonic() - began


# System calls of the short form; the full form takes every call that takes a path or a file.
TOUCHING = ("write", "fsync", "rename", "unlink", "openat")


@pytest.fixture
def saved(tmp_path: Path, small_params: Params) -> tuple[Path, list[dict[str, torch.Tensor]]]:
    """Return a folder with checkpoints of steps 1 and 2 of small networks, and the states of steps 1 to 3."""
    torch.manual_seed(0)
    spec = NetworkSpec(small_params.model, 16, 1)
    G, D = models.build_generator(spec), models.build_discriminator(spec)
    states = [state_of(Players(G, D, torch.optim.Adam(G.parameters()), torch.optim.Adam(D.parameters())))]
    states += [{name: tensor + n for name, tensor in states[0].items()} for n in (1, 2)]
    for step in (1, 2):
        checkpoint.save(tmp_path / "saved", step, states[step - 1], {"torch": "x"})
    return tmp_path / "saved", states


def survivor(folder: Path, states: list[dict[str, torch.Tensor]]) -> int:
    """Return the step of the checkpoint that would be loaded, its tensors checked."""
    loaded = checkpoint.load(folder, states[0])
    assert loaded is not None and loaded.environment == {"torch": "x"}
    assert all(torch.equal(tensor, states[loaded.step - 1][name]) for name, tensor in loaded.state.items())
    return loaded.step


def save_under_strace(folder: Path, states: list[dict[str, torch.Tensor]], log: Path, *options: str) -> int:
    """Save step 3 in a child that strace watches; return the wait status of the child."""
    child = os.fork()
    if child == 0:
        os.kill(os.getpid(), signal.SIGSTOP)  # until strace is attached
        try:
            checkpoint.save(folder, 3, states[2], {"torch": "x"})
        except OSError as error:
            os._exit(3 if error.filename else 4)
        except BaseException:
            os._exit(5)
        os._exit(0)
    os.waitpid(child, os.WUNTRACED)
    command = ["strace", "-o", str(log), *options, "-p", str(child)]
    with subprocess.Popen(command, stderr=subprocess.PIPE, text=True) as strace:
        assert strace.stderr and "attached" in strace.stderr.readline()
        os.kill(child, signal.SIGCONT)
        status = os.waitpid(child, 0)[1]
        strace.stderr.read()
    return status


@pytest.mark.skipif(not shutil.which("strace"), reason="strace is not installed")
@pytest.mark.parametrize("full", [False, pytest.param(True, marks=pytest.mark.long)])
def test_every_system_call_of_a_save(
    saved: tuple[Path, list[dict[str, torch.Tensor]]],
    tmp_path: Path,
    full: bool,
    capfd: pytest.CaptureFixture[str],
) -> None:
    """A full disk, a defect or a kill during a save would lose the training."""
    folder, states = saved
    backup, log, began = tmp_path / "backup", tmp_path / "log", time.monotonic()
    shutil.copytree(folder, backup)
    assert save_under_strace(folder, states, log) == 0 and survivor(folder, states) == 3
    calls = re.findall(r"^(\w+)\(", log.read_text(), re.M)
    assert save_under_strace(folder, states, log, "-e", "trace=%file,%desc") == 0
    failing = set(re.findall(r"^(\w+)\(", log.read_text(), re.M))
    trials = []
    for i, name in enumerate(calls):
        when = calls[: i + 1].count(name)
        trials.append((name, when, "signal=KILL"))
        if name in failing:
            trials += [(name, when, f"error={error}") for error in ("EIO", "ENOSPC")]
    if not full:
        trials = [trial for trial in trials if trial[0] in TOUCHING and trial[2] != "error=EIO"]
    outcomes = Counter[str]()
    for name, when, what in trials:
        shutil.rmtree(folder)
        shutil.copytree(backup, folder)
        status = save_under_strace(folder, states, log, "-e", f"inject={name}:{what}:when={when}")
        ended = -signal.SIGKILL if os.WIFSIGNALED(status) else os.WEXITSTATUS(status)
        here = f"{name} {when} {what}: {ended}"
        step = survivor(folder, states)
        if what == "signal=KILL":
            assert ended == -signal.SIGKILL and step in (2, 3), here
        else:  # an error that the save survives is no error
            assert (ended == 0 and step == 3) or (ended == 3 and step in (2, 3)), here
        outcomes[f"{what.partition('=')[0]}: {'saved' if ended == 0 else f'{step} survived'}"] += 1
        checkpoint.save(folder, 3, states[2], {"torch": "x"})
        assert survivor(folder, states) == 3 and len([*folder.iterdir()]) == 2, here
    capfd.readouterr()
    print(
        f"{len(calls)} system calls of a save, {len(trials)} trials, none without a whole checkpoint: "
        f"{dict(sorted(outcomes.items()))}; {time.monotonic() - began:.0f} s"
    )


@pytest.mark.parametrize("count", [60, pytest.param(1000, marks=pytest.mark.long)])
def test_damage_is_noticed(
    saved: tuple[Path, list[dict[str, torch.Tensor]]], count: int, capfd: pytest.CaptureFixture[str]
) -> None:
    """Weights with a flipped bit would be loaded instead of the checkpoint before."""
    folder, states = saved
    newest = folder / "000000002.checkpoint"
    whole, draw, began = newest.read_bytes(), random.Random(0), time.monotonic()
    for i in range(count):
        content = bytearray(whole)
        if i % 2:
            bit = draw.randrange(8 * len(whole))
            content[bit // 8] ^= 1 << bit % 8
        else:
            del content[draw.randrange(len(whole)) :]
            if i % 4:  # as a file system leaves it that knew the length before a power cut
                content += bytes(len(whole) - len(content))
        newest.write_bytes(content)
        assert (survivor(folder, states) == 1) == (content != whole), i
        newest.write_bytes(whole)
    assert survivor(folder, states) == 2
    seconds = time.monotonic() - began
    capfd.readouterr()
    print(f"{count} flipped and cut checkpoints of {len(whole):,} bytes, all noticed; {seconds:.0f} s")


OPTIONS = {
    "train__ema_halflife_kimg": (None, 0.05),
    "train__micro_batch_size": (None, 5),
    "train__flip": (False, True),
    "train__extra_update_every": (None, 3),
}
NETWORKS = {"dcgan": 16, "celeba64": 16, "upsample": 16, "residual": 32}
# Each value of each option with each value of each other one.
COVERING = [(0, 0, 0, 0), (0, 1, 1, 1), (1, 1, 0, 1), (1, 0, 1, 1), (1, 1, 1, 0)]


@pytest.mark.parametrize(
    ("architecture", "chosen", "splits"),
    [
        *((name, chosen, (7,)) for name, chosen in zip([*NETWORKS, "upsample"], COVERING, strict=True)),
        *(
            pytest.param(name, chosen, range(1, 40), marks=pytest.mark.long)
            for name in NETWORKS
            for chosen in itertools.product((0, 1), repeat=4)
        ),
    ],
)
def test_a_split_changes_no_byte(
    checkout: Callable[..., Path],
    small_params: Params,
    monkeypatch: pytest.MonkeyPatch,
    architecture: str,
    chosen: tuple[int, ...],
    splits: range | tuple[int, ...],
) -> None:
    """A training that was killed right after a checkpoint would end with another result."""
    side, root = NETWORKS[architecture], checkout("root", NETWORKS[architecture])
    params = updated(
        small_params,
        preprocess__resolution=side,
        model__architecture=architecture,
        train__epochs=10,
        train__batch_size=14,
        train__snapshot_epochs=[1, 5],
        **{name: values[i] for (name, values), i in zip(OPTIONS.items(), chosen, strict=True)},
    )
    plan, save = plan_training(params.model, params.train, root), checkpoint.save
    assert plan.steps == 40

    def save_and_copy(folder: Path, step: int, *state: object, **options: object) -> None:
        save(folder, step, *state, **options)  # type: ignore[arg-type]
        if step in splits:
            shutil.copytree(plan.folder, root / "at" / str(step))

    with monkeypatch.context() as patch:
        patch.setattr(checkpoint, "save", save_and_copy)
        train(plan, root, TrainOptions(checkpoint_seconds=0))
    whole = result(root)
    for step in splits:
        shutil.rmtree(root / "stages/train")
        shutil.move(root / "at" / str(step), plan.folder)
        train(plan, root, TrainOptions(checkpoint_seconds=1e9, log_seconds=1e9))
        assert result(root) == whole, step
