"""The plan of a training, known before its first step, and the random draws of its steps."""

import hashlib
import math
from collections.abc import Collection, Iterator
from dataclasses import dataclass
from itertools import chain, count, islice
from pathlib import Path

import numpy as np
import torch

from ganpipe.common import dataset
from ganpipe.common.classes import read_classes
from ganpipe.common.code import code_digest, import_closure
from ganpipe.common.seeds import derived_seed, generator
from ganpipe.common.stages import stage_folder
from ganpipe.models.generator import draw_z, with_classes
from ganpipe.models.layers import NetworkSpec
from ganpipe.params import Model, Train
from ganpipe.train.devices.feed import Draw
from ganpipe.train.resume.unfinished import folder_for


@dataclass(frozen=True)
class Plan:
    """What is trained on which images, for how long, and where the unfinished training is kept."""

    model: Model
    train: Train
    data: dataset.Dataset
    rows: np.ndarray  # rows of the packed images to train on, int64
    classes: dict[str, int]  # class → its training images; empty unless model.conditional
    class_of: np.ndarray  # each packed image's class, int64, as a place in `classes`; else empty
    batch_size: int
    steps: int  # train.steps, or those that reach the last image of the last epoch
    snapshot_steps: dict[int, int]  # step after which weights and a grid are saved → epoch reached
    eval_steps: frozenset[int]  # after which the generator is evaluated
    folder: Path  # of the unfinished training

    @property
    def spec(self) -> NetworkSpec:
        """The specification of both networks."""
        _, _, resolution, channels = self.data.images.shape
        return NetworkSpec(self.model, resolution, channels, self.classes)

    @property
    def anchors(self) -> Collection[int]:
        """Steps whose state is saved for a rescue or roll-back: the evaluations, else the snapshots."""
        going_back = self.train.on_nonfinite == "rescue" or self.train.on_collapse == "rollback"
        return (self.eval_steps or self.snapshot_steps.keys()) if going_back else ()

    def epoch_of(self, step: int) -> int:
        """Return the epoch that a step belongs to, from 1."""
        return self.snapshot_steps.get(step) or max(1, math.ceil(step * self.batch_size / len(self.rows)))

    def latents(self, z: torch.Tensor, rows: np.ndarray) -> torch.Tensor:
        """Join z, float32 N×nz, with the classes of N packed images: latent vectors float32 N×inputs."""
        return with_classes(self.spec, z, torch.from_numpy(self.class_of[rows])) if self.classes else z


def plan_training(model: Model, train: Train, root: Path = Path()) -> Plan:
    """Open the packed images and compute the plan; params, data and code decide its folder.

    Raises UserError: there are no packed images, or model.conditional is true and their classes do not do.
    """
    data = dataset.load(stage_folder(root, "preprocess"))
    rows = data.train_rows
    classes, class_of = read_classes(root, data) if model.conditional else ({}, rows[:0])
    batch_size = train.batch_size_for(data.images.shape[1])
    steps = train.steps or math.ceil((train.epochs or 0) * len(rows) / batch_size)
    last = train.epochs or math.ceil(steps * batch_size / len(rows))
    epochs = [epoch for epoch in train.snapshot_epochs if epoch < last]
    snapshot_steps = {math.ceil(epoch * len(rows) / batch_size): epoch for epoch in epochs} | {steps: last}
    eval_steps = _eval_steps(train.eval_every_kimg, steps, batch_size)
    identity = {
        "model": model.model_dump(),
        "train": train.model_dump() | {"batch_size": batch_size},
        "data": data.digest,
        "classes": [classes, hashlib.sha256(class_of.tobytes()).hexdigest()],
        "code": code_digest(import_closure("ganpipe.train.stage", root), root),
    }
    folder = folder_for(root, identity)
    known = model, train, data, rows, classes, class_of
    return Plan(*known, batch_size, steps, snapshot_steps, eval_steps, folder)


def _eval_steps(every_kimg: float | None, steps: int, batch_size: int) -> frozenset[int]:
    """Return the steps that complete each `every_kimg` thousand images, and the last step; none for None."""
    if every_kimg is None:
        return frozenset()
    reached = [int(step * batch_size / (1000 * every_kimg)) for step in range(steps + 1)]
    return frozenset(step for step in range(1, steps + 1) if reached[step] > reached[step - 1]) | {steps}


@dataclass(frozen=True)
class Draws:
    """The random draws of each step; all ranks draw the whole batch and return their `part` of it."""

    plan: Plan
    attempt: int
    part: slice

    @property
    def seed(self) -> int:
        """The seed of the attempt's random numbers; train.seed for the plain training, attempt 0."""
        seed = self.plan.train.seed
        return derived_seed(seed, "attempt", self.attempt) if self.attempt else seed

    def z(self, step: int, rows: np.ndarray, purpose: str = "z") -> torch.Tensor:
        """Draw latent vectors, float32 B×inputs on the CPU, with the classes of this part's real images.

        D's batch norm then sees the same classes in generated images as in real ones.
        """
        z = draw_z(self.plan.model, self.plan.batch_size, generator(self.seed, purpose, step))
        return self.plan.latents(z[self.part], rows)

    def batches(self, start: int) -> Iterator[Draw]:
        """Yield the images of each step after `start`: the epochs' shuffled orders, cut into batches.

        No image is dropped, every batch is full, and a data set may be smaller than a batch.
        """
        B = self.plan.batch_size
        epoch, seen = divmod(start * B, len(self.plan.rows))
        rows = islice(chain.from_iterable(map(self._order, count(epoch))), seen, None)
        for step in range(start + 1, self.plan.steps + 1):
            yield self._draw(np.fromiter(islice(rows, B), np.int64, B), "flip", step)

    def extra(self, step: int) -> Draw:
        """Draw the images of an extra update, which does not count towards the epochs."""
        source, rows = generator(self.seed, "extra/rows", step), self.plan.rows
        chosen = rows[torch.randint(len(rows), (self.plan.batch_size,), generator=source).numpy()]
        return self._draw(chosen, "extra/flip", step)

    def extra_z(self, step: int) -> torch.Tensor:
        """Draw the latent vectors of an extra update, as `z`."""
        return self.z(step, self.extra(step)[0], "extra/z")

    def _order(self, epoch: int) -> np.ndarray:
        source = generator(self.plan.train.seed, "shuffle", epoch)
        return self.plan.rows[torch.randperm(len(self.plan.rows), generator=source).numpy()]

    def _draw(self, rows: np.ndarray, purpose: str, step: int) -> Draw:
        if not self.plan.train.flip:
            return rows[self.part], None
        mirrored = torch.rand(len(rows), generator=generator(self.seed, purpose, step)) < 0.5
        return rows[self.part], mirrored[self.part]
