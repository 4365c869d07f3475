"""What is to be trained on, step by step: all figures of a training, and which images each step sees."""

import math
from collections.abc import Collection, Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch

from ganpipe.common import code as closure
from ganpipe.common import dataset as packed
from ganpipe.common import seeds as rng
from ganpipe.common.dataset import Dataset
from ganpipe.models.layers import NetworkSpec
from ganpipe.params import Model, Train
from ganpipe.train import resume as unfinished


@dataclass(frozen=True)
class Plan:
    """What is to be trained, all figures known before the first step.

    Attributes:
        data: the packed images.
        rows: rows of the packed images to train on.
        batch_size: images in one step.
        steps: steps in the whole training, the last one reaching the last image of the last epoch.
        snapshot_steps: step → epoch after which weights and a grid are kept.
        eval_steps: steps after which the generator is judged.
        folder: where the training lives until it is finished.
    """

    model: Model
    train: Train
    data: Dataset
    rows: np.ndarray
    batch_size: int
    steps: int
    snapshot_steps: dict[int, int]
    eval_steps: frozenset[int]
    folder: Path

    @property
    def spec(self) -> NetworkSpec:
        """What both networks are built from."""
        return NetworkSpec(self.model, self.resolution, self.channels)

    @property
    def anchors(self) -> Collection[int]:
        """Steps whose state is kept for a rescue or roll-back: where G is judged, else after named epochs."""
        wanted = self.train.on_nonfinite == "rescue" or self.train.on_collapse == "rollback"
        return (self.eval_steps or self.snapshot_steps.keys()) if wanted else ()

    @property
    def resolution(self) -> int:
        """Pixels a side."""
        return int(self.data.images.shape[1])

    @property
    def channels(self) -> int:
        """1 for grey, 3 for colour."""
        return int(self.data.images.shape[3])

    def epoch_of(self, step: int) -> int:
        """Return the epoch that a step belongs to, from 1."""
        return self.snapshot_steps.get(step) or max(1, math.ceil(step * self.batch_size / len(self.rows)))


def plan_training(model: Model, train: Train, root: Path = Path()) -> Plan:
    """Open the data and work out a training's figures and its folder.

    Raises:
        UserError: there is no data to train on, or it cannot be trained on with these params.
    """
    data = packed.load(root / "stages/preprocess")
    rows = data.train_rows
    batch_size = train.batch_size_for(data.images.shape[1])
    steps_of = {
        epoch: math.ceil(epoch * len(rows) / batch_size) for epoch in (*train.snapshot_epochs, train.epochs)
    }
    steps = steps_of[train.epochs]
    identity = {
        "model": model.model_dump(),
        "train": train.model_dump() | {"batch_size": batch_size},
        "data": data.digest,
        "code": closure.code_digest(closure.import_closure("ganpipe.train.stage", root), root),
    }
    return Plan(
        model,
        train,
        data,
        rows,
        batch_size,
        steps,
        snapshot_steps={step: epoch for epoch, step in steps_of.items() if epoch <= train.epochs},
        eval_steps=_eval_steps(train.eval_every_kimg, steps, batch_size),
        folder=unfinished.folder_for(root, identity),
    )


def _eval_steps(every_kimg: float | None, steps: int, batch_size: int) -> frozenset[int]:
    """Return the steps that reach every so many thousand images, and the last one; none for None."""
    if every_kimg is None:
        return frozenset()
    reached = [int(step * batch_size / (1000 * every_kimg)) for step in range(steps + 1)]
    return frozenset(step for step in range(1, steps + 1) if reached[step] > reached[step - 1]) | {steps}


def seed_of(params: Train, attempt: int) -> int:
    """Return what the random numbers of an attempt come from: for the plain training, train.seed."""
    return rng.derived_seed(params.seed, "attempt", attempt) if attempt else params.seed


def batches(plan: Plan, start: int) -> Iterator[np.ndarray]:
    """Yield the rows of each step after `start`: the epochs' shuffled orders in turn, cut into batches.

    No image is dropped, every batch is full, and a data set smaller than a batch is no special case.
    """
    count, B = len(plan.rows), plan.batch_size
    ordered, order = range(0), plan.rows
    for step in range(start, plan.steps):
        epochs = range(step * B // count, ((step + 1) * B - 1) // count + 1)
        if epochs != ordered:
            ordered, order = epochs, plan.rows[np.concatenate([_order(plan, epoch) for epoch in epochs])]
        first = step * B - epochs[0] * count
        yield order[first : first + B]


def _order(plan: Plan, epoch: int) -> np.ndarray:
    source = rng.generator(plan.train.seed, "shuffle", epoch)
    return torch.randperm(len(plan.rows), generator=source).numpy()


def extra_rows(plan: Plan, seed: int, step: int) -> np.ndarray:
    """Draw the rows of an extra update, beside the epochs' order, which counts the images seen."""
    source = rng.generator(seed, "extra/rows", step)
    return plan.rows[torch.randint(len(plan.rows), (plan.batch_size,), generator=source).numpy()]


def mirrored(plan: Plan, seed: int, purpose: str, step: int) -> torch.Tensor | None:
    """Draw which images of a batch are mirrored, bool B; None where train.flip is off."""
    if not plan.train.flip:
        return None
    return torch.rand(plan.batch_size, generator=rng.generator(seed, purpose, step)) < 0.5
