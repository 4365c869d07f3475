"""The command line: one command a stage, and the commands that people use. No logic; slow imports inside."""

import os
import sys
from pathlib import Path
from typing import Annotated, NoReturn

import typer

from ganpipe.errors import Interrupted, UserError

app = typer.Typer(
    help="Train GANs on a limited set of pictures as a DVC pipeline. `dvc repro` runs the stages in order: "
    "fetch, preprocess, train, sample, evaluate.",
    add_completion=False,
    no_args_is_help=True,
    pretty_exceptions_enable=False,
)

ROOT = Path()
STAGES, PEOPLE = "Stages, run by `dvc repro`", "Commands"
Device = Annotated[
    str,
    typer.Option(envvar="GANPIPE_DEVICE", help="auto (a GPU where there is one), cpu, cuda, cuda:1, mps."),
]


@app.command(rich_help_panel=STAGES)
def fetch() -> None:
    """Read the source's pictures into one archive, stages/fetch/images.zip, with a manifest."""
    from ganpipe import params
    from ganpipe.fetch import fetch

    fetch(params.load().fetch, ROOT)


@app.command(rich_help_panel=STAGES)
def preprocess(
    workers: Annotated[
        int | None,
        typer.Option(
            envvar="GANPIPE_WORKERS", min=1, help="Decoding workers; one for each core if not given."
        ),
    ] = None,
) -> None:
    """Crop, resize and pack the pictures into stages/preprocess/images.npy, and report on them."""
    from ganpipe import params
    from ganpipe.preprocess import preprocess

    preprocess(params.load().preprocess, ROOT, workers)


@app.command(rich_help_panel=STAGES)
def train(
    device: Device = "auto",
    fresh: Annotated[
        bool, typer.Option("--fresh", envvar="GANPIPE_FRESH", help="Forget an interrupted run, start anew.")
    ] = False,
    log_seconds: Annotated[
        float, typer.Option(envvar="GANPIPE_LOG_SECONDS", min=0, help="Seconds between reads of the losses.")
    ] = 2.0,
    checkpoint_seconds: Annotated[
        float, typer.Option(envvar="GANPIPE_CHECKPOINT_SECONDS", min=0, help="Seconds between checkpoints.")
    ] = 30.0,
) -> None:
    """Train the GAN, or go on where an interrupted run of the same training stopped."""
    from ganpipe import params, tracking
    from ganpipe import train as stage
    from ganpipe.device import resolve

    values = params.load()
    plan = stage.plan(values.model, values.train, ROOT)
    with tracking.recording(ROOT, "train", plan.folder):
        stage.train(plan, ROOT, resolve(device), fresh, log_seconds, checkpoint_seconds)


@app.command(rich_help_panel=STAGES)
def sample(device: Device = "auto") -> None:
    """Generate images from the trained generator into stages/sample/samples.npy, and a grid of them."""
    from ganpipe import params, tracking
    from ganpipe.device import resolve
    from ganpipe.sample import sample

    values = params.load()
    with tracking.recording(ROOT, "sample"):
        sample(values.sample, ROOT, resolve(device))


@app.command(rich_help_panel=STAGES)
def evaluate(device: Device = "auto") -> None:
    """Compare generated with real images: numbers in stages/evaluate/metrics.json, and a picture."""
    from ganpipe import params, tracking
    from ganpipe.device import resolve
    from ganpipe.evaluate import evaluate

    values = params.load()
    with tracking.recording(ROOT, "evaluate"):
        evaluate(values.evaluate, ROOT, resolve(device))


@app.command(rich_help_panel=PEOPLE)
def sync() -> None:
    """Bring MLflow up to date with the workspace and every DVC experiment; twice is as good as once."""
    from ganpipe import tracking

    for line in tracking.sync(ROOT):
        print(line)


def main() -> NoReturn:
    """Run a command; a user's mistake ends in one line for each thing to mend and exit code 2."""
    command = " ".join(["ganpipe", *sys.argv[1:2]])
    try:
        app(prog_name="ganpipe")
    except UserError as error:
        if os.environ.get("GANPIPE_DEBUG"):
            raise
        for line in str(error).splitlines():
            print(f"{command}: error: {line}", file=sys.stderr)
    except Interrupted as error:
        print(f"{command}: {error}", file=sys.stderr)
        sys.exit(128 + error.signum)
    except OSError as error:
        if os.environ.get("GANPIPE_DEBUG"):
            raise
        path = error.filename2 or error.filename
        place = f"{path}: " if path else ""
        print(f"{command}: error: {place}{error.strerror or error}", file=sys.stderr)
    sys.exit(2)
