"""The training: compared with an independently written DCGAN step, and after interruptions."""

import importlib
import io
import itertools
import json
import math
import multiprocessing
import os
import shutil
import signal
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
from conftest import ROOT, digits, divide, updated
from torch import nn

from ganpipe.common.errors import Interrupted, UserError
from ganpipe.common.files import claim
from ganpipe.common.seeds import derived_seed, generator
from ganpipe.common.stages import OUTPUTS
from ganpipe.models.generator import draw_z, load_generator
from ganpipe.params import Params
from ganpipe.train import alarms, journal, loop, stage
from ganpipe.train.augment import USES, Augment, Use
from ganpipe.train.losses import g_loss
from ganpipe.train.options import TrainOptions
from ganpipe.train.plan import Draws, Plan, plan_training
from ganpipe.train.resume import copies
from ganpipe.train.resume.copies import Copies

# The outputs that a rerun must repeat byte for byte; perf.csv holds times.
EXACT = tuple(name for name in OUTPUTS["train"] if name != "perf.csv")


def result(root: Path) -> dict[str, bytes]:
    """Return all files of a finished training that interruptions must not change."""
    folder = root / "stages/train"
    paths = [path for name in EXACT for path in (folder / name, *(folder / name).rglob("*"))]
    return {path.relative_to(root).as_posix(): path.read_bytes() for path in paths if path.is_file()}


@pytest.fixture(scope="module")
def shrunk() -> np.ndarray:
    """Sixty digits of 16 px, uint8 60×16×16×1."""
    return digits()[::83][:60, 6:22, 6:22]


@pytest.fixture
def root(tmp_path: Path, shrunk: np.ndarray, write_packed: Callable[..., Path]) -> Path:
    """A checkout with packed digits and the package, whose digest is part of a training's identity."""
    write_packed(tmp_path, shrunk, held_out=5)
    (tmp_path / "ganpipe").symlink_to(ROOT / "ganpipe")
    return tmp_path


@pytest.fixture(scope="module")
def undisturbed(
    tmp_path_factory: pytest.TempPathFactory,
    shrunk: np.ndarray,
    write_packed: Callable[..., Path],
    small_params: Params,
) -> dict[str, bytes]:
    """The result of the small training without interruption."""
    folder = tmp_path_factory.mktemp("undisturbed")
    write_packed(folder, shrunk, held_out=5)
    (folder / "ganpipe").symlink_to(ROOT / "ganpipe")
    run(folder, small_params)
    return result(folder)


def run(root: Path, params: Params, **options: Any) -> Plan:
    """Train with one checkpoint a step unless told otherwise."""
    plan = plan_training(params.model, params.train, root)
    stage.train(plan, root, TrainOptions(**({"checkpoint_seconds": 0} | options)))
    return plan


