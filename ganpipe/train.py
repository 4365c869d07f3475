"""The train stage: packed images in, a generator, its history and its snapshots out."""

import json
import math
import shutil
import signal
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from types import FrameType
from typing import Any

import numpy as np
import torch

from ganpipe import checkpoint, closure, files, memory, models, packed, pictures, rng, snapshot, unfinished
from ganpipe.ema import EMA
from ganpipe.errors import Interrupted, UserError
from ganpipe.feed import Feed
from ganpipe.packed import Packed
from ganpipe.params import Model, Train
from ganpipe.progress import Progress
from ganpipe.table import Table
from ganpipe.updates import update_d, update_g

FOLDER = Path("stages/train")
OUTPUTS = ("generator.safetensors", "model.json", "history.csv", "perf.csv", "grids", "snapshots")
HISTORY = ("step", "nimg", "epoch", "d_loss", "g_loss", "d_real", "d_fake")
PERF = ("step", "nimg", "seconds", "images_per_second")


@dataclass(frozen=True)
class Plan:
    """What is to be trained, all figures known before the first step.

    Attributes:
        data: the packed images.
        rows: rows of the packed images to train on.
        batch_size: images in one step.
        steps: steps in the whole training, the last one reaching the last image of the last epoch.
        snapshot_steps: step → epoch after which weights and a grid are kept.
        folder: where the training lives until it is finished.
    """

    model: Model
    train: Train
    data: Packed
    rows: np.ndarray
    batch_size: int
    steps: int
    snapshot_steps: dict[int, int]
    folder: Path

    @property
    def resolution(self) -> int:
        """Pixels a side."""
        return int(self.data.images.shape[1])

    @property
    def channels(self) -> int:
        """1 for grey, 3 for colour."""
        return int(self.data.images.shape[3])


def plan(model: Model, train: Train, root: Path = Path()) -> Plan:
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
    identity = {
        "model": model.model_dump(),
        "train": train.model_dump() | {"batch_size": batch_size},
        "data": data.digest,
        "code": closure.code_digest(closure.import_closure("ganpipe.train", root), root),
    }
    return Plan(
        model,
        train,
        data,
        rows,
        batch_size,
        steps=steps_of[train.epochs],
        snapshot_steps={step: epoch for epoch, step in steps_of.items() if epoch <= train.epochs},
        folder=unfinished.folder_for(root, identity),
    )


def train(
    plan: Plan,
    root: Path = Path(),
    device: str = "cpu",
    fresh: bool = False,
    save_memory: bool = False,
    log_seconds: float = 2.0,
    checkpoint_seconds: float = 30.0,
    data_memory_gb: float | None = None,
) -> None:
    """Train, or go on training, and publish the result in stages/train.

    Args:
        plan: what is to be trained.
        root: the checkout.
        device: a torch device such as "cpu" or "cuda".
        fresh: forget what an interrupted run of the same training left.
        save_memory: compute activations again in the backward pass instead of keeping them.
        log_seconds: seconds between reads of the losses from the device.
        checkpoint_seconds: seconds between checkpoints; 0 for one after each step.
        data_memory_gb: most GB of images to keep on a GPU; None: a quarter of what is free there.

    Raises:
        Interrupted: SIGTERM, SIGINT or SIGUSR1 came; a checkpoint was written.
        UserError: the same training runs already, or the losses are not finite.
    """
    with unfinished.held(plan.folder):
        if fresh:
            unfinished.remove(plan.folder)
            plan.folder.mkdir(parents=True)
        options = save_memory, log_seconds, checkpoint_seconds, data_memory_gb
        _loop(plan, torch.device(device), *options)
        _publish(plan.folder, root / FOLDER)
        unfinished.remove(plan.folder)


