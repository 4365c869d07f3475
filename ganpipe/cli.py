"""The command line: one command a stage, and the commands that people use. No logic; slow imports inside."""

import errno
import os
import sys
from contextlib import nullcontext
from pathlib import Path
from typing import Annotated, NoReturn

import typer

from ganpipe.common.errors import Interrupted, UserError

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
Source = Annotated[
    str | None,
    typer.Argument(
        metavar="SOURCE",
        help="A generator: a .safetensors file, its folder, a DVC experiment's name, or an address of "
        "MLflow's (runs:/ID/generator); none: stages/train.",
        show_default=False,
    ),
]


@app.command(rich_help_panel=STAGES)
def fetch(
    offline: Annotated[
        bool, typer.Option("--offline", envvar="GANPIPE_OFFLINE", help="Use only what was downloaded before.")
    ] = False,
) -> None:
    """Read the source's pictures into one archive, stages/fetch/images.zip, with a manifest."""
    from ganpipe import params

    values = params.load()
    from ganpipe.fetch.stage import fetch

    fetch(values.fetch, ROOT, offline)


@app.command(rich_help_panel=STAGES)
def preprocess(
    workers: Annotated[
        int | None,
        typer.Option(
            envvar="GANPIPE_WORKERS", min=1, help="Decoding workers; one for each core if not given."
        ),
    ] = None,
    max_disk: Annotated[
        float | None,
        typer.Option(envvar="GANPIPE_MAX_DISK", min=0, help="Most GB on disk; what is free if not given."),
    ] = None,
    max_memory: Annotated[
        float | None,
        typer.Option(
            envvar="GANPIPE_MAX_MEMORY",
            min=0,
            help="Most GB of images, which training reads at random; the machine's memory if not given.",
        ),
    ] = None,
) -> None:
    """Crop, resize and pack the pictures into stages/preprocess/images.npy, and report on them."""
    from ganpipe import params

    values = params.load()
    from ganpipe.preprocess.stage import preprocess

    preprocess(values.preprocess, ROOT, workers, max_disk, max_memory)


@app.command(rich_help_panel=STAGES)
def train(
    device: Device = "auto",
    fresh: Annotated[
        bool, typer.Option("--fresh", envvar="GANPIPE_FRESH", help="Forget an interrupted run, start anew.")
    ] = False,
    save_memory: Annotated[
        bool,
        typer.Option(
            "--save-memory", envvar="GANPIPE_SAVE_MEMORY", help="Compute activations twice, keep few."
        ),
    ] = False,
    graph: Annotated[
        bool, typer.Option("--graph", envvar="GANPIPE_GRAPH", help="Replay the step as a CUDA graph.")
    ] = False,
    log_seconds: Annotated[
        float, typer.Option(envvar="GANPIPE_LOG_SECONDS", min=0, help="Seconds between reads of the losses.")
    ] = 2.0,
    checkpoint_seconds: Annotated[
        float, typer.Option(envvar="GANPIPE_CHECKPOINT_SECONDS", min=0, help="Seconds between checkpoints.")
    ] = 30.0,
    data_memory_gb: Annotated[
        float | None,
        typer.Option(
            "--data-memory",
            envvar="GANPIPE_DATA_MEMORY",
            min=0,
            help="Most GB of images to keep on a GPU; a quarter of what is free there if not given.",
        ),
    ] = None,
    devices: Annotated[
        int, typer.Option(envvar="GANPIPE_DEVICES", min=1, help="Processes that share each batch: GPUs.")
    ] = 1,
) -> None:
    """Train the GAN, or go on where an interrupted run of the same training stopped."""
    from ganpipe import params
    from ganpipe.train.launch import exit_with_launcher, is_first_rank, is_rank, launch

    values = params.load()  # before torch, so that a mistyped value is reported at once
    if devices > 1 and not is_rank():
        raise typer.Exit(launch(devices, sys.argv[1:]))
    exit_with_launcher()
    from ganpipe.device import resolve
    from ganpipe.tracking.mirror import recording
    from ganpipe.train.options import TrainOptions
    from ganpipe.train.plan import plan_training
    from ganpipe.train.stage import train

    options = TrainOptions(
        resolve(device), fresh, save_memory, graph, log_seconds, checkpoint_seconds, data_memory_gb
    )
    plan = plan_training(values.model, values.train, ROOT)
    with recording(ROOT, "train", plan.folder) if is_first_rank() else nullcontext():
        train(plan, ROOT, options)


