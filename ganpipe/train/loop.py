"""The training loop: D's update, G's update, and the record of both."""

from collections.abc import Sequence
from contextlib import nullcontext
from itertools import tee

import torch

from ganpipe.common.errors import Interrupted
from ganpipe.train.devices.feed import Feed, to_device, way_for
from ganpipe.train.devices.graph import record_step
from ganpipe.train.devices.ranks import Ranks
from ganpipe.train.ema import update_ema
from ganpipe.train.journal import Journal
from ganpipe.train.options import TrainOptions
from ganpipe.train.plan import Draws, Plan
from ganpipe.train.players import build_players, share_state
from ganpipe.train.rescue import Course, Trouble
from ganpipe.train.signals import stop_signals
from ganpipe.train.step import generate, settings_of, update_d, update_g


def run_attempt(plan: Plan, course: Course, options: TrainOptions, ranks: Ranks) -> None:
    """Train from the last checkpoint of this attempt, or from its start, to the last step of the course.

    Raises:
        Interrupted: a signal came; a checkpoint was written.
        Trouble: the training diverged or collapsed; raised by all ranks after the same step.
        UserError: the ranks cannot split the batches.
    """
    params, device, B = plan.train, torch.device(options.device), plan.batch_size
    settings = settings_of(plan, ranks, device)

    # Build G, D, the average of G, the best G so far and both optimizers, and load the last checkpoint.
    players = build_players(plan, course.attempt, options, ranks)
    journal = Journal(plan, course, players, options) if ranks.first else None
    start = share_state(ranks, journal.start if journal else 0, players)

    # Draw the whole batch of each step on every rank, and take this rank's part of it.
    draws = Draws(plan, course.attempt, ranks.part(B))
    feed = Feed(plan.data.images, device, way_for(plan.data.images.nbytes, device, options.data_memory_gb))
    drawn, gathered = tee(draws.batches(start))
    batches = feed.batches(gathered)

    # On a GPU, capture one step as a CUDA graph, which is replayed in place of both updates.
    replay = None
    if options.graph:
        example = feed(*draws.extra(0)), draws.extra_z(0).to(device)
        replay = record_step(players, settings, example, params.precision)

    with journal.open() if journal else nullcontext(), stop_signals() as signals:
        for step in range(start + 1, course.steps + 1):
            # Update D, then G through the updated D, on the same generated images.
            (rows, _), real = next(drawn), next(batches)
            z = to_device(draws.z(step, rows), device)
            settings.draw(draws.seed, step)
            if replay:
                numbers = replay(real, z)
            else:
                fake = generate(players.G, z, settings)
                numbers = [update_d(players, real, z, fake, settings), update_g(players, z, fake, settings)]

            # Every k steps update G and D in turn, or both, once more on a fresh batch (Marchesi 2017).
            if params.extra_update_every and step % params.extra_update_every == 0:
                z, both = to_device(draws.extra_z(step), device), params.extra_update_players == "both"
                turn = "D" if step // params.extra_update_every % 2 == 0 else "G"
                settings.draw_extra(draws.seed, step)
                if both or turn == "D":
                    numbers.append(update_d(players, feed(*draws.extra(step)), z, None, settings))
                if both or turn == "G":
                    numbers.append(update_g(players, z, None, settings))
            if players.G_ema and params.ema_halflife_kimg is not None:
                update_ema(players.G_ema, players.G, params.ema_halflife_kimg, B, nimg=step * B)

            # Record the step, and stop after it, on all ranks alike, if a signal came to any of them.
            signum = ranks.maximum(signals[0] if signals else 0)
            _record(journal, ranks, step, numbers, stopping=bool(signum))
            if signum and step < course.steps:
                raise Interrupted(signum, step)
    if journal:
        journal.finish()


def _record(
    journal: Journal | None, ranks: Ranks, step: int, numbers: Sequence[torch.Tensor], stopping: bool
) -> None:
    """Record a step in the first rank's journal; raise Trouble on all ranks if the journal raises it."""
    trouble = None
    if journal:
        try:
            journal.step(step, numbers, stopping)
        except Trouble as error:
            trouble = error
    if ranks.maximum(int(trouble is not None)):
        raise trouble or Trouble(step, "elsewhere", step, "noticed by the first rank")