def _loop(
    plan: Plan,
    device: torch.device,
    save_memory: bool,
    log_seconds: float,
    checkpoint_seconds: float,
    data_memory_gb: float | None,
) -> None:
    params, B = plan.train, plan.batch_size

    # Build both networks, the average of G that is sampled from, and one optimizer each.
    torch.manual_seed(rng.derived_seed(params.seed, "init"))
    layout: Any = {"device": device, "memory_format": torch.channels_last}
    G = models.generator(plan.model, plan.resolution, plan.channels).to(**layout)
    D = models.discriminator(plan.model, plan.resolution, plan.channels).to(**layout)
    G_ema = EMA(G, params.ema_halflife_kimg, B) if params.ema_halflife_kimg is not None else None
    betas = (params.beta1, params.beta2)
    G_optimizer = torch.optim.Adam(G.parameters(), params.glr, betas, fused=True)
    D_optimizer = torch.optim.Adam(D.parameters(), params.dlr, betas, fused=True)
    networks = {"G": G, "D": D} | ({"G_ema": G_ema.model} if G_ema else {})
    optimizers: dict[str, torch.optim.Optimizer] = {"G_optimizer": G_optimizer, "D_optimizer": D_optimizer}
    sampled = G_ema.model if G_ema else G
    if save_memory:
        memory.save_memory(G)
        memory.save_memory(D)

    # Go on from the last checkpoint of an interrupted run of this very training, if there is one.
    start = 0
    if found := checkpoint.load(plan.folder):
        start, state = found
        checkpoint.restore(state, networks, optimizers)
        print(
            f"train: going on after step {start} of {plan.steps} (GANPIPE_FRESH=1 starts anew)",
            file=sys.stderr,
        )
    _write_json(plan.folder / "model.json", _description(plan))
    grid_size = pictures.columns_for(plan.resolution) ** 2
    grid_z = rng.draw_z(plan.model, grid_size, rng.generator(params.seed, "grid"))
    feed = Feed(plan.data.images, device, data_memory_gb)
    draws = enumerate(_batches(plan, start), start + 1)
    batches = feed.batches((drawn, _mirrored(plan, "flip", step)) for step, drawn in draws)
    part, labels = params.micro_batch_size or B, (params.real_label, params.fake_label)
    rows: list[tuple[int, torch.Tensor]] = []

    with (
        Table(plan.folder / "history.csv", HISTORY, start) as history,
        Table(plan.folder / "perf.csv", PERF, start) as perf,
        Progress("train", plan.steps * B, done=start * B) as progress,
        _signals() as asked,
    ):
        seconds_before = perf.last[2] if perf.last else 0.0
        began = logged = saved = time.monotonic()
        logged_step = start
        for step in range(start + 1, plan.steps + 1):
            # Draw the batch and the latent vectors of this step.
            real = next(batches)
            z = rng.draw_z(plan.model, B, rng.generator(params.seed, "z", step)).to(device)

            # Update D, then G through the new D, on the same generated images. In parts they are made twice:
            # the graph of all of them is what there is no memory for.
            fake = G(z) if part >= B else None
            d_numbers = update_d(G, D, D_optimizer, real, z, fake, labels, part)
            g_loss = update_g(G, D, G_optimizer, z, fake, part)

            # Every k steps one player has one more update on a fresh batch: G, then D, in turn (Marchesi).
            if params.extra_update_every and step % params.extra_update_every == 0:
                z = rng.draw_z(plan.model, B, rng.generator(params.seed, "extra/z", step)).to(device)
                if step // params.extra_update_every % 2:
                    update_g(G, D, G_optimizer, z, None, part)
                else:
                    real = feed(_extra_rows(plan, step), _mirrored(plan, "extra/flip", step))
                    update_d(G, D, D_optimizer, real, z, None, labels, part)
            if G_ema:
                G_ema.update(G, step * B)

            # Keep the numbers of this step on the device: a read waits for it, so they are read now and then.
            rows.append((step, torch.cat([d_numbers[:1], g_loss[None], d_numbers[1:]])))

            # Keep weights and a grid of the fixed z after the named epochs and after the last.
            if epoch := plan.snapshot_steps.get(step):
                snapshot.save(sampled, plan.folder / "snapshots" / f"{epoch}.safetensors")
                _save_grid(snapshot.images_of(sampled, grid_z), plan.folder / "grids" / f"{epoch}.png")

            # Write the numbers down, then a checkpoint that they belong to; leave if a signal asked for it.
            now = time.monotonic()
            last = step == plan.steps
            due = last or now - saved >= checkpoint_seconds or bool(asked)
            if due or now - logged >= log_seconds:
                note = _write_rows(history, rows, plan)
                rate = (step - logged_step) * B / max(time.monotonic() - logged, 1e-9)
                perf.add(step, step * B, seconds_before + time.monotonic() - began, rate)
                perf.flush()
                progress.advance((step - logged_step) * B, note)
                logged, logged_step = time.monotonic(), step
            if due:
                history.sync()
                checkpoint.save(plan.folder, step, checkpoint.state_of(networks, optimizers))
                saved = time.monotonic()
            if asked and not last:
                raise Interrupted(asked[0], step)
    snapshot.save(sampled, plan.folder / "generator.safetensors")


