"""The train stage: packed images in, a generator, its history and its snapshots out."""

import copy
import json
import math
import shutil
import signal
import sys
import time
from collections.abc import Collection, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from types import FrameType
from typing import Any

import numpy as np
import torch

from ganpipe import (
    checkpoint,
    closure,
    files,
    health,
    interventions,
    memory,
    models,
    packed,
    pictures,
    precision,
    rng,
    snapshot,
    unfinished,
)
from ganpipe.ema import EMA
from ganpipe.errors import Interrupted
from ganpipe.feed import Feed
from ganpipe.interventions import Course, Event, Trouble
from ganpipe.packed import Packed
from ganpipe.params import Model, Train
from ganpipe.probe import Probe
from ganpipe.progress import Progress
from ganpipe.table import Table
from ganpipe.updates import update_d, update_g

FOLDER = Path("stages/train")
TABLES = ("history.csv", "evals.csv", "events.csv", "perf.csv")
OUTPUTS = ("generator.safetensors", "model.json", *TABLES, "grids", "snapshots")
NUMBERS = ("d_loss", "g_loss", "d_real", "d_fake", "d_grad_norm", "g_grad_norm")
HISTORY = ("step", "nimg", "epoch", "attempt", *NUMBERS)
EVALS = ("step", "nimg", "kid_light", "spread", "real_spread")
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
        eval_steps: steps after which the generator is judged.
        folder: where the training lives until it is finished.
    """

    model: Model
    train: Train
    data: Packed
    rows: np.ndarray
    batch_size: int
    steps: int
    snapshot_steps: dict[int, int]
    eval_steps: frozenset[int]
    folder: Path

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
    steps = steps_of[train.epochs]
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

    A training that diverges or collapses, and stops for it, is a result too: it is published and says so.

    Raises:
        Interrupted: SIGTERM, SIGINT or SIGUSR1 came; a checkpoint was written.
        UserError: the same training runs already.
    """
    with unfinished.held(plan.folder):
        if fresh:
            unfinished.remove(plan.folder)
            plan.folder.mkdir(parents=True)
        options = torch.device(device), save_memory, log_seconds, checkpoint_seconds, data_memory_gb
        while True:
            course = interventions.course(plan.folder, plan.steps)
            try:
                _loop(plan, course, *options)
                break
            except Trouble as trouble:
                diverged = trouble.what == interventions.DIVERGED
                action = plan.train.on_nonfinite if diverged else plan.train.on_collapse
                event = interventions.respond(plan.folder, plan.steps, trouble, action, health.WINDOW)
                print(f"train: {event}", file=sys.stderr)
        _publish(plan.folder, root / FOLDER)
        unfinished.remove(plan.folder)


