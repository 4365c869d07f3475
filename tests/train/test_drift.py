"""The drifting loss: against a plain writing of its formula, its features, and trainings with it."""

import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from conftest import ROOT, digits, updated
from torch.nn.functional import adaptive_avg_pool2d, interpolate

from ganpipe.common.errors import Interrupted
from ganpipe.metrics.lite0 import Lite0
from ganpipe.params import Params
from ganpipe.train import loop, stage, step
from ganpipe.train.drift import STAGES, Drift, FrozenFeatures, cell_means, drifting_loss
from ganpipe.train.options import TrainOptions
from ganpipe.train.plan import Plan, plan_training

Vector = list[float]


def drift_of(X: list[Vector], P: list[Vector], taus: list[float]) -> tuple[float, list[Vector]]:
    """Write V and s of one place out, number by number, after arXiv 2602.04770: generated X, real P."""
    s = sum(math.dist(x, p) for x in X for p in P) / (len(X) * len(P))
    X, P = [[v / s for v in x] for x in X], [[v / s for v in p] for p in P]
    total = [[0.0] * len(X[0]) for _ in X]
    for tau in taus:
        points = P + X
        e = [
            [0.0 if k == len(P) + i else math.exp(-math.dist(x, y) / tau) for k, y in enumerate(points)]
            for i, x in enumerate(X)
        ]
        columns = [sum(row[k] for row in e) for k in range(len(points))]
        K = [[math.sqrt(v / sum(row) * v / columns[k]) for k, v in enumerate(row)] for row in e]
        V = []
        for row in K:
            pull, push = row[: len(P)], row[len(P) :]
            to_real = [
                sum(push) * sum(a * p[d] for a, p in zip(pull, P, strict=True)) for d in range(len(X[0]))
            ]
            to_fake = [
                sum(pull) * sum(a * x[d] for a, x in zip(push, X, strict=True)) for d in range(len(X[0]))
            ]
            V.append([a - b for a, b in zip(to_real, to_fake, strict=True)])
        size = math.sqrt(sum(v * v for row in V for v in row) / len(V))
        total = [[t + v / size for t, v in zip(*rows, strict=True)] for rows in zip(total, V, strict=True)]
    return s, total


def test_the_loss_is_the_formula_and_its_gradient_the_drift() -> None:
    """G would be pulled elsewhere than the paper's field says."""
    torch.manual_seed(0)
    fake = torch.randn(3, 5, 4, dtype=torch.float64, requires_grad=True)
    real, taus = torch.randn(3, 7, 4, dtype=torch.float64) + 1, [0.05, 0.2]
    loss = drifting_loss(fake, real, taus)
    loss.backward()
    value = 0.0
    for place in range(3):
        s, V = drift_of(fake[place].tolist(), real[place].tolist(), taus)
        expected = -torch.tensor(V, dtype=torch.float64) / (s * 5 * 3)
        assert fake.grad is not None
        torch.testing.assert_close(fake.grad[place], expected, rtol=1e-6, atol=1e-9)
        value += (expected * fake[place]).sum().item()
    assert loss.item() == pytest.approx(value, rel=1e-6)


def test_points_that_follow_it_become_the_real_ones() -> None:
    """The loss would not bring a generator to the data, but to a part of it or to its mean."""
    torch.manual_seed(0)
    real = torch.cat([torch.randn(1, 100, 2) * 0.2 + centre for centre in (-2.0, 2.0)], 1)
    fake = (torch.randn(1, 60, 2) * 0.2).requires_grad_()
    optimizer = torch.optim.SGD([fake], lr=2.0)
    for _ in range(300):
        optimizer.zero_grad()
        drifting_loss(fake, real, [0.05, 0.2]).backward()
        optimizer.step()
    left = fake[0, :, 0] < 0
    assert 20 < left.sum() < 40  # both modes
    assert (fake[0, left].mean(0) + 2).abs().max() < 0.3 and (fake[0, ~left].mean(0) - 2).abs().max() < 0.3


def test_one_image_alone_has_no_drift() -> None:
    """A last micro-batch of one image, which nothing repels, would turn the weights into NaN."""
    fake = torch.randn(2, 1, 3, requires_grad=True)
    drifting_loss(fake, torch.randn(2, 9, 3), [0.05]).backward()
    assert fake.grad is not None and not fake.grad.any()


@pytest.mark.parametrize(("side", "seen", "channels"), [(28, 64, 1), (64, 128, 3)])
def test_features_are_those_of_the_network(side: int, seen: int, channels: int) -> None:
    """G would be drawn in another network than the one whose weights were checked."""
    torch.manual_seed(0)
    images = torch.rand(3, channels, side, side) * 2 - 1
    pixels, *features = FrozenFeatures(side, seen)(images)
    torch.testing.assert_close(pixels[:, 0].unflatten(1, (64, -1)), cells_of(images, 8))
    resized = interpolate((images + 1) * 127.5, (seen, seen), mode="bilinear", antialias=True)
    x = ((resized - 127) / 128).expand(-1, 3, -1, -1).contiguous()
    stages = Lite0(seen).network.forward_intermediates(x, indices=STAGES, intermediates_only=True)
    assert [maps.shape[1] for maps in stages] == [24, 40, 112, 320]
    for maps, places, moments in zip(stages, features[::2], features[1::2], strict=True):
        torch.testing.assert_close(places, cells_of(maps, 4), rtol=1e-3, atol=1e-3)
        expected = torch.cat([maps.mean((2, 3)), (maps.var((2, 3), correction=0) + 1e-6).sqrt()], 1)
        torch.testing.assert_close(moments[:, 0], expected, rtol=1e-3, atol=1e-3)


