"""The alarms: on made-up tables, and on a small training whose z is constant."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
from conftest import ROOT, digits, updated

from ganpipe.params import Params
from ganpipe.train import alarms, plan, probe
from ganpipe.train.alarms import WINDOW, from_evals, from_history
from ganpipe.train.options import TrainOptions
from ganpipe.train.plan import plan_training
from ganpipe.train.probe import Probe
from ganpipe.train.stage import train

PLAIN, ONE_SIDED, BOTH = (1.0, 0.0), (0.9, 0.0), (0.9, 0.1)


def window(*values: float) -> np.ndarray:
    """Return WINDOW equal steps: d_loss, g_loss, d_real, d_fake and both norms, float64 WINDOW×6."""
    return np.tile(values, (WINDOW, 1))


@pytest.mark.parametrize(
    ("labels", "values"),
    [
        (PLAIN, (1.386, 0.693, 0.5, 0.5, 0.2, 0.15)),
        (PLAIN, (0.08, 4.7, 0.97, 0.03, 5.0, 15.0)),
        (ONE_SIDED, (0.49, 3.04, 0.81, 0.07, 39.0, 25.0)),
        (BOTH, (0.96, 1.68, 0.73, 0.3, 12.0, 10.0)),
    ],
)
def test_healthy_trainings_are_left_alone(labels: tuple[float, float], values: tuple[float, ...]) -> None:
    """False alarms would be ignored, and roll-backs would discard good trainings."""
    assert from_history(1000, window(*values), labels) == []


@pytest.mark.parametrize(
    ("labels", "values", "kind", "words"),
    [
        (PLAIN, (0.004, 5.7, 0.999, 0.004, 0.06, 160.0), "saturated", "D is certain"),
        # No loss below ln 2 − 0.04 is possible with these labels.
        (BOTH, (0.655, 2.3, 0.898, 0.101, 0.26, 29.0), "saturated", "D is certain"),
        (PLAIN, (4.0, 0.01, 0.99, 0.99, 0.5, 0.5), "saturated", "D takes generated images for real"),
        (PLAIN, (1.38, 0.7, 0.5, 0.5, 0.2, 0.004), "gradients", "of G vanish: norm 0.004"),
        (PLAIN, (1.38, 0.7, 0.5, 0.5, 4e3, 0.2), "gradients", "of D explode: norm 4e+03"),
        (PLAIN, (54.0, 2.0, 0.8, 0.1, 110.0, 90.0), "runaway", "loss(D) 54"),
        (PLAIN, (1.0, 200.0, 0.8, 0.1, 110.0, 90.0), "runaway", "loss(G) 200"),
    ],
)
def test_each_alarm_of_a_history(
    labels: tuple[float, float], values: tuple[float, ...], kind: str, words: str
) -> None:
    """A training in which a player has lost would continue for nothing."""
    (alarm,) = from_history(1000, window(*values), labels)
    assert (alarm.kind, alarm.severe) == (kind, True) and words in alarm.text
    assert from_history(100, window(*values), labels) == [], "no alarm during the warm-up"
    spike = window(1.3, 0.8, 0.5, 0.45, 2.0, 2.0)
    spike[: WINDOW // 2 - 1] = values
    assert from_history(1000, spike, labels) == [], "less than half of the window is no alarm"


def test_marchesis_bounds_only_warn_and_only_together() -> None:
    """Healthy trainings, which violate one of the bounds most of the time, would raise alarms."""
    for losses, expected in (((1.3, 2.9), []), ((0.2, 4.0), []), ((1.3, 3.1), [("bounds", False)])):
        raised = from_history(1000, window(*losses, 0.6, 0.3, 1.0, 1.0), PLAIN)
        assert [(alarm.kind, alarm.severe) for alarm in raised] == expected


def evaluations(shares: list[float], kids: list[float], every: int = 100) -> list[list[float]]:
    """Return rows of evals.csv."""
    rows = zip(shares, kids, strict=True)
    return [[every * i, 6400.0 * i, kid, 40 * share, 40.0] for i, (share, kid) in enumerate(rows, 1)]


@pytest.mark.parametrize(
    ("shares", "kids", "kinds"),
    [
        ([0.0], [9.0], []),  # the average of G's weights, early
        ([0.0, 0.01, 0.8, 0.9], [9.0, 8.0, 3.0, 2.0], ["collapsed"]),
        ([0.05, 0.03, 0.3, 0.8], [9.0, 8.0, 3.0, 2.0], []),
        ([0.0, 0.0, 0.0, 0.0], [9.0, 20.0, 14.0, 12.0], ["collapsed"]),  # never varied
        ([0.4, 0.9, 0.8, 0.05], [9.0, 4.0, 3.0, 8.0], ["collapsed"]),  # lost what it had reached
        ([0.4, 0.9, 0.8, 0.15], [9.0, 4.0, 3.0, 8.0], []),
        ([0.4, 0.4, 0.4, 0.4], [9.0, 5.0, 4.98, 4.99], ["frozen"]),
        ([0.4, 0.4, 0.4, 0.4], [5.0, 4.9, 4.98, 4.8], []),
        ([0.9, 0.9, 0.9, 0.9], [0.001, -0.0005, 0.0012, 0.0003], []),  # perfect: the KID is noise around 0
    ],
)
def test_alarms_of_images(shares: list[float], kids: list[float], kinds: list[str]) -> None:
    """A collapse would pass unnoticed, or a healthy beginning would be taken for one."""
    rows = evaluations(shares, kids)
    raised = [alarm.kind for i in range(len(rows)) for alarm in from_evals(rows[: i + 1])]
    assert list(dict.fromkeys(raised)) == kinds


def test_g_that_is_evaluated_often_is_not_frozen() -> None:
    """A healthy G, which changes little within a few steps, would raise an alarm."""
    kids = [5 * 0.997**i for i in range(60)]
    assert from_evals(evaluations([0.8] * 60, kids, every=10)) == []
    assert [a.kind for a in from_evals(evaluations([0.8] * 60, [5.0] * 60, every=10))] == ["frozen"]


@pytest.fixture
def root(tmp_path: Path, write_packed: Callable[..., Path]) -> Path:
    """A checkout with 60 digits of 16 px."""
    write_packed(tmp_path, digits()[::83][:60, 6:22, 6:22])
    (tmp_path / "ganpipe").symlink_to(ROOT / "ganpipe")
    return tmp_path


def trained(root: Path, params: Params) -> tuple[list[Any], str]:
    """Train; return the alarms (step, what, action) and how it ended."""
    train(plan_training(params.model, params.train, root), root, TrainOptions(checkpoint_seconds=0.2))
    events = pd.read_csv(root / "stages/train/events.csv")
    described = json.loads((root / "stages/train/model.json").read_text())
    return list(events[["step", "what", "action"]].itertuples(index=False, name=None)), described["ended"]


def test_a_real_collapse(root: Path, small_params: Params, monkeypatch: pytest.MonkeyPatch) -> None:
    """A real collapse would pass unnoticed, or a kill would make the training forget its warning."""
    monkeypatch.setattr(alarms, "WARM_UP", 60)
    # 90 steps, evaluated after 45 and 90.
    params = updated(small_params, train__epochs=24, train__eval_every_kimg=0.72, train__snapshot_epochs=[])
    params = updated(params, train__dlr=1e-3, train__glr=1e-3, model__ngf=8, model__ndf=8)
    assert trained(root, params) == ([], "finished")

    def one_z(model: Any, count: int, source: torch.Generator) -> torch.Tensor:
        return torch.ones(count, model.nz)

    for module in (plan, probe):
        monkeypatch.setattr(module, "draw_z", one_z)
    expected = [(90, "collapsed", "warn")]
    warned = updated(params, train__seed=1)
    assert trained(root, warned) == (expected, "finished")
    whole = (root / "stages/train/events.csv").read_bytes()

    calls, evaluate = iter(range(9)), Probe.__call__
    with monkeypatch.context() as patch:

        def dies(self: Probe, G: torch.nn.Module) -> tuple[float, float]:
            if next(calls) == 1:
                raise KeyboardInterrupt
            return evaluate(self, G)

        patch.setattr(Probe, "__call__", dies)
        with pytest.raises(KeyboardInterrupt):
            trained(root, warned)
    assert trained(root, warned) == (expected, "finished")
    assert (root / "stages/train/events.csv").read_bytes() == whole