def test_five_steps_equal_an_independently_written_step(root: Path, small_params: Params) -> None:
    """The step would not be DCGAN's: other losses, order, labels, data or optimizer."""
    params = updated(small_params, model__ngf=8, model__ndf=8, train__real_label=0.9, train__batch_size=11)
    plan = run(root, updated(params, train__epochs=1, train__ema_halflife_kimg=None))
    history = pd.read_csv(root / "stages/train/history.csv")

    torch.manual_seed(derived_seed(params.train.seed, "init"))
    # 16 = 4·2²: z → 4×4×2·ngf → 8×8×ngf → 16×16, and back.
    G = nn.Sequential(
        nn.ConvTranspose2d(8, 16, 4, 1, 0, bias=False), nn.BatchNorm2d(16), nn.ReLU(),
        nn.ConvTranspose2d(16, 8, 4, 2, 1, bias=False), nn.BatchNorm2d(8), nn.ReLU(),
        nn.ConvTranspose2d(8, 1, 4, 2, 1, bias=False), nn.Tanh(),
    )  # fmt: skip
    initialize(G)
    D = nn.Sequential(
        nn.Conv2d(1, 8, 4, 2, 1, bias=False), nn.LeakyReLU(0.2),
        nn.Conv2d(8, 16, 4, 2, 1, bias=False), nn.BatchNorm2d(16), nn.LeakyReLU(0.2),
        nn.Conv2d(16, 1, 4, 1, 0, bias=False),
    )  # fmt: skip
    initialize(D)
    G, D = G.to(memory_format=torch.channels_last), D.to(memory_format=torch.channels_last)
    G_optimizer = torch.optim.Adam(G.parameters(), lr=2e-4, betas=(0.5, 0.999), fused=True)
    D_optimizer = torch.optim.Adam(D.parameters(), lr=2e-4, betas=(0.5, 0.999), fused=True)
    criterion = nn.BCEWithLogitsLoss()
    order = plan.rows[torch.randperm(55, generator=generator(0, "shuffle", 0)).numpy()]
    for step in range(1, 6):
        pixels = plan.data.images[order[11 * (step - 1) : 11 * step]].astype(np.float32).transpose(0, 3, 1, 2)
        real = torch.from_numpy(pixels / np.float32(127.5) - 1).contiguous(memory_format=torch.channels_last)
        z = torch.randn(11, 8, generator=generator(0, "z", step)).reshape(11, 8, 1, 1)
        fake = G(z)
        D_optimizer.zero_grad()
        on_real = criterion(D(real).flatten(), torch.full((11,), 0.9))
        on_real.backward()
        on_fake = criterion(D(fake.detach()).flatten(), torch.zeros(11))
        on_fake.backward()
        D_optimizer.step()
        G_optimizer.zero_grad()
        on_g = criterion(D(fake).flatten(), torch.ones(11))
        on_g.backward()
        G_optimizer.step()
        assert f"{(on_real + on_fake).item():.6g}" == f"{history.d_loss[step - 1]:.6g}"
        assert f"{on_g.item():.6g}" == f"{history.g_loss[step - 1]:.6g}"
    weights = load_generator(root / "stages/train/generator.safetensors").network.state_dict()
    assert all(torch.equal(a, b) for a, b in zip(weights.values(), G.state_dict().values(), strict=True))


def initialize(net: nn.Sequential) -> None:
    """Draw weights as the DCGAN paper does, layer by layer."""
    for layer in net:
        if isinstance(layer, nn.Conv2d | nn.ConvTranspose2d):
            nn.init.normal_(layer.weight, 0.0, 0.02)
        elif isinstance(layer, nn.BatchNorm2d):
            nn.init.normal_(layer.weight, 1.0, 0.02)


def test_outputs_are_complete(undisturbed: dict[str, bytes], small_params: Params) -> None:
    """A later stage, a plot or a reader would miss a file."""
    files = {name.removeprefix("stages/train/"): content for name, content in undisturbed.items()}
    assert set(files) == {
        "generator.safetensors",
        "model.json",
        "history.csv",
        "evals.csv",
        "events.csv",
        *(f"grids/{epoch}.png" for epoch in (1, 2, 3)),
        *(f"snapshots/{epoch}.safetensors" for epoch in (1, 2, 3)),
    }
    lines = files["history.csv"].decode().splitlines()
    # 55 training images, three epochs, 16 a step: 165 images need 11 steps.
    assert len(lines) == 12 and lines[-1].startswith("11,176,3.2,0,")
    description = json.loads(files["model.json"])
    expected = {"steps": 11, "kept_step": 11, "train_images": 55, "weights": "last, averaged"}
    expected |= {"ended": "finished", "interventions": 0}
    assert description | expected == description
    assert files["generator.safetensors"] == files["snapshots/3.safetensors"]


def test_cadence_changes_nothing(root: Path, small_params: Params, undisturbed: dict[str, bytes]) -> None:
    """A flag that changed the result would have to be a param."""
    run(root, small_params, checkpoint_seconds=1e9, log_seconds=1e9)
    assert result(root) == undisturbed
    assert not list((root / ".ganpipe/unfinished").glob("*/"))