def _batches(plan: Plan, start: int) -> Iterator[np.ndarray]:
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


def _extra_rows(plan: Plan, step: int) -> np.ndarray:
    """Draw the rows of an extra update, beside the epochs' order, which counts the images seen."""
    source = rng.generator(plan.train.seed, "extra/rows", step)
    return plan.rows[torch.randint(len(plan.rows), (plan.batch_size,), generator=source).numpy()]


def _mirrored(plan: Plan, purpose: str, step: int) -> torch.Tensor | None:
    """Draw which images of a batch are mirrored, bool B; None where train.flip is off."""
    if not plan.train.flip:
        return None
    return torch.rand(plan.batch_size, generator=rng.generator(plan.train.seed, purpose, step)) < 0.5


def _write_rows(history: Table, rows: list[tuple[int, torch.Tensor]], plan: Plan) -> str:
    """Read the numbers of the last steps from the device and write them; return the last ones as a note."""
    values = torch.stack([row for _, row in rows]).cpu().tolist()
    for (step, _), numbers in zip(rows, values, strict=True):
        if not all(map(math.isfinite, numbers)):
            raise UserError(
                f"train: diverged, the losses at step {step} are not finite (d_loss {numbers[0]}, g_loss "
                f"{numbers[1]}); lower train.dlr ({plan.train.dlr}) and train.glr ({plan.train.glr})"
            )
        history.add(step, step * plan.batch_size, step * plan.batch_size / len(plan.rows), *numbers)
    history.flush()
    rows.clear()
    d_loss, g_loss, d_real, d_fake = values[-1]
    return f"d_loss {d_loss:.2f}  g_loss {g_loss:.2f}  D(real) {d_real:.2f}  D(fake) {d_fake:.2f}"


def _save_grid(images: np.ndarray, path: Path) -> None:
    with files.whole(path) as temporary:
        pictures.sheet(images, pictures.columns_for(images.shape[1])).save(temporary, "PNG")


def _description(plan: Plan) -> dict[str, Any]:
    """Describe the generator, so that it can be built and judged without params.yaml."""
    return {
        **plan.model.model_dump(),
        "resolution": plan.resolution,
        "channels": plan.channels,
        "weights": "last" if plan.train.ema_halflife_kimg is None else "ema",
        "train_images": len(plan.rows),
        "epochs": plan.train.epochs,
        "batch_size": plan.batch_size,
        "steps": plan.steps,
        "nimg": plan.steps * plan.batch_size,
        "data_digest": plan.data.digest,
        "train": plan.train.model_dump(),
    }


def _write_json(path: Path, values: dict[str, Any]) -> None:
    with files.whole(path) as temporary:
        temporary.write_text(json.dumps(values, indent=2) + "\n")


def _publish(source: Path, target: Path) -> None:
    """Copy the finished outputs into the stage's folder; `source` stays whole, for a kill half-way."""
    for name in OUTPUTS:
        place = target / name
        if place.is_dir():
            shutil.rmtree(place)
        if (source / name).is_dir():
            shutil.copytree(source / name, place)
        else:
            with files.whole(place) as temporary:
                shutil.copyfile(source / name, temporary)


@contextmanager
def _signals() -> Iterator[list[int]]:
    """Collect SIGTERM, SIGINT and SIGUSR1 in a list instead of dying of them; a second one does its worst."""
    asked: list[int] = []
    watched = (signal.SIGTERM, signal.SIGINT, signal.SIGUSR1)

    def note(signum: int, frame: FrameType | None) -> None:
        asked.append(signum)
        for each in watched:
            signal.signal(each, before[each])

    before = {each: signal.signal(each, note) for each in watched}
    try:
        yield asked
    finally:
        for each in watched:
            signal.signal(each, before[each])