@app.command(rich_help_panel=STAGES)
def sample(device: Device = "auto") -> None:
    """Generate images from the trained generator into stages/sample/samples.npy, and a grid of them."""
    from ganpipe import params

    values = params.load()
    from ganpipe.device import resolve
    from ganpipe.sample.stage import sample
    from ganpipe.tracking.mirror import recording

    with recording(ROOT, "sample"):
        sample(values.sample, ROOT, resolve(device))


@app.command(rich_help_panel=STAGES)
def evaluate(device: Device = "auto") -> None:
    """Compare generated with real images: numbers in stages/evaluate/metrics.json, and a picture."""
    from ganpipe import params

    values = params.load()
    from ganpipe.device import resolve
    from ganpipe.evaluate.stage import evaluate
    from ganpipe.tracking.mirror import recording

    with recording(ROOT, "evaluate"):
        evaluate(values.evaluate, values.sample, ROOT, resolve(device))


@app.command(rich_help_panel=PEOPLE)
def score(
    real: Annotated[Path, typer.Option(help="Folder, zip, tar or .npy of the reference images.")],
    fake: Annotated[Path, typer.Option(help="The images to score, in the same forms.")],
    held_out: Annotated[
        Path | None,
        typer.Option(help="Further real images, not trained on; needed for floors and to find copies."),
    ] = None,
    extractor: Annotated[str, typer.Option(help="lite0, inception, dinov2_vits14 or pixels.")] = "lite0",
    weights: Annotated[
        str | None, typer.Option(help="Its weights, a file or folder; else the folder GANPIPE_WEIGHTS.")
    ] = None,
    feature_resolution: Annotated[
        int | None,
        typer.Option(min=32, max=1024, help="Pixels a side of its input; 128 (DINOv2 224) if not given."),
    ] = None,
    sets: Annotated[
        int, typer.Option(min=1, help="Sets to cut the images into, for mean and standard deviation.")
    ] = 3,
    as_json: Annotated[bool, typer.Option("--json", help="Print only the numbers, as JSON.")] = False,
    device: Device = "auto",
) -> None:
    """Compute the numbers of metrics.json for any images; needs no pipeline."""
    from ganpipe.commands.score import ScoreOptions, score
    from ganpipe.device import resolve

    options = ScoreOptions(extractor, weights, feature_resolution, sets)
    score(real, fake, held_out, options, resolve(device), as_json)


@app.command(rich_help_panel=PEOPLE)
def sync() -> None:
    """Bring MLflow up to date with the workspace and every DVC experiment; twice is as good as once."""
    from ganpipe.tracking.sync import sync

    for line in sync(ROOT):
        print(line)


@app.command(rich_help_panel=PEOPLE)
def ui(
    port: Annotated[int | None, typer.Option(min=1, max=65535, help="5000, or any free one.")] = None,
) -> None:
    """Bring MLflow up to date, start its server on this machine, and print where the runs are to be seen."""
    from ganpipe.tracking.ui import ui

    ui(ROOT, port)


@app.command(rich_help_panel=PEOPLE)
def generate(
    source: Source = None,
    n: Annotated[int, typer.Option("-n", help="Number of images.")] = 64,
    seed: Annotated[int, typer.Option(help="The first image's seed; the others follow.")] = 0,
    z_scale: Annotated[
        float, typer.Option(help="Factor on z; below 1: fewer artifacts, less variety.")
    ] = 1.0,
    batch: Annotated[int, typer.Option(help="Images in memory at a time; affects no image.")] = 64,
    out: Annotated[Path, typer.Option(help="A new folder of PNG files, a .zip of them, or an .npy.")] = Path(
        "generated"
    ),
    device: Device = "auto",
) -> None:
    """Generate images with a trained generator; a seed always gives the same image."""
    from ganpipe.commands.generate import GenerateOptions, generate
    from ganpipe.device import resolve

    generate(source, out, GenerateOptions(n, seed, z_scale, batch, resolve(device)), ROOT)