# Where `die` kills the process: module, function, and whether after the call rather than before it.
KILL_POINTS = {
    "step": ("ganpipe.train.step", "g_loss", False),
    "before rename": ("os", "replace", False),
    "after checkpoint": ("ganpipe.train.resume.checkpoint", "save", True),
    "event": ("ganpipe.train.rescue", "write_events", True),
    "best": ("ganpipe.train.journal", "save_generator", True),
    "publish": ("shutil", "copyfile", False),
}


def die(root: Path, params: Params, where: str, count: int) -> None:
    """Train in this process, and `kill -9` it at the count-th call of a function."""
    module, name, after = KILL_POINTS[where]
    original, calls = getattr(importlib.import_module(module), name), 0

    def fatal(*args: Any, **kwargs: Any) -> Any:
        nonlocal calls
        calls += 1
        if calls == count and not after:
            os.kill(os.getpid(), signal.SIGKILL)
        value = original(*args, **kwargs)
        if calls == count:
            os.kill(os.getpid(), signal.SIGKILL)
        return value

    setattr(importlib.import_module(module), name, fatal)
    run(root, params)


def kill_in_training(root: Path, params: Params, where: str, count: int) -> None:
    """Train in a forked process, and kill it at a KILL_POINT."""
    child = multiprocessing.get_context("fork").Process(target=die, args=(root, params, where, count))
    child.start()
    child.join(60)
    assert child.exitcode == -signal.SIGKILL, where


@pytest.mark.parametrize(
    ("where", "count"),
    [
        ("step", 1),
        ("step", 3),
        ("step", 7),
        ("before rename", 2),
        ("before rename", 9),
        ("after checkpoint", 4),
        ("after checkpoint", 11),
        ("publish", 2),
    ],
)
def test_kill_9_changes_no_byte(
    root: Path, small_params: Params, undisturbed: dict[str, bytes], where: str, count: int
) -> None:
    """A night's training would be lost or, worse, silently continue as another one."""
    kill_in_training(root, small_params, where, count)
    assert list((root / ".ganpipe/unfinished").glob("*/"))
    run(root, small_params)
    assert result(root) == undisturbed


@pytest.mark.parametrize("killed", [False, True])
def test_images_in_several_files_change_no_byte(
    root: Path, small_params: Params, undisturbed: dict[str, bytes], killed: bool
) -> None:
    """A set that is divided because it is large would be trained on in another order, or not resumed."""
    if killed:  # on the undivided set
        kill_in_training(root, small_params, "step", 7)
    divide(root / "stages/preprocess", 20, 17)
    run(root, small_params)
    assert result(root) == undisturbed