def _loop(
    plan: Plan,
    course: Course,
    device: torch.device,
    save_memory: bool,
    log_seconds: float,
    checkpoint_seconds: float,
    data_memory_gb: float | None,
) -> None:
    params, B = plan.train, plan.batch_size
    # A rescue or roll-back goes on with half the rates and other random numbers.
    seed = seed_of(params, course.attempt)
    glr, dlr = (rate * 0.5**course.attempt for rate in (params.glr, params.dlr))

    # Build both networks, the average of G that is sampled from, the best so far, and one optimizer each.
    torch.manual_seed(rng.derived_seed(params.seed, "init"))
    layout: Any = {"device": device, "memory_format": torch.channels_last}
    G = models.generator(plan.model, plan.resolution, plan.channels).to(**layout)
    D = models.discriminator(plan.model, plan.resolution, plan.channels).to(**layout)
    G_ema = EMA(G, params.ema_halflife_kimg, B) if params.ema_halflife_kimg is not None else None
    sampled = G_ema.model if G_ema else G
    G_best = copy.deepcopy(sampled) if params.keep == "best" else None
    betas = (params.beta1, params.beta2)
    optimizers: dict[str, torch.optim.Optimizer] = {
        "G_optimizer": (G_optimizer := torch.optim.Adam(G.parameters(), glr, betas, fused=True)),
        "D_optimizer": (D_optimizer := torch.optim.Adam(D.parameters(), dlr, betas, fused=True)),
    }
    networks = {"G": G, "D": D}
    networks |= {"G_ema": sampled} if G_ema else {}
    networks |= {"G_best": G_best} if G_best else {}
    for network in (G, D):
        if save_memory:
            memory.save_memory(network)
        precision.apply(network, params.precision, device.type)

    # Go on from the last checkpoint of an interrupted run of this very training, if there is one.
    environment = checkpoint.environment(str(device))
    start = _restore(plan, course, networks, optimizers, environment)
    events = _events_until(plan, course, start)
    _write_json(plan.folder / "model.json", _description(plan))
    grid_size = pictures.columns_for(plan.resolution) ** 2
    grid_z = rng.draw_z(plan.model, grid_size, rng.generator(params.seed, "grid"))
    probe = (
        Probe(plan.model, plan.data.images, plan.rows, params.seed, str(device)) if plan.eval_steps else None
    )
    feed = Feed(plan.data.images, device, data_memory_gb)
    draws = enumerate(_batches(plan, start), start + 1)
    batches = feed.batches((drawn, _mirrored(plan, seed, "flip", step)) for step, drawn in draws)
    part, labels = params.micro_batch_size or B, (params.real_label, params.fake_label)
    rows: list[tuple[int, torch.Tensor]] = []

    with (
        Table(plan.folder / "history.csv", HISTORY, start, recent=health.WINDOW) as history,
        Table(plan.folder / "evals.csv", EVALS, start, recent=None) as evals,
        Table(plan.folder / "perf.csv", PERF, start) as perf,
        Progress("train", course.steps * B, done=start * B) as progress,
        _signals() as asked,
    ):
        seconds_before = perf.recent[-1][2] if perf.recent else 0.0
        began = logged = saved = time.monotonic()
        logged_step = saved_step = start
        for step in range(start + 1, course.steps + 1):
            # Draw the batch and the latent vectors of this step.
            real = next(batches)
            z = rng.draw_z(plan.model, B, rng.generator(seed, "z", step)).to(device)

            # Update D, then G through the new D, on the same generated images. In parts they are made twice:
            # the graph of all of them is what there is no memory for.
            fake = G(z) if part >= B else None
            d_numbers = update_d(G, D, D_optimizer, real, z, fake, labels, part)
            g_numbers = update_g(G, D, G_optimizer, z, fake, part)
            numbers = [d_numbers, g_numbers]

            # Every k steps one player has one more update on a fresh batch: G, then D, in turn (Marchesi).
            if params.extra_update_every and step % params.extra_update_every == 0:
                z = rng.draw_z(plan.model, B, rng.generator(seed, "extra/z", step)).to(device)
                if step // params.extra_update_every % 2:
                    numbers.append(update_g(G, D, G_optimizer, z, None, part))
                else:
                    mirrored = _mirrored(plan, seed, "extra/flip", step)
                    real = feed(_extra_rows(plan, seed, step), mirrored)
                    numbers.append(update_d(G, D, D_optimizer, real, z, None, labels, part))
            if G_ema:
                G_ema.update(G, step * B)

            # Keep the numbers of this step on the device: a read waits for it, so they are read now and then,
            # and before anything is kept, so that what is not finite is noticed first.
            rows.append((step, torch.cat(numbers)))
            now, last = time.monotonic(), step == course.steps
            epoch, judging = plan.snapshot_steps.get(step), step in plan.eval_steps
            due = last or now - saved >= checkpoint_seconds or bool(asked)
            keeping, looking = due or epoch or judging, step % health.WINDOW == 0
            if keeping or looking or now - logged >= log_seconds:
                note = _write_rows(history, rows, plan, course.attempt)
                rate = (step - logged_step) * B / max(time.monotonic() - logged, 1e-9)
                perf.add(step, step * B, seconds_before + time.monotonic() - began, rate)
                perf.flush()
                progress.advance((step - logged_step) * B, note)
                logged, logged_step = time.monotonic(), step
            if keeping:
                _require_finite(networks, optimizers, step, saved_step)

            # Keep weights and a grid of fixed z after the named epochs; now and then judge G, keep the best.
            if epoch:
                _save_snapshot(plan, sampled, grid_z, epoch)
            alarms = health.from_history(np.array(history.recent)[:, -len(NUMBERS) :]) if looking else []
            if judging and probe:
                kid, spread = probe(sampled)
                evals.add(step, step * B, kid, spread, probe.real_spread)
                alarms += health.from_features(spread, probe.real_spread)
                if G_best and _best_step(evals) == step:
                    G_best.load_state_dict(sampled.state_dict())

            # Warn of what looks like a collapse, or leave; where all is well, keep a state to come back to.
            for event in _warnings(alarms, events, course, step, params.on_collapse):
                events.append(event)
                interventions.write(plan.folder, events)
                progress.say(f"train: {event}")
            if step in plan.anchors and not any(alarm.severe for alarm in alarms):
                folder = interventions.healthy_folder(plan.folder, course.attempt)
                recent = sum(step - health.WINDOW < anchor <= step for anchor in plan.anchors)
                state = checkpoint.state_of(networks, optimizers)
                checkpoint.save(folder, step, state, environment, keep=recent + 1)

            # Write a checkpoint that belongs to the numbers so far; leave if a signal asked for it.
            if due:
                history.sync()
                evals.sync()
                folder = interventions.attempt_folder(plan.folder, course.attempt)
                checkpoint.save(folder, step, checkpoint.state_of(networks, optimizers), environment)
                saved, saved_step = time.monotonic(), step
            if asked and not last:
                raise Interrupted(asked[0], step)

    # Give the best weights where they are asked for and known, else the last; say how it ended.
    best = _best_step(evals) if G_best else None
    snapshot.save(G_best if G_best and best else sampled, plan.folder / "generator.safetensors")
    _save_snapshot(plan, sampled, grid_z, plan.epoch_of(course.steps))
    ending = {"ended": course.ended, "interventions": course.attempt, "kept_step": best or course.steps}
    ending |= {"steps": course.steps, "nimg": course.steps * B}
    _write_json(plan.folder / "model.json", _description(plan) | ending)