@app.command(rich_help_panel=PEOPLE)
def export(
    source: Source = None,
    format: Annotated[str, typer.Option(help="onnx, pt2 (torch.export) or safetensors.")] = "onnx",
    out: Annotated[Path | None, typer.Option(help="The file; generator.FORMAT if not given.")] = None,
) -> None:
    """Export a trained generator to a file, check the file's images, and print how to load it."""
    from ganpipe.commands.export import export

    export(source, format, out, ROOT)


@app.command(rich_help_panel=PEOPLE)
def sources() -> None:
    """List where pictures can come from: licence, size, and what is there already."""
    from rich.console import Console
    from rich.table import Table

    from ganpipe.fetch import catalogue as sources

    table = Table("source", "pictures", "size", "licence", "here", caption=f"cache: {sources.cache()}")
    for row in sources.rows():
        table.add_row(*row)
    Console().print(table)


@app.command(rich_help_panel=PEOPLE)
def recipe(
    name: Annotated[str | None, typer.Argument(help="A recipe; without one, all are listed.")] = None,
) -> None:
    """List the papers' recipes, or print the settings of one; `ganpipe run` starts it."""
    from ganpipe import params
    from ganpipe.experiments import recipes

    values = params.load()
    if name is not None:
        print(*recipes.recipe_settings(values, name), sep="\n")
        return
    from rich.console import Console
    from rich.table import Table

    table = Table("recipe", "paper", "px", "pictures")
    for row in recipes.recipe_rows(values):
        table.add_row(*row)
    Console().print(table)


@app.command(rich_help_panel=PEOPLE)
def run(
    recipe: Annotated[str, typer.Argument(help="A recipe in params.yaml.")],
    settings: Annotated[
        list[str] | None,
        typer.Option("-S", "--set", metavar="KEY=VALUE", help="Override a value of the recipe; repeat."),
    ] = None,
    name: Annotated[
        str | None, typer.Option(help="The experiment's name; DVC makes one up if not given.")
    ] = None,
    queue: Annotated[
        bool, typer.Option("--queue", help="Add it to DVC's queue instead of running it.")
    ] = False,
) -> None:
    """Run a recipe as a DVC experiment, and print the `dvc exp run` command that does it."""
    from ganpipe.experiments.run import run

    run(ROOT, recipe, settings or [], name, queue)


@app.command(rich_help_panel=PEOPLE)
def grid(
    name: Annotated[str, typer.Argument(help="A grid in params.yaml.")],
    seeds: Annotated[int, typer.Option(min=1, help="Experiments of each cell: train.seed 0, 1, 2 …")] = 3,
    settings: Annotated[
        list[str] | None,
        typer.Option("-S", "--set", metavar="KEY=VALUE", help="A value for all cells; repeat."),
    ] = None,
    run: Annotated[bool, typer.Option("--run", help="Run the queue and wait for it.")] = False,
    jobs: Annotated[int, typer.Option(min=1, help="Experiments at a time, with --run.")] = 1,
) -> None:
    """Queue a DVC experiment for each cell and seed of a grid that has none yet."""
    from ganpipe.experiments import grid as experiments

    experiments.grid(ROOT, name, seeds, settings or [], run, jobs)


@app.command(rich_help_panel=PEOPLE)
def compare(
    experiments: Annotated[list[str] | None, typer.Argument(help="Their names; none: all.")] = None,
    grid: Annotated[str | None, typer.Option(help="All experiments of a grid.")] = None,
    csv: Annotated[Path | None, typer.Option(help="Write the table to a file.")] = None,
    html: Annotated[Path | None, typer.Option(help="Write a page with images and loss curves.")] = None,
) -> None:
    """Compare finished experiments: what differs, the metrics over the seeds, and which setting is better."""
    from ganpipe.experiments.compare import compare

    compare(ROOT, experiments or [], grid, csv, html)


@app.command(rich_help_panel=PEOPLE)
def doctor(
    fix: Annotated[
        bool, typer.Option("--fix", help="Apply the fixes; without it they are only listed.")
    ] = False,
) -> None:
    """Find what killed processes left: trainers, runs, locks, copies of the checkout, a detached HEAD."""
    from ganpipe.commands.doctor import doctor

    raise typer.Exit(int(doctor(ROOT, fix) > 0))


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
        remedy = "; free some space and run it again" if error.errno == errno.ENOSPC else ""
        print(f"{command}: error: {place}{error.strerror or error}{remedy}", file=sys.stderr)
    sys.exit(2)
