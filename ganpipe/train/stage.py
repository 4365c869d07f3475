"""The train stage: packed images in, a generator, its history and its snapshots out."""

import dataclasses
import math
import shutil
import signal
import sys
from contextlib import nullcontext
from pathlib import Path

import numpy as np
import torch

from ganpipe.common import files
from ganpipe.common import seeds as rng
from ganpipe.common.errors import Interrupted, UserError
from ganpipe.models import generator as snapshot
from ganpipe.train import alarms as health
from ganpipe.train import graph, ranks
from ganpipe.train import plan as schedule
from ganpipe.train import rescue as interventions
from ganpipe.train import resume as unfinished
from ganpipe.train.feed import Feed
from ganpipe.train.journal import Journal
from ganpipe.train.options import TrainOptions
from ganpipe.train.plan import Plan
from ganpipe.train.players import build_players
from ganpipe.train.ranks import Ranks
from ganpipe.train.rescue import Course, Trouble
from ganpipe.train.state import share_state
from ganpipe.train.step import update_d, update_g

FOLDER = Path("stages/train")
TABLES = ("history.csv", "evals.csv", "events.csv", "perf.csv")
OUTPUTS = ("generator.safetensors", "model.json", *TABLES, "grids", "snapshots")


def train(
    plan: Plan,
    root: Path,
    options: TrainOptions,
) -> None:
    """Train, or go on training, and publish the result in stages/train.

    Several processes that torchrun's variables tell of train together; the first of them writes.

    Args:
        plan: what is to be trained.
        root: the checkout.
        options: how it runs.

    A training that diverges or collapses, and stops for it, is a result too: it is published and says so.

    Raises:
        Interrupted: SIGTERM, SIGINT or SIGUSR1 came; a checkpoint was written.
        UserError: the same training runs already, or its ranks cannot share its batches.
    """
    options = dataclasses.replace(options, device=ranks.device_of(options.device))
    with (
        ranks.joined(options.device) as place,
        unfinished.held(plan.folder, root) if place.first else nullcontext(),
    ):
        if options.fresh and place.first:
            unfinished.remove(plan.folder)
            plan.folder.mkdir(parents=True)
        possible = options.graph and graph.possible(torch.device(options.device), place)
        options = dataclasses.replace(options, graph=possible)
        while True:
            events = interventions.read(plan.folder) if place.first else b""
            course = interventions.course(place.shared(events), plan.steps)
            try:
                _loop(plan, course, place, options)
                break
            except Trouble as trouble:
                if place.first:
                    diverged = trouble.what == interventions.DIVERGED
                    action = plan.train.on_nonfinite if diverged else plan.train.on_collapse
                    event = interventions.respond(plan.folder, plan.steps, trouble, action, health.WINDOW)
                    print(f"train: {event}", file=sys.stderr)
        if place.first:
            _publish(plan.folder, root / FOLDER)
            if unfinished.orphaned():  # DVC will not take it as done: the next start publishes it again
                raise Interrupted(signal.SIGTERM, course.steps)
            unfinished.remove(plan.folder)


def _loop(plan: Plan, course: Course, place: Ranks, options: TrainOptions) -> None:
    params, B, device = plan.train, plan.batch_size, torch.device(options.device)
    # A rescue or roll-back goes on with half the rates and other random numbers.
    seed = schedule.seed_of(params, course.attempt)
    players = build_players(plan, course.attempt, options, place)
    G, D, G_ema = players.G, players.D, players.G_ema
    G_optimizer, D_optimizer = players.G_optimizer, players.D_optimizer

    # Go on from the last checkpoint of an interrupted run of this very training, if there is one.
    journal = Journal(plan, course, players, options) if place.first else None
    start = share_state(place, journal.start if journal else 0, players.networks, players.optimizers)
    own, part, labels = place.part(B), params.micro_batch_size or B, (params.real_label, params.fake_label)
    _check_shares(plan, place, part)
    feed = Feed(plan.data.images, device, options.data_memory_gb)
    drawn = enumerate(schedule.batches(plan, start), start + 1)
    flips = ((rows, schedule.mirrored(plan, seed, "flip", step)) for step, rows in drawn)
    batches = feed.batches(
        (rows[own], None if mirrored is None else mirrored[own]) for rows, mirrored in flips
    )
    share = place, B

    def eager(real: torch.Tensor, z: torch.Tensor) -> list[torch.Tensor]:
        """Update D, then G through the new D, on the same generated images.

        In parts they are made twice: the graph of all of them is what there is no memory for.
        """
        fake = G(z) if part >= len(z) else None
        d_numbers = update_d(G, D, D_optimizer, real, z, fake, labels, part, *share)
        return [d_numbers, update_g(G, D, G_optimizer, z, fake, part, *share)]

    update: graph.Update = eager
    if options.graph:
        example = (
            feed(np.arange(B)[own], None),
            snapshot.draw_z(plan.model, B, rng.generator(seed, "z", 0))[own],
        )
        ready = example[0], example[1].to(device)
        update = graph.recorded(eager, (G, D), (G_optimizer, D_optimizer), ready, params.precision)

    with journal or nullcontext(), unfinished.asked_to_stop() as asked:
        for step in range(start + 1, course.steps + 1):
            # Draw the batch and the latent vectors of this step: all of them, of which a rank takes its part.
            real = next(batches)
            z = snapshot.draw_z(plan.model, B, rng.generator(seed, "z", step))[own].to(device)

            numbers = update(real, z)

            # Every k steps one player has one more update on a fresh batch: G, then D, in turn (Marchesi).
            if params.extra_update_every and step % params.extra_update_every == 0:
                z = snapshot.draw_z(plan.model, B, rng.generator(seed, "extra/z", step))[own].to(device)
                if step // params.extra_update_every % 2:
                    numbers.append(update_g(G, D, G_optimizer, z, None, part, *share))
                else:
                    mirrored = schedule.mirrored(plan, seed, "extra/flip", step)
                    rows = schedule.extra_rows(plan, seed, step)[own]
                    real = feed(rows, None if mirrored is None else mirrored[own])
                    numbers.append(update_d(G, D, D_optimizer, real, z, None, labels, part, *share))
            if G_ema:
                G_ema.update(G, step * B)

            # Write down what is due; all ranks leave after the same step, for a signal or for trouble.
            signum, trouble = place.agreed(asked[0] if asked else 0), None
            if journal:
                try:
                    journal.step(step, numbers, stopping=bool(signum))
                except Trouble as found:
                    trouble = found
            if place.agreed(int(trouble is not None)):
                raise trouble or Trouble(step, "elsewhere", step, "seen by the first rank")
            if signum and step < course.steps:
                raise Interrupted(signum, step)
    if journal:
        journal.finish()


def _check_shares(plan: Plan, place: Ranks, part: int) -> None:
    """Refuse more ranks than images, and parts that leave ranks waiting for each other in a batch norm."""
    B, count = plan.batch_size, place.count
    sizes = {len(range(B)[Ranks(rank, count).part(B)]) for rank in range(count)}
    if 0 in sizes:
        raise UserError(
            f"train.batch_size: {B} images cannot be shared by {count} devices; use fewer of them"
        )
    if plan.train.sync_batch_norm and len({math.ceil(size / part) for size in sizes}) > 1:
        raise UserError(
            f"train.micro_batch_size: {count} devices share batches of {B}, and parts of {part} would be "
            "more on some than on others, which train.sync_batch_norm does not allow; change one of the four"
        )


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