@pytest.fixture
def machines(root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """Checkouts like `root` that share nothing but GANPIPE_UNFINISHED, one after the other."""
    monkeypatch.setenv("GANPIPE_UNFINISHED", str(tmp_path / "shared"))

    def machine(number: int) -> Path:
        (tmp_path / f"machine{number}/stages").mkdir(parents=True)
        for name in ("stages/preprocess", "ganpipe"):
            (tmp_path / f"machine{number}" / name).symlink_to(root / name)
        return tmp_path / f"machine{number}"

    return map(machine, itertools.count(1))


@pytest.mark.parametrize("times", [3, 30, 57, 82])
def test_a_training_resumes_on_another_machine(
    machines: Iterator[Path],
    small_params: Params,
    undisturbed: dict[str, bytes],
    times: int,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """A machine that dies, at any moment of a copy too, would take the training with it, or change it."""
    kill_in_training(next(machines), small_params, "before rename", times)
    run(other := next(machines), small_params)
    assert result(other) == undisturbed
    assert times == 3 or "train: resuming after step" in capsys.readouterr().err
    run(third := next(machines), small_params)  # such as after a machine that died in a later stage
    assert result(third) == undisturbed and "resuming after step 11 of 11" in capsys.readouterr().err


def test_an_older_attempt_stops_and_bad_storage_does_not_stop_training(
    machines: Iterator[Path],
    small_params: Params,
    undisturbed: dict[str, bytes],
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """Two machines would train one experiment side by side, or a disk that fills would cost the training."""
    first, saves, save = next(machines), list[int](), Copies.save

    def overtaken(self: Copies) -> None:
        saves.append(1)
        if len(saves) == 5:
            claim(self.shared)
        save(self)

    monkeypatch.setattr(Copies, "save", overtaken)
    with pytest.raises(UserError, match="attempt 2 has taken over from this attempt 1 in"):
        run(first, small_params)
    monkeypatch.setattr(Copies, "save", save)
    # A newest copy with a flipped bit is not taken.
    largest = max(first.parent.glob("shared/*/1/*"), key=lambda path: path.stat().st_size)
    content = bytearray(largest.read_bytes())
    content[5000] ^= 1
    largest.write_bytes(content)
    monkeypatch.setattr(copies, "PAUSES", (0,))
    run(other := next(machines), small_params)
    assert result(other) == undisturbed and "is damaged; trying the one before" in capsys.readouterr().err

    def full(self: Copies, path: Path) -> str:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(Copies, "_copy", full)
    run(other := next(machines), small_params, fresh=True)
    assert result(other) == undisturbed
    assert capsys.readouterr().err.count("(No space left on device); training goes on") == 1


@pytest.mark.parametrize("signum", [signal.SIGTERM, signal.SIGINT, signal.SIGUSR1])
def test_a_signal_leaves_a_checkpoint(
    root: Path,
    small_params: Params,
    undisturbed: dict[str, bytes],
    signum: signal.Signals,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """A stop requested by a cluster or a user would lose everything since the last checkpoint."""
    handler = signal.getsignal(signum)
    calls = []
    original = g_loss

    def send(*args: Any) -> torch.Tensor:
        calls.append(1)
        if len(calls) == 5:
            os.kill(os.getpid(), signum)
        return original(*args)

    monkeypatch.setattr("ganpipe.train.step.g_loss", send)
    with pytest.raises(Interrupted, match=f"{signum.name} after step 5") as caught:
        run(root, small_params, checkpoint_seconds=1e9)
    assert caught.value.signum == signum and signal.getsignal(signum) == handler
    assert not (root / "stages/train").exists()
    run(root, small_params)
    assert "after step 5 of 11" in capsys.readouterr().err
    assert result(root) == undisturbed


def test_fresh_forgets(root: Path, small_params: Params, capsys: pytest.CaptureFixture[str]) -> None:
    """A user who asks for a new start would get the interrupted training."""
    kill_in_training(root, small_params, "step", 6)
    run(root, small_params, fresh=True)
    assert "resuming" not in capsys.readouterr().err


def test_identity_of_a_training(
    root: Path, small_params: Params, shrunk: np.ndarray, write_packed: Callable[..., Path]
) -> None:
    """Another learning rate, other data or other code must never resume this training."""

    def folder(params: Params) -> Path:
        return plan_training(params.model, params.train, root).folder

    first = folder(small_params)
    assert folder(updated(small_params, train__glr=0.1)) != first
    assert folder(updated(small_params, model__nz=9)) != first
    assert folder(updated(small_params, sample__count=21)) == first
    write_packed(root, shrunk[1:])
    assert folder(small_params) != first


@pytest.mark.parametrize("batch_size", [2, 16, 55, 64, 200])
def test_every_epoch_sees_every_image_once(root: Path, small_params: Params, batch_size: int) -> None:
    """Images dropped or repeated would change what an epoch means."""
    params = updated(small_params, train__batch_size=batch_size, train__epochs=4)
    plan = plan_training(params.model, params.train, root)
    draws = Draws(plan, 0, slice(None))
    seen = np.concatenate([rows for rows, _ in draws.batches(0)])
    assert len(seen) == plan.steps * batch_size and 0 <= len(seen) - 4 * 55 < batch_size
    for epoch in range(4):
        assert sorted(seen[epoch * 55 : (epoch + 1) * 55]) == plan.rows.tolist()
    assert not np.array_equal(seen[:55], seen[55:110])
    later = np.concatenate([rows for rows, _ in draws.batches(plan.steps - 1)])
    assert np.array_equal(later, seen[-batch_size:])


def test_flip_mirrors_about_half(root: Path, small_params: Params) -> None:
    """If all or no images were mirrored, the param would not do what its name says."""
    plan = plan_training(
        small_params.model, updated(small_params, train__flip=True, train__epochs=6).train, root
    )
    whole, own = Draws(plan, 0, slice(None)), Draws(plan, 0, slice(3, 7))
    mirrored = [mirrored for _, mirrored in whole.batches(0) if mirrored is not None]
    assert len(mirrored) == 21 and 120 < torch.cat(mirrored).sum() < 210
    assert not torch.equal(mirrored[2], mirrored[3])
    for (_, part), batch in zip(own.batches(0), mirrored, strict=True):
        assert part is not None and torch.equal(part, batch[3:7])
    plain = Draws(plan_training(small_params.model, small_params.train, root), 0, slice(None))
    assert next(plain.batches(0))[1] is None and plain.extra(2)[1] is None


def poison(monkeypatch: pytest.MonkeyPatch, params: Params, steps: dict[int, int]) -> None:
    """Give D images that are not finite at one step of each listed attempt: attempt → step."""
    original, B, seed = loop.update_d, params.train.batch_size_for(16), params.train.seed
    seeds = {attempt: derived_seed(seed, "attempt", attempt) if attempt else seed for attempt in steps}
    bad = [draw_z(params.model, B, generator(seeds[attempt], "z", step)) for attempt, step in steps.items()]

    def update_d(players: Any, real: torch.Tensor, z: torch.Tensor, *rest: Any) -> Any:
        if any(torch.equal(z, bad_z) for bad_z in bad):
            real = real * float("nan")
        return original(players, real, z, *rest)

    monkeypatch.setattr(loop, "update_d", update_d)


def events_of(root: Path) -> list[tuple[Any, ...]]:
    """Return the rows of events.csv without the text: step, attempt, what, action, back_to."""
    return list(
        pd.read_csv(root / "stages/train/events.csv").drop(columns="text").itertuples(index=False, name=None)
    )


@pytest.mark.parametrize(
    "cadence", [{}, {"checkpoint_seconds": 1e9, "log_seconds": 1e9}, {"log_seconds": 0.0}]
)
def test_a_diverged_training_is_a_result(
    root: Path,
    small_params: Params,
    undisturbed: dict[str, bytes],
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    cadence: dict[str, float],
) -> None:
    """A grid would lose a cell, NaN would be saved, or the result would depend on when losses are read."""
    poison(monkeypatch, small_params, {0: 6})
    run(root, small_params, **cadence)
    assert events_of(root) == [(6, 0, "diverged", "stop", 5)]
    assert "train: diverged at step 6: not finite: d_loss nan" in capsys.readouterr().err
    ours = result(root)
    history, whole = (files["stages/train/history.csv"].splitlines() for files in (ours, undisturbed))
    assert history == whole[:6]
    described = json.loads(ours["stages/train/model.json"])
    assert described["ended"] == "diverged" and described["steps"] == 5 and described["kept_step"] == 5
    assert (root / "stages/train/snapshots/2.safetensors").exists()
    G = load_generator(root / "stages/train/generator.safetensors").network
    assert all(tensor.isfinite().all() for tensor in G.state_dict().values())


def test_divergence_at_the_first_step(
    root: Path, small_params: Params, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The later stages would fail on a training without a step."""
    poison(monkeypatch, small_params, {0: 1})
    run(root, small_params)
    assert len((root / "stages/train/history.csv").read_text().splitlines()) == 1
    assert [path.name for path in (root / "stages/train/grids").iterdir()] == ["1.png"]


@pytest.fixture
def rescued(small_params: Params) -> Params:
    """A training of 21 steps, evaluated at 4, 7, 10 …, that keeps the best weights and rescues itself."""
    changes = {"epochs": 6, "eval_every_kimg": 0.05, "keep": "best", "on_nonfinite": "rescue"}
    return updated(small_params, **{f"train__{key}": value for key, value in changes.items()})


class QuickProbe:
    """Evaluates the weights alone, so that the best step is somewhere in the middle."""

    real_spread = 1.0

    def __init__(self, *args: Any) -> None: ...

    def __call__(self, G: nn.Module) -> tuple[float, float]:
        """Return a number in the place of the KID, and the spread of real images."""
        total = float(sum(parameter.double().sum() for parameter in G.parameters()))
        return math.sin(1e4 * total), self.real_spread


def test_a_rescue_goes_back_to_a_healthy_state(
    root: Path, rescued: Params, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It would resume from a diverging state, with the same rates and draws, or hide the rescue."""
    monkeypatch.setattr(alarms, "WINDOW", 5)
    monkeypatch.setattr(alarms, "from_history", lambda *window: [])
    monkeypatch.setattr(journal, "Probe", QuickProbe)
    rates = []
    original = torch.optim.Adam

    def adam(parameters: Any, rate: float, *rest: Any, **words: Any) -> torch.optim.Adam:
        rates.append(rate)
        return original(parameters, rate, *rest, **words)

    monkeypatch.setattr("ganpipe.train.players.Adam", adam)
    # The second divergence is too early for a healthy state of its own attempt.
    poison(monkeypatch, rescued, {0: 16, 1: 11, 2: 20, 3: 19})
    run(root, rescued)
    diverged = [event for event in events_of(root) if event[2] == "diverged"]
    assert diverged == [
        (16, 0, "diverged", "rescue", 10),
        (11, 1, "diverged", "rescue", 10),
        (20, 2, "diverged", "rescue", 13),
        (19, 3, "diverged", "stop", 18),
    ]
    assert rates == [2e-4] * 2 + [1e-4] * 2 + [5e-5] * 2 + [2.5e-5] * 4
    history = pd.read_csv(root / "stages/train/history.csv")
    assert history.step.tolist() == list(range(1, 19))
    assert history.attempt.tolist() == [0] * 10 + [2] * 3 + [3] * 5
    described = json.loads((root / "stages/train/model.json").read_text())
    assert described["ended"] == "diverged" and described["interventions"] == 3


def test_a_rescued_training_resumes_exactly(
    root: Path, rescued: Params, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A kill after a rescue would end in another model than no kill."""
    monkeypatch.setattr(alarms, "WINDOW", 5)
    monkeypatch.setattr(journal, "Probe", QuickProbe)
    poison(monkeypatch, rescued, {0: 16})
    run(root, rescued)
    whole = result(root)
    for where, count in [("after checkpoint", 12), ("step", 17), ("step", 19), ("event", 3), ("best", 2)]:
        kill_in_training(root, rescued, where, count)
        run(root, rescued)
        assert result(root) == whole, where


def test_a_rescue_goes_on_on_another_machine(
    machines: Iterator[Path], rescued: Params, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The other machine would begin the rescue's attempt anew, or mix the rows of two attempts."""
    monkeypatch.setattr(alarms, "WINDOW", 5)
    monkeypatch.setattr(journal, "Probe", QuickProbe)
    poison(monkeypatch, rescued, {0: 16})
    run(first := next(machines), rescued)
    whole = result(first)
    shutil.rmtree(os.environ["GANPIPE_UNFINISHED"])
    for where, times in [("event", 3), ("after checkpoint", 12), ("before rename", 150), ("best", 2)]:
        kill_in_training(next(machines), rescued, where, times)
        run(other := next(machines), rescued)
        assert result(other) == whole, where
        shutil.rmtree(os.environ["GANPIPE_UNFINISHED"])


def test_the_best_weights_are_kept(root: Path, rescued: Params, monkeypatch: pytest.MonkeyPatch) -> None:
    """The published generator would not be the one with the best evaluation."""
    kids = iter([5.0, 3.0, 1.0, 2.0, 1.0, 4.0, 4.0, 4.0])
    judged: dict[float, dict[str, torch.Tensor]] = {}

    def judge(self: Any, G: nn.Module) -> tuple[float, float]:
        kid = next(kids)
        judged.setdefault(kid, {name: tensor.clone() for name, tensor in G.state_dict().items()})
        return kid, 30.0

    monkeypatch.setattr(journal.Probe, "__call__", judge)
    plan = run(root, rescued)
    evals = pd.read_csv(root / "stages/train/evals.csv")
    assert evals.step.tolist() == sorted(plan.eval_steps) == [4, 7, 10, 13, 16, 19, 21]
    assert json.loads((root / "stages/train/model.json").read_text())["kept_step"] == 10
    kept = load_generator(root / "stages/train/generator.safetensors").network
    assert all(torch.equal(tensor, judged[1.0][name]) for name, tensor in kept.state_dict().items())


@pytest.mark.parametrize(
    ("action", "expected"),
    [
        ("warn", [(7, 0, "collapsed", "warn", 7)]),
        ("stop", [(7, 0, "collapsed", "stop", 7)]),
        ("rollback", [(7, 0, "collapsed", "rollback", 0), (7, 1, "collapsed", "rollback", 0)]
                     + [(7, 2, "collapsed", "rollback", 0), (7, 3, "collapsed", "stop", 7)]),
    ],
)  # fmt: skip
def test_a_collapse_is_handled_as_the_params_say(
    root: Path, rescued: Params, monkeypatch: pytest.MonkeyPatch, action: str, expected: list[Any]
) -> None:
    """A collapsed training would go on all night, or a good one would stop where only a warning is wanted."""
    monkeypatch.setattr(alarms, "WARM_UP", 0)
    judged = itertools.cycle([(5.0, 30.0), (4.0, 0.3)])
    monkeypatch.setattr(journal.Probe, "__call__", lambda self, G: next(judged))
    monkeypatch.setattr(alarms, "from_history", lambda *window: [])
    run(root, updated(rescued, train__on_collapse=action))
    assert events_of(root) == expected
    ended = json.loads((root / "stages/train/model.json").read_text())["ended"]
    assert ended == ("finished" if action == "warn" else "collapsed")


def test_bfloat16_is_its_own_training(
    root: Path,
    small_params: Params,
    undisturbed: dict[str, bytes],
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """bfloat16 must change the numbers, or it is not used, but only a little, or it would not train."""
    monkeypatch.setattr(torch.cpu, "get_capabilities", dict, raising=False)
    run(root, updated(small_params, train__precision="bfloat16"))
    assert "computes it slowly; use float32" in capsys.readouterr().err
    ours = pd.read_csv(root / "stages/train/history.csv")
    theirs = pd.read_csv(io.BytesIO(undisturbed["stages/train/history.csv"]))
    assert (ours.d_loss - theirs.d_loss).abs().max() < 0.03 and not ours.equals(theirs)


@pytest.mark.parametrize(
    ("players", "expected"),
    [("turns", "dg dg dgg dg dg dgd dg dg dgg dg dg"), ("both", "dg dg dgdg dg dg dgdg dg dg dgdg dg dg")],
)
def test_extra_updates(
    root: Path, small_params: Params, monkeypatch: pytest.MonkeyPatch, players: str, expected: str
) -> None:
    """Marchesi's schedule: at 3, 9 … one more update of G, at 6, 12 … one more of D; here with 3 for 50.

    In the other reading, both are updated once more each time.
    """
    order: list[str] = []
    for name in ("update_g", "update_d"):
        original = getattr(loop, name)

        def note(*args: Any, original: Any = original, name: str = name) -> torch.Tensor:
            order.append(name[-1])
            return original(*args)

        monkeypatch.setattr(loop, name, note)
    run(root, updated(small_params, train__extra_update_every=3, train__extra_update_players=players))
    assert "".join(order) == expected.replace(" ", "")


def test_extra_updates_have_their_own_augmentation(
    root: Path, small_params: Params, monkeypatch: pytest.MonkeyPatch
) -> None:
    """D would see its extra images moved and cut as those that it has just learnt from."""
    used: list[tuple[str, tuple[float, ...]]] = []
    original = Augment.__call__

    def note(self: Augment, images: torch.Tensor, use: Use, part: slice) -> torch.Tensor:
        used.append((use, tuple(self.uniform[USES.index(use), part].flatten().tolist())))
        return original(self, images, use, part)

    monkeypatch.setattr(Augment, "__call__", note)
    extra = {"train__extra_update_every": 3, "train__extra_update_players": "both"}
    run(root, updated(small_params, train__augment=["translation"], **extra))
    assert len(used) == 3 * (11 + 3) and len(set(used)) == len(used)


@pytest.mark.parametrize(
    ("options", "changes"),
    [
        ({"save_memory": True}, {}),
        ({}, {"train__micro_batch_size": 16}),
        ({}, {"train__micro_batch_size": 99}),
    ],
)
def test_saving_memory_changes_no_number(
    root: Path, small_params: Params, undisturbed: dict[str, bytes], options: Any, changes: Any
) -> None:
    """A run that needs these options to fit in memory could not be compared with others."""
    run(root, updated(small_params, **changes), **options)
    ours, theirs = result(root), dict(undisturbed)
    # model.json names the params.
    del ours["stages/train/model.json"], theirs["stages/train/model.json"]
    assert ours == theirs


def test_a_length_in_steps(root: Path, small_params: Params, undisturbed: dict[str, bytes]) -> None:
    """Trainings of equal steps would differ by how their length is given, or snapshots be misnamed."""
    plan = run(root, updated(small_params, train__epochs=None, train__steps=11))
    assert plan.snapshot_steps == {4: 1, 7: 2, 11: 4}  # 176 images are 3.2 epochs
    ours = result(root)
    assert json.loads(ours["stages/train/model.json"])["epochs"] == 3.2
    for name, content in undisturbed.items():
        if "model.json" not in name:
            assert ours[name.replace("/3.", "/4.")] == content, name


@pytest.mark.parametrize("steps", [1, 3, 4, 5, 7, 8, 100])
def test_snapshots_of_a_length_in_steps(root: Path, small_params: Params, steps: int) -> None:
    """A snapshot would lie after the last step, or two would have one name."""
    for batch_size in (16, 200):
        changes = {"epochs": None, "steps": steps, "batch_size": batch_size, "snapshot_epochs": [1, 2, 3, 9]}
        params = updated(small_params, **{f"train__{key}": value for key, value in changes.items()})
        plan = plan_training(params.model, params.train, root)
        assert plan.steps == steps == max(plan.snapshot_steps)
        names = [plan.snapshot_steps[step] for step in sorted(plan.snapshot_steps)]
        assert names == sorted(set(names)) and plan.epoch_of(steps) == names[-1]
        assert len([rows for rows, _ in Draws(plan, 0, slice(None)).batches(0)]) == steps


def test_residual_networks_below_64_px_warn(
    tmp_path: Path,
    small_params: Params,
    write_packed: Callable[..., Path],
    capsys: pytest.CaptureFixture[str],
) -> None:
    """Xin's claims would be judged with networks whose residual layers see one pixel each."""
    (tmp_path / "ganpipe").symlink_to(ROOT / "ganpipe")
    for side, warns in ((32, True), (64, False)):
        write_packed(tmp_path, np.zeros((8, side, side, 1), np.uint8))
        changes = {"model__architecture": "residual", "train__epochs": 1, "train__batch_size": 8}
        run(
            tmp_path,
            updated(small_params, preprocess__resolution=side, model__ngf=1, model__ndf=1, **changes),
        )
        assert ("the residual layers work on 1×1 pixels" in capsys.readouterr().err) == warns


def test_resume_is_exact_with_every_option(root: Path, small_params: Params) -> None:
    """Extra updates, micro-batches and flips must draw the same random numbers in a resumed run."""
    params = updated(
        small_params,
        train__epochs=None,
        train__steps=9,
        train__g_label=0.9,
        train__extra_update_every=2,
        train__extra_update_players="both",
        train__d_batches="mixed",
        train__micro_batch_size=5,
        train__flip=True,
        train__ema_halflife_kimg=None,
        model__z_distribution="uniform",
        model__z_limit=1.0,
    )
    run(root, params)
    whole = result(root)
    kill_in_training(root, params, "after checkpoint", 7)
    run(root, params)
    assert result(root) == whole