def seed_of(params: Train, attempt: int) -> int:
    """Return what the random numbers of an attempt come from: for the plain training, train.seed."""
    return rng.derived_seed(params.seed, "attempt", attempt) if attempt else params.seed


def _restore(
    plan: Plan,
    course: Course,
    networks: dict[str, torch.nn.Module],
    optimizers: dict[str, torch.optim.Optimizer],
    environment: dict[str, str],
) -> int:
    """Put back the last checkpoint of this attempt, else the one that it starts from, and return its step."""
    like = checkpoint.state_of(networks, optimizers)
    found = checkpoint.load(interventions.attempt_folder(plan.folder, course.attempt), like)
    found = found or checkpoint.load(interventions.healthy_folder(plan.folder, course.attempt), like)
    if found is None:
        return 0
    checkpoint.restore(found.tensors, networks, optimizers)
    where = f"going on after step {found.step} of {course.steps}"
    print(f"train: {where} (GANPIPE_FRESH=1 starts anew)", file=sys.stderr)
    if why := checkpoint.differences(found.environment, environment):
        print(f"train: not bit-exact, because {why}", file=sys.stderr)
    return found.step


def _events_until(plan: Plan, course: Course, start: int) -> list[Event]:
    """Return what happened up to a step, and write it; forget grids and weights of later steps."""
    events = [e for e in course.events if e.action != "warn" or e.attempt < course.attempt or e.step <= start]
    interventions.write(plan.folder, events)
    known = {str(epoch) for step, epoch in plan.snapshot_steps.items() if step <= start}
    for path in (*plan.folder.glob("grids/*.png"), *plan.folder.glob("snapshots/*.safetensors")):
        if path.stem not in known:
            path.unlink()
    return events


