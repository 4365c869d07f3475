"""The train stage: packed images in; a generator, its history and its snapshots out."""

import dataclasses
import shutil
import signal
import sys
from contextlib import nullcontext
from pathlib import Path

from ganpipe.common.errors import Interrupted
from ganpipe.common.files import whole
from ganpipe.common.stages import OUTPUTS, stage_folder
from ganpipe.models import residual
from ganpipe.train import alarms, rescue
from ganpipe.train.devices.compute import exact_kernels, precision_warning
from ganpipe.train.devices.graph import can_record
from ganpipe.train.devices.ranks import join_ranks, rank_device
from ganpipe.train.loop import run_attempt
from ganpipe.train.options import TrainOptions
from ganpipe.train.plan import Plan
from ganpipe.train.rescue import Trouble
from ganpipe.train.resume import unfinished
from ganpipe.train.resume.copies import copies_of
from ganpipe.train.signals import orphaned


def train(plan: Plan, root: Path, options: TrainOptions) -> None:
    """Train, or resume an interrupted training, and publish the result in stages/train.

    Processes with torchrun's environment variables train together; the first of them writes. A training that
    stops because it diverged or collapsed is published too, with the reason.

    Raises:
        Interrupted: SIGTERM, SIGINT or SIGUSR1 came; a checkpoint was written.
        UserError: the same training already runs, here or by its copies elsewhere, or its ranks cannot split
            its batches.
    """
    device = rank_device(options.device)
    with join_ranks(device) as ranks, unfinished.locked(plan.folder, root) if ranks.first else nullcontext():
        graph = options.graph and can_record(device, ranks)
        copies = copies_of(plan.folder) if ranks.first else None
        options = dataclasses.replace(options, device=device, graph=graph, copies=copies)
        if options.fresh and ranks.first:
            unfinished.remove(plan.folder)
            plan.folder.mkdir(parents=True)
        elif copies:
            copies.restore()
        texts = [residual.warning(plan.spec), precision_warning(plan.train.precision, device)]
        for text in filter(None, texts if ranks.first else []):
            print(f"train: {text}", file=sys.stderr)

        # Each rescue or roll-back begins a new attempt at an earlier step.
        while True:
            course = ranks.broadcast(rescue.read_course(plan.folder, plan.steps) if ranks.first else None)
            try:
                with exact_kernels():
                    run_attempt(plan, course, options, ranks)
                break
            except Trouble as trouble:
                if ranks.first:
                    diverged = trouble.what == rescue.DIVERGED
                    action = plan.train.on_nonfinite if diverged else plan.train.on_collapse
                    event = rescue.respond(plan.folder, plan.steps, trouble, action, alarms.WINDOW)
                    print(f"train: {event}", file=sys.stderr)

        if ranks.first:
            _publish(plan.folder, stage_folder(root, "train"))
            # Without a dvc to record the result, this run ends here and the next one publishes it.
            if orphaned():
                raise Interrupted(signal.SIGTERM, course.steps)
            unfinished.remove(plan.folder)


def _publish(source: Path, target: Path) -> None:
    """Copy the finished outputs into the stage's folder; `source` stays, in case of a kill meanwhile."""
    for name in OUTPUTS["train"]:
        if (source / name).is_dir():
            if (target / name).is_dir():
                shutil.rmtree(target / name)
            shutil.copytree(source / name, target / name)
        else:
            with whole(target / name) as temporary:
                shutil.copyfile(source / name, temporary)
