"""What one process writes down of a training: tables, grids, judgements, checkpoints; and its alarms."""

import json
import math
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from types import TracebackType
from typing import Any, Self

import numpy as np
import torch

from ganpipe.common import files
from ganpipe.common import seeds as rng
from ganpipe.common import sheets as pictures
from ganpipe.common.progress import Progress
from ganpipe.models import generator as snapshot
from ganpipe.train import alarms as health
from ganpipe.train import checkpoint
from ganpipe.train import rescue as interventions
from ganpipe.train.environment import describe, differences, hardware_of
from ganpipe.train.options import TrainOptions
from ganpipe.train.plan import Plan
from ganpipe.train.players import Players
from ganpipe.train.probe import Probe
from ganpipe.train.rescue import Course, Event, Trouble
from ganpipe.train.state import restore_state, state_of
from ganpipe.train.table import Table

NUMBERS = ("d_loss", "g_loss", "d_real", "d_fake", "d_grad_norm", "g_grad_norm")
HISTORY = ("step", "nimg", "epoch", "attempt", *NUMBERS)
EVALS = ("step", "nimg", "kid_light", "spread", "real_spread")
PERF = ("step", "nimg", "seconds", "images_per_second")


class Journal:
    """The folder of a training, kept by one process; begins with going back to the last checkpoint.

    Args:
        plan: what is trained.
        course: how it goes on after what happened so far.
        players: the networks and optimizers that a checkpoint holds.
        options: device, graph, log_seconds and checkpoint_seconds are used.

    Attributes:
        start: the step after which the training goes on.
    """

    def __init__(self, plan: Plan, course: Course, players: Players, options: TrainOptions) -> None:
        self.plan, self.course, self.options = plan, course, options
        self.networks, self.optimizers = players.networks, players.optimizers
        self.sampled, self.best = players.sampled, players.G_best
        self.folder = interventions.attempt_folder(plan.folder, course.attempt)
        self.healthy = interventions.healthy_folder(plan.folder, course.attempt)
        self.environment = describe(options.device, options.graph)
        self.start = self._restored()
        self.events = self._events_until(self.start)
        self._describe({})
        grid_size = pictures.columns_for(plan.resolution) ** 2
        self.grid_z = snapshot.draw_z(plan.model, grid_size, rng.generator(plan.train.seed, "grid"))
        judged = plan.model, plan.data.images, plan.rows, plan.train.seed, options.device
        self.probe = Probe(*judged) if plan.eval_steps else None
        self.rows: list[tuple[int, torch.Tensor]] = []

    def __enter__(self) -> Self:
        with ExitStack() as stack:
            folder, start, B = self.plan.folder, self.start, self.plan.batch_size
            history = Table(folder / "history.csv", HISTORY, start, recent=health.WINDOW)
            self.history = stack.enter_context(history)
            self.evals = stack.enter_context(Table(folder / "evals.csv", EVALS, start, recent=None))
            self.perf = stack.enter_context(Table(folder / "perf.csv", PERF, start))
            progress = Progress("train", self.course.steps * B, done=start * B)
            self.progress = stack.enter_context(progress)
            self.seconds_before = self.perf.recent[-1][2] if self.perf.recent else 0.0
            self.began = self.logged = self.saved = time.monotonic()
            self.logged_step = self.saved_step = start
            self.stack = stack.pop_all()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.stack.__exit__(kind, error, trace)

    def step(self, step: int, numbers: Sequence[torch.Tensor], stopping: bool) -> None:
        """Write down what a step gave, where it is time for it: first its numbers, then what they vouch for.

        Args:
            step: the step that was made.
            numbers: of `update_d` and `update_g`, then those of an extra update; they stay on the device
                until they are wanted, because a read waits for it.
            stopping: a checkpoint is wanted in any case.

        Raises:
            Trouble: something is not finite, or an alarm is to be acted on.
        """
        self.rows.append((step, torch.cat(list(numbers))))
        plan, now = self.plan, time.monotonic()
        epoch, judging = plan.snapshot_steps.get(step), step in plan.eval_steps
        due = stopping or step == self.course.steps or now - self.saved >= self.options.checkpoint_seconds
        keeping, looking = due or epoch or judging, step % health.WINDOW == 0
        if keeping or looking or now - self.logged >= self.options.log_seconds:
            self._write_rows(step)
        if keeping:
            self._require_finite(step)

        # Keep weights and a grid of fixed z after the named epochs; now and then judge G, keep the best.
        if epoch:
            self._save_snapshot(epoch)
        alarms = self._look(step) if looking else []
        if judging and self.probe:
            kid, spread = self.probe(self.sampled)
            self.evals.add(step, step * plan.batch_size, kid, spread, self.probe.real_spread)
            alarms += health.from_evals(self.evals.recent)
            if self.best and self._best_step() == step:
                self.best.load_state_dict(self.sampled.state_dict())

        # Warn of what looks like a collapse, or leave; where all is well, keep a state to come back to.
        for event in self._warnings(alarms, step):
            self.events.append(event)
            interventions.write(plan.folder, self.events)
            self.progress.say(f"train: {event}")
        if step in plan.anchors and not any(alarm.severe for alarm in alarms):
            recent = sum(step - health.WINDOW < anchor <= step for anchor in plan.anchors)
            checkpoint.save(self.healthy, step, self._state(), self.environment, keep=recent + 1)

        # Write a checkpoint that belongs to the numbers so far.
        if due:
            self.history.sync()
            self.evals.sync()
            checkpoint.save(self.folder, step, self._state(), self.environment)
            self.saved, self.saved_step = time.monotonic(), step

    def finish(self) -> None:
        """Write the generator: the best weights where they are asked for, else the last; say how it ended."""
        steps, best = self.course.steps, self._best_step() if self.best else None
        chosen = self.best if self.best and best else self.sampled
        ending = {"ended": self.course.ended, "interventions": self.course.attempt}
        ending |= {"device": hardware_of(self.environment)}
        ending |= {"kept_step": best or steps, "steps": steps, "nimg": steps * self.plan.batch_size}
        self._describe(ending)
        snapshot.save_generator(chosen, self.plan.spec, self.plan.folder / "generator.safetensors")
        self._save_snapshot(self.plan.epoch_of(steps))

    def _state(self) -> dict[str, torch.Tensor]:
        return state_of(self.networks, self.optimizers)

    def _restored(self) -> int:
        """Put back the last checkpoint of this attempt, else the one that it starts from; return its step."""
        like = self._state()
        found = checkpoint.load(self.folder, like) or checkpoint.load(self.healthy, like)
        if found is None:
            return 0
        restore_state(found.tensors, self.networks, self.optimizers)
        where = f"going on after step {found.step} of {self.course.steps}"
        print(f"train: {where} (GANPIPE_FRESH=1 starts anew)", file=sys.stderr)
        if why := differences(found.environment, self.environment):
            print(f"train: not bit-exact, because {why}", file=sys.stderr)
        return found.step

    def _events_until(self, start: int) -> list[Event]:
        """Return what happened up to a step, and write it; forget grids and weights of later steps."""
        plan, now = self.plan, self.course.attempt
        events = [e for e in self.course.events if e.action != "warn" or e.attempt < now or e.step <= start]
        interventions.write(plan.folder, events)
        known = {str(epoch) for step, epoch in plan.snapshot_steps.items() if step <= start}
        for path in (*plan.folder.glob("grids/*.png"), *plan.folder.glob("snapshots/*.safetensors")):
            if path.stem not in known:
                path.unlink()
        return events

    def _write_rows(self, step: int) -> None:
        """Read the numbers of the last steps from the device and write them.

        Raises:
            Trouble: a number is not finite; the steps before are written.
        """
        B, count = self.plan.batch_size, len(self.plan.rows)
        for each, numbers in ((each, row.tolist()) for each, row in self.rows):
            d_loss, d_real, d_fake, d_norm, g_loss, g_norm = numbers[:6]
            if not all(map(math.isfinite, numbers)):
                text = (
                    f"not finite: d_loss {d_loss:g}, g_loss {g_loss:g}, gradients {d_norm:g} and {g_norm:g}"
                )
                raise Trouble(each, interventions.DIVERGED, each - 1, text)
            numbers = [d_loss, g_loss, d_real, d_fake, d_norm, g_norm]
            self.history.add(each, each * B, each * B / count, self.course.attempt, *numbers)
        self.history.flush()
        self.rows.clear()
        now, done = time.monotonic(), (step - self.logged_step) * B
        seconds = self.seconds_before + now - self.began
        self.perf.add(step, step * B, seconds, done / max(now - self.logged, 1e-9))
        self.perf.flush()
        note = f"d_loss {d_loss:.2f}  g_loss {g_loss:.2f}  D(real) {d_real:.2f}  D(fake) {d_fake:.2f}"
        self.progress.advance(done, note)
        self.logged, self.logged_step = now, step

    def _require_finite(self, step: int) -> None:
        bad = [name for name, tensor in self._state().items() if not tensor.isfinite().all()]
        if bad:
            text = f"{bad[0]} is not finite since a step after {self.saved_step}"
            raise Trouble(step, interventions.DIVERGED, self.saved_step, text)

    def _look(self, step: int) -> list[health.Alarm]:
        window = np.array(self.history.recent)[:, -len(NUMBERS) :]
        return health.from_history(step, window, (self.plan.train.real_label, self.plan.train.fake_label))

    def _warnings(self, alarms: list[health.Alarm], step: int) -> Iterator[Event]:
        """Yield what is to be warned of, each kind of alarm once in an attempt.

        Raises:
            Trouble: an alarm is severe and train.on_collapse is not to warn only.
        """
        for alarm in alarms:
            acting = alarm.severe and self.plan.train.on_collapse != "warn"
            if acting and self.course.stopped is None:
                raise Trouble(step, alarm.kind, step, alarm.text)
            known = {event.what for event in self.events if event.attempt == self.course.attempt}
            if not acting and alarm.kind not in known:
                yield Event(step, self.course.attempt, alarm.kind, "warn", step, alarm.text)

    def _best_step(self) -> int | None:
        """Return the step of the least KID so far, the first of several; None where G was not judged yet."""
        column, rows = EVALS.index("kid_light"), self.evals.recent
        return int(min(rows, key=lambda row: row[column])[0]) if rows else None

    def _save_snapshot(self, epoch: int) -> None:
        path = self.plan.folder / "snapshots" / f"{epoch}.safetensors"
        snapshot.save_generator(self.sampled, self.plan.spec, path)
        images = snapshot.images_of(self.sampled, self.grid_z)
        with files.whole(self.plan.folder / "grids" / f"{epoch}.png") as temporary:
            pictures.sheet(images, pictures.columns_for(self.plan.resolution)).save(temporary, "PNG")

    def _describe(self, ending: dict[str, Any]) -> None:
        """Write model.json: the generator, so that it can be built and judged without params.yaml."""
        plan = self.plan
        description = {
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
        with files.whole(plan.folder / "model.json") as temporary:
            temporary.write_text(json.dumps(description | ending, indent=2) + "\n")