def cells_of(maps: torch.Tensor, most: int) -> torch.Tensor:
    """Average over a grid as torch does, N×cells×C."""
    return adaptive_avg_pool2d(maps, min(most, maps.shape[-1])).flatten(2).transpose(1, 2)


@pytest.mark.parametrize("side", [2, 4, 7, 14])
def test_cell_means(side: int) -> None:
    """Places would overlap otherwise than in torch, or be mixed up."""
    maps = torch.randn(2, 3, side, side)
    torch.testing.assert_close(cell_means(maps, 4), cells_of(maps, 4))


@pytest.fixture
def root(tmp_path: Path, write_packed: Callable[..., Path]) -> Path:
    """A checkout with forty digits of 16 px."""
    write_packed(tmp_path, digits()[::120, 6:22, 6:22])
    (tmp_path / "ganpipe").symlink_to(ROOT / "ganpipe")
    return tmp_path


@pytest.fixture(scope="module")
def drifting(small_params: Params) -> Params:
    """Five steps with the drifting loss, augmentation, and all that a step may have besides."""
    values: dict[str, Any] = {"epochs": None, "steps": 5, "drift_weight": 1.0, "drift_fade_from": 0.5}
    values |= {"drift_resolution": 32, "drift_positives": 8, "drift_bank": 30, "flip": True}
    values |= {"micro_batch_size": 6, "extra_update_every": 2}
    values |= {"augment": ["colour", "translation", "cutout", "jitter"]}
    plain = {f"train__{name}": value for name, value in values.items()}
    return updated(small_params, model__architecture="resize", **plain)


def train(root: Path, params: Params) -> bytes:
    """Train with a checkpoint after each step, and return the generator's file."""
    plan = plan_training(params.model, params.train, root)
    stage.train(plan, root, TrainOptions(checkpoint_seconds=0))
    return (root / "stages/train/generator.safetensors").read_bytes()


def test_an_interrupted_training_goes_on_exactly(
    root: Path, drifting: Params, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A resumed training would see other real images or another weight than an undisturbed one."""
    whole = train(root, drifting)
    original = loop._record

    def interrupt(journal: Any, ranks: Any, number: int, *rest: Any, **options: Any) -> None:
        original(journal, ranks, number, *rest, **options)
        if number == 3:
            raise Interrupted(15, number)

    monkeypatch.setattr(loop, "_record", interrupt)
    with pytest.raises(Interrupted):
        train(root, drifting)
    monkeypatch.undo()
    assert train(root, drifting) == whole
    assert train(root, updated(drifting, train__drift_weight=0.5)) != whole
    assert train(root, updated(drifting, train__augment=["translation"])) != whole


def test_without_weight_nothing_is_loaded(
    root: Path, small_params: Params, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Every training would wait for a network that it does not use."""
    monkeypatch.setattr(step, "Drift", None)  # a call would be a TypeError
    train(root, small_params)
    assert not (root / ".ganpipe/features").exists()


def plan_of(root: Path, params: Params) -> Plan:
    """Plan a training."""
    return plan_training(params.model, params.train, root)


def test_the_bank_is_cached_and_mirrored(root: Path, drifting: Params) -> None:
    """Each cell of a grid would compute the same features again, or see images that are not there."""
    mirrored, cpu = Drift(plan_of(root, drifting), torch.device("cpu")), torch.device("cpu")
    assert len(mirrored.bank) == 60  # thirty images and their mirrors
    plain = Drift(plan_of(root, updated(drifting, train__flip=False)), cpu)
    assert torch.equal(plain.bank, mirrored.bank[:30])
    files = {path: path.stat().st_mtime_ns for path in (root / ".ganpipe/features").glob("*.npz")}
    assert len(files) == 2
    few = Drift(plan_of(root, updated(drifting, train__flip=False, train__drift_bank=90)), cpu)
    assert len(few.bank) == len(few.bank.unique(dim=0)) == 90  # forty images, no two jittered alike
    files.update({path: path.stat().st_mtime_ns for path in (root / ".ganpipe/features").glob("*.npz")})
    again = Drift(plan_of(root, updated(drifting, train__glr=0.1)), cpu)
    assert torch.equal(again.bank, mirrored.bank)
    assert files == {path: path.stat().st_mtime_ns for path in files}


def test_the_weight_falls_and_the_choice_repeats(root: Path, drifting: Params) -> None:
    """The loss would stay when D should finish the detail, or a resumed step would differ."""
    drift, weights = Drift(plan_of(root, drifting), torch.device("cpu")), []
    addresses = drift.chosen.data_ptr(), drift.weight.data_ptr()  # where a recorded step reads
    for i in range(1, 6):
        drift.draw(0, i)
        weights.append(drift.weight.item())
    assert np.allclose(weights, [1, 1, 0.8, 0.4, 0])
    last = drift.chosen.clone()
    drift.draw(0, 1)
    assert not torch.equal(drift.chosen, last) and drift.chosen.max() < 60
    drift.draw(0, 5)
    assert torch.equal(drift.chosen, last)
    assert addresses == (drift.chosen.data_ptr(), drift.weight.data_ptr())