def _warnings(
    alarms: list[health.Alarm], events: list[Event], course: Course, step: int, action: interventions.Action
) -> Iterator[Event]:
    """Yield what is to be warned of, each kind of alarm once in an attempt.

    Raises:
        Trouble: an alarm is severe and `action` is not to warn only.
    """
    for alarm in alarms:
        acting = alarm.severe and action != "warn"
        if acting and course.stopped is None:
            raise Trouble(step, alarm.kind, step, alarm.text)
        known = {event.what for event in events if event.attempt == course.attempt}
        if not acting and alarm.kind not in known:
            yield Event(step, course.attempt, alarm.kind, "warn", step, alarm.text)


def _require_finite(
    networks: dict[str, torch.nn.Module],
    optimizers: dict[str, torch.optim.Optimizer],
    step: int,
    healthy: int,
) -> None:
    """Raise Trouble where a number of the state is not finite."""
    state = checkpoint.state_of(networks, optimizers)
    bad = [name for name, tensor in state.items() if not tensor.isfinite().all()]
    if bad:
        text = f"{bad[0]} is not finite since a step after {healthy}"
        raise Trouble(step, interventions.DIVERGED, healthy, text)


def _best_step(evals: Table) -> int | None:
    """Return the step of the least KID so far, the first of several; None where G was not judged yet."""
    column = EVALS.index("kid_light")
    return int(min(evals.recent, key=lambda row: row[column])[0]) if evals.recent else None


def _save_snapshot(plan: Plan, G: torch.nn.Module, grid_z: torch.Tensor, epoch: int) -> None:
    snapshot.save(G, plan.folder / "snapshots" / f"{epoch}.safetensors")
    images = snapshot.images_of(G, grid_z)
    with files.whole(plan.folder / "grids" / f"{epoch}.png") as temporary:
        pictures.sheet(images, pictures.columns_for(plan.resolution)).save(temporary, "PNG")


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


def _extra_rows(plan: Plan, seed: int, step: int) -> np.ndarray:
    """Draw the rows of an extra update, beside the epochs' order, which counts the images seen."""
    source = rng.generator(seed, "extra/rows", step)
    return plan.rows[torch.randint(len(plan.rows), (plan.batch_size,), generator=source).numpy()]


def _mirrored(plan: Plan, seed: int, purpose: str, step: int) -> torch.Tensor | None:
    """Draw which images of a batch are mirrored, bool B; None where train.flip is off."""
    if not plan.train.flip:
        return None
    return torch.rand(plan.batch_size, generator=rng.generator(seed, purpose, step)) < 0.5


def _write_rows(history: Table, rows: list[tuple[int, torch.Tensor]], plan: Plan, attempt: int) -> str:
    """Read the numbers of the last steps from the device and write them; return the last ones as a note.

    Raises:
        Trouble: a number is not finite; the steps before are written.
    """
    for step, numbers in ((step, row.tolist()) for step, row in rows):
        d_loss, d_real, d_fake, d_norm, g_loss, g_norm = numbers[:6]
        if not all(map(math.isfinite, numbers)):
            text = f"not finite: d_loss {d_loss:g}, g_loss {g_loss:g}, gradients {d_norm:g} and {g_norm:g}"
            raise Trouble(step, interventions.DIVERGED, step - 1, text)
        nimg = step * plan.batch_size
        numbers = [d_loss, g_loss, d_real, d_fake, d_norm, g_norm]
        history.add(step, nimg, nimg / len(plan.rows), attempt, *numbers)
    history.flush()
    rows.clear()
    return f"d_loss {d_loss:.2f}  g_loss {g_loss:.2f}  D(real) {d_real:.2f}  D(fake) {d_fake:.2f}"


def _description(plan: Plan) -> dict[str, Any]:
    """Describe the generator, so that it can be built and judged without params.yaml."""
    return {
        **plan.model.model_dump(),
        "resolution": plan.resolution,
        "channels": plan.channels,
        "weights": f"{plan.train.keep}{'' if plan.train.ema_halflife_kimg is None else ', averaged'}",
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
