"""The journal of a training: its tables, snapshots, grids, warnings and checkpoints, kept by one process."""

import json
import math
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch

from ganpipe.common import seeds
from ganpipe.common.files import whole
from ganpipe.common.progress import Progress
from ganpipe.common.sheets import columns_for, sheet
from ganpipe.common.stages import EVALS_COLUMNS, HISTORY_COLUMNS, PERF_COLUMNS, STEP_NUMBERS
from ganpipe.models.generator import class_rows, draw_z, images_of, save_generator
from ganpipe.train import alarms, rescue
from ganpipe.train.environment import describe, hardware_of
from ganpipe.train.options import TrainOptions
from ganpipe.train.plan import Plan
from ganpipe.train.players import Players, state_of
from ganpipe.train.probe import Probe
from ganpipe.train.rescue import DIVERGED, Course, Event, Trouble
from ganpipe.train.resume import checkpoint
from ganpipe.train.table import Table


class Journal:
    """The folder of a training.

    The constructor loads the last checkpoint into the players; the training resumes after its step, `start`.
    """

    def __init__(self, plan: Plan, course: Course, players: Players, options: TrainOptions) -> None:
        self.plan, self.course, self.players, self.options = plan, course, players, options
        self.folder = rescue.attempt_folder(plan.folder, course.attempt)
        self.healthy = rescue.healthy_folder(plan.folder, course.attempt)
        self.environment = describe(options.device, options.graph)
        self.start = checkpoint.resume((self.folder, self.healthy), players, self.environment, course.steps)
        self.events = course.until(self.start)
        rescue.write_events(plan.folder, self.events)
        self._remove_later_snapshots()
        self._write_description({})
        columns = columns_for(plan.spec.resolution)
        self.grid_z = draw_z(plan.model, columns**2, seeds.generator(plan.train.seed, "grid"))
        if plan.classes:
            self.grid_z = class_rows(plan.spec, self.grid_z[:columns])
        self.probe = Probe(plan, options.device) if plan.eval_steps else None
        self.unread: list[tuple[int, torch.Tensor]] = []  # steps whose numbers are still on the device

    @contextmanager
    def open(self) -> Iterator[None]:
        """Open the tables, cut back to the step where the training resumes, and show the progress."""
        folder, start, B = self.plan.folder, self.start, self.plan.batch_size
        with (
            Table(folder / "history.csv", HISTORY_COLUMNS, start, recent=alarms.WINDOW) as self.history,
            Table(folder / "evals.csv", EVALS_COLUMNS, start, recent=None) as self.evals,
            Table(folder / "perf.csv", PERF_COLUMNS, start) as self.perf,
            Progress("train", self.course.steps * B, done=start * B) as self.progress,
        ):
            self.saved_step, self.saved = start, time.monotonic()
            self.logged = self.saved
            # As if this process had also made the steps before.
            self.began = self.saved - (self.perf.recent[-1][2] if self.perf.recent else 0.0)
            yield

    def step(self, step: int, numbers: Sequence[torch.Tensor], stopping: bool) -> None:
        """Record a step if due: its numbers first, then snapshot and checkpoint, once all values are finite.

        The numbers of `update_d`, `update_g` and extra updates, if any, stay on the device until they are
        due, because reading them makes the CPU wait for it. With `stopping` a checkpoint is due in any case.

        Raises Trouble: a value is not finite, or a severe alarm interrupts the training.
        """
        self.unread.append((step, torch.cat(list(numbers))))
        plan, now = self.plan, time.monotonic()
        checkpoint_due = stopping or step == self.course.steps
        checkpoint_due |= now - self.saved >= self.options.checkpoint_seconds
        state_due = checkpoint_due or step in plan.snapshot_steps or step in plan.eval_steps
        if state_due or step % alarms.WINDOW == 0 or now - self.logged >= self.options.log_seconds:
            self._write_numbers(step)
        if state_due:
            self._require_finite(step)
        if step in plan.snapshot_steps:
            self._save_snapshot(plan.snapshot_steps[step])

        # Report alarms; a severe one may raise Trouble. Without one, save a state to return to.
        raised = self._judge(step)
        for alarm in raised:
            self._warn(step, alarm)
        if step in plan.anchors and not any(alarm.severe for alarm in raised):
            # Keep each of the last WINDOW steps and one before: a rescue goes back WINDOW steps at least.
            recent = sum(step - alarms.WINDOW < anchor <= step for anchor in plan.anchors)
            checkpoint.save(self.healthy, step, state_of(self.players), self.environment, keep=recent + 1)

        # The tables must reach the disk before the checkpoint that resumes after them.
        if checkpoint_due:
            self.history.sync()
            self.evals.sync()
            checkpoint.save(self.folder, step, state_of(self.players), self.environment)
            if self.options.copies:
                self.options.copies.save()
            self.saved, self.saved_step = time.monotonic(), step

    def finish(self) -> None:
        """Write model.json and the generator: the best weights if train.keep is "best", else the last."""
        steps, best_step = self.course.steps, self._best_step() if self.players.G_best else None
        chosen = self.players.G_best if self.players.G_best and best_step else self.players.sampled
        ending = {"ended": self.course.ended, "interventions": self.course.attempt}
        ending |= {"device": hardware_of(self.environment), "kept_step": best_step or steps}
        ending |= {"steps": steps, "nimg": steps * self.plan.batch_size}
        self._write_description(ending)
        save_generator(chosen, self.plan.spec, self.plan.folder / "generator.safetensors")
        self._save_snapshot(self.plan.epoch_of(steps))

    def _write_description(self, ending: dict[str, Any]) -> None:
        """Write model.json; `ending` holds what is known only at the training's end."""
        plan = self.plan
        averaged = "" if plan.train.ema_halflife_kimg is None else ", averaged"
        description = {
            **plan.model.model_dump(),
            "resolution": plan.spec.resolution,
            "channels": plan.spec.channels,
            **({"classes": plan.classes} if plan.classes else {}),
            "weights": f"{plan.train.keep}{averaged}",
            "train_images": len(plan.rows),
            "epochs": plan.train.epochs or round(plan.steps * plan.batch_size / len(plan.rows), 2),
            "batch_size": plan.batch_size,
            "steps": plan.steps,
            "nimg": plan.steps * plan.batch_size,
            "data_digest": plan.data.digest,
            "train": plan.train.model_dump(),
        }
        with whole(plan.folder / "model.json") as temporary:
            temporary.write_text(json.dumps(description | ending, indent=2) + "\n")

    def _remove_later_snapshots(self) -> None:
        known = {str(epoch) for step, epoch in self.plan.snapshot_steps.items() if step <= self.start}
        folder = self.plan.folder
        for path in (*folder.glob("grids/*.png"), *folder.glob("snapshots/*.safetensors")):
            if path.stem not in known:
                path.unlink()

    def _write_numbers(self, step: int) -> None:
        """Write the numbers of the last steps to the tables; raise Trouble after the finite ones."""
        B, count = self.plan.batch_size, len(self.plan.rows)
        for made, row in self.unread:
            numbers = row.tolist()
            d_loss, d_real, d_fake, d_norm, g_loss, g_norm = numbers[:6]
            if not all(map(math.isfinite, numbers)):
                norms = f"gradients {d_norm:g} and {g_norm:g}"
                text = f"not finite: d_loss {d_loss:g}, g_loss {g_loss:g}, {norms}"
                raise Trouble(made, DIVERGED, made - 1, text)
            numbers = [d_loss, g_loss, d_real, d_fake, d_norm, g_norm]
            self.history.add(made, made * B, made * B / count, self.course.attempt, *numbers)
        now, images = time.monotonic(), len(self.unread) * B
        self.unread.clear()
        self.perf.add(step, step * B, now - self.began, images / max(now - self.logged, 1e-9))
        note = f"d_loss {d_loss:.2f}  g_loss {g_loss:.2f}  D(real) {d_real:.2f}  D(fake) {d_fake:.2f}"
        self.progress.advance(images, note)
        self.logged = now

    def _require_finite(self, step: int) -> None:
        for name, tensor in state_of(self.players).items():
            if not tensor.isfinite().all():
                text = f"{name} is not finite since a step after {self.saved_step}"
                raise Trouble(step, DIVERGED, self.saved_step, text)

    def _judge(self, step: int) -> list[alarms.Alarm]:
        """Return the alarms of a step, from the history and from an evaluation if due; keep the best G."""
        raised = []
        if step % alarms.WINDOW == 0:
            window = np.array(self.history.recent)[:, -len(STEP_NUMBERS) :]
            labels = self.plan.train.real_label, self.plan.train.fake_label
            raised += alarms.from_history(step, window, labels)
        if self.probe and step in self.plan.eval_steps:
            kid, spread = self.probe(self.players.sampled)
            self.evals.add(step, step * self.plan.batch_size, kid, spread, self.probe.real_spread)
            raised += alarms.from_evals(self.evals.recent)
            if self.players.G_best and self._best_step() == step:
                self.players.G_best.load_state_dict(self.players.sampled.state_dict())
        return raised

    def _warn(self, step: int, alarm: alarms.Alarm) -> None:
        """Report the first alarm of its kind in this attempt, or raise Trouble if it must interrupt."""
        attempt = self.course.attempt
        if alarm.severe and self.plan.train.on_collapse != "warn":
            if self.course.stopped is None:
                raise Trouble(step, alarm.kind, step, alarm.text)
        elif not any(event.what == alarm.kind and event.attempt == attempt for event in self.events):
            event = Event(step, attempt, alarm.kind, "warn", step, alarm.text)
            self.events.append(event)
            rescue.write_events(self.plan.folder, self.events)
            self.progress.say(f"train: {event}")

    def _best_step(self) -> int | None:
        """Return the step of the smallest KID so far, the first of several; None before any evaluation."""
        column, rows = EVALS_COLUMNS.index("kid_light"), self.evals.recent
        return int(min(rows, key=lambda row: row[column])[0]) if rows else None

    def _save_snapshot(self, epoch: int) -> None:
        """Save the weights, and a grid of images of fixed z, under the number of an epoch."""
        folder = self.plan.folder
        save_generator(self.players.sampled, self.plan.spec, folder / "snapshots" / f"{epoch}.safetensors")
        images = images_of(self.players.sampled, self.grid_z)
        with whole(folder / "grids" / f"{epoch}.png") as temporary:
            sheet(images, columns_for(self.plan.spec.resolution)).save(temporary, "PNG")
