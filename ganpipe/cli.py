"""The command line: one command a stage, and the commands that people use. No logic; slow imports inside."""

import io
import os
import sys
from collections.abc import Sequence
from contextlib import nullcontext
from pathlib import Path
from typing import Annotated, Any, Literal, NoReturn

import typer
from typer import Argument, Option

from ganpipe.common.errors import Interrupted, UserError, lines_of
from ganpipe.device import resolve

HELP = "Train GANs on a limited set of pictures as a DVC pipeline; `dvc repro` runs the stages in order."
app = typer.Typer(help=HELP, add_completion=False, no_args_is_help=True, pretty_exceptions_enable=False)
ROOT = Path()
STAGES, PEOPLE = "Stages, run by `dvc repro`", "Commands"


def setting(name: str, help: str, min: float = 0) -> Any:
    """Declare an option --name that also reads the environment variable GANPIPE_NAME."""
    return Option(f"--{name}", envvar=f"GANPIPE_{name.upper().replace('-', '_')}", min=min, help=help)


Device = Annotated[str, setting("device", "auto (a GPU if there is one), cpu, cuda, cuda:1, mps.")]
Settings = Annotated[list[str] | None, Option("-S", "--set", metavar="KEY=VALUE", help="Change a param.")]
SOURCE_HELP = "A .safetensors file or its folder, a DVC experiment, or an MLflow address; else stages/train."
Source = Annotated[str | None, Argument(metavar="SOURCE", help=SOURCE_HELP, show_default=False)]


def load() -> Any:
    """Read params.yaml: before torch is imported, so that a mistyped value is reported at once."""
    from ganpipe import params

    return params.load()


@app.command(rich_help_panel=STAGES)
def fetch(offline: Annotated[bool, setting("offline", "Use only earlier downloads.")] = False) -> None:
    """Copy the source's pictures into one archive, stages/fetch/images.zip, with a manifest."""
    from ganpipe.fetch.stage import fetch

    fetch(load().fetch, ROOT, offline)


@app.command(rich_help_panel=STAGES)
def preprocess(
    workers: Annotated[int | None, setting("workers", "Decoding processes; else one a core.", min=1)] = None,
    max_disk: Annotated[float | None, setting("max-disk", "Most GB on disk; else all that is free.")] = None,
) -> None:
    """Crop, resize and pack the pictures into stages/preprocess/images.npy, and write a report."""
    from ganpipe.preprocess.stage import preprocess

    preprocess(load().preprocess, ROOT, workers, max_disk)


@app.command(rich_help_panel=STAGES)
def train(
    device: Device = "auto",
    fresh: Annotated[bool, setting("fresh", "Discard an interrupted training and start anew.")] = False,
    save_memory: Annotated[bool, setting("save-memory", "Recompute activations to save memory.")] = False,
    no_graph: Annotated[bool, setting("no-graph", "Do not replay the step as a CUDA graph.")] = False,
    log_seconds: Annotated[float, setting("log-seconds", "Seconds between reads of the losses.")] = 2.0,
    checkpoint_seconds: Annotated[float, setting("checkpoint-seconds", "Seconds per checkpoint.")] = 30.0,
    data_memory_gb: Annotated[float | None, setting("data-memory", "Most GB of images on a GPU.")] = None,
    devices: Annotated[int, setting("devices", "Processes (GPUs) that share each batch.", min=1)] = 1,
) -> None:
    """Train the GAN, or resume an interrupted run of the same training."""
    from ganpipe.train.devices.launch import exit_with_launcher, is_first_rank, is_rank, launch

    values = load()
    if devices > 1 and not is_rank():
        raise typer.Exit(launch(devices, sys.argv[1:]))
    exit_with_launcher()
    from ganpipe.tracking.mirror import recording
    from ganpipe.train.options import TrainOptions
    from ganpipe.train.plan import plan_training
    from ganpipe.train.stage import train

    seconds = log_seconds, checkpoint_seconds
    options = TrainOptions(resolve(device), fresh, save_memory, not no_graph, *seconds, data_memory_gb)
    plan = plan_training(values.model, values.train, ROOT)
    with recording(ROOT, "train", plan.folder) if is_first_rank() else nullcontext():
        train(plan, ROOT, options)


@app.command(rich_help_panel=STAGES)
def sample(device: Device = "auto") -> None:
    """Generate images with the trained generator: stages/sample/samples.npy, and pictures of them."""
    values = load()
    from ganpipe.sample.stage import sample
    from ganpipe.tracking.mirror import recording

    with recording(ROOT, "sample"):
        sample(values.sample, ROOT, resolve(device))


@app.command(rich_help_panel=STAGES)
def evaluate(device: Device = "auto") -> None:
    """Compare generated with real images: stages/evaluate/metrics.json, and pictures."""
    values = load()
    from ganpipe.evaluate.stage import evaluate
    from ganpipe.tracking.mirror import recording

    with recording(ROOT, "evaluate"):
        evaluate(values.evaluate, values.sample, ROOT, resolve(device))


@app.command(rich_help_panel=PEOPLE)
def score(
    real: Annotated[Path, Option(help="Folder, zip, tar or .npy of the reference images.")],
    fake: Annotated[Path, Option(help="The images to score, in the same forms.")],
    held_out: Annotated[Path | None, Option(help="Real images not trained on, for floors.")] = None,
    extractor: Annotated[str, Option(help="lite0, lite2, inception, dinov2_vits14, pixels.")] = "lite2",
    weights: Annotated[str | None, Option(help="Its weights, a file or folder.")] = None,
    feature_resolution: Annotated[int | None, Option(min=32, max=1024, help="Input px; else 128.")] = None,
    sets: Annotated[int, Option(min=1, help="Sets to split the images into, for mean and sd.")] = 3,
    search_images: Annotated[int | None, Option(min=1, help="Images to search for copies, else all.")] = None,
    as_json: Annotated[bool, Option("--json", help="Print only the numbers, as JSON.")] = False,
    device: Device = "auto",
) -> None:
    """Compute the metrics of metrics.json for any images; needs no pipeline."""
    from ganpipe.commands.score import protocol, score

    settings = protocol(extractor, weights, feature_resolution, sets, search_images)
    score(real, fake, held_out, settings, resolve(device), as_json)


@app.command(rich_help_panel=PEOPLE)
def sync() -> None:
    """Bring MLflow up to date with the workspace and every DVC experiment; repeating it changes nothing."""
    from ganpipe.tracking.sync import sync

    print(*sync(ROOT), sep="\n")


@app.command(rich_help_panel=PEOPLE)
def register(name: str, experiment: Annotated[str | None, Argument(help="Else stages/.")] = None) -> None:
    """Register an experiment's generator as a version of a model in MLflow, served as models:/NAME@best."""
    from ganpipe.tracking.register import register

    print(*register(ROOT, name, experiment), sep="\n")


@app.command(rich_help_panel=PEOPLE)
def ui(port: Annotated[int | None, Option(min=1, max=65535, help="5000, else any free one.")] = None) -> None:
    """Bring MLflow up to date, start its server on this machine, and print the address of the runs."""
    from ganpipe.tracking.ui import ui

    ui(ROOT, port)


@app.command(rich_help_panel=PEOPLE)
def generate(
    source: Source = None,
    n: Annotated[int, Option("-n", help="Number of images.")] = 64,
    seed: Annotated[int, Option(help="The first image's seed; the others follow.")] = 0,
    z_scale: Annotated[float, Option(help="Factor on z; below 1: fewer artifacts, less variety.")] = 1.0,
    class_name: Annotated[str | None, Option("--class", help="Of which class; else as in training.")] = None,
    batch: Annotated[int, Option(min=1, max=4096, help="Images made at a time; affects no image.")] = 64,
    picks: Annotated[Path | None, Option(help="picks.json of `ganpipe explore`: repeat its images.")] = None,
    upscale: Annotated[Literal["2", "4"] | None, Option(help="Enlarge: Real-ESRGAN, else Lanczos.")] = None,
    out: Annotated[Path, Option(help="A new folder of PNG files, a .zip or an .npy.")] = Path("generated"),
    device: Device = "auto",
) -> None:
    """Generate images with a trained generator; a seed always gives the same image."""
    from ganpipe.commands.generate import GenerateOptions, generate

    options = GenerateOptions(n, seed, z_scale, batch, resolve(device), picks, class_name, int(upscale or 1))
    generate(source, out, options, ROOT)


@app.command(rich_help_panel=PEOPLE)
def explore(
    source: Source = None,
    port: Annotated[int | None, Option(min=1, max=65535, help="7860, else the next free one.")] = None,
    no_browser: Annotated[bool, Option("--no-browser", help="Print the address, open nothing.")] = False,
    device: Device = "auto",
) -> None:
    """Look for good images on a local page: seeds, directions, snapshots, nearest training images."""
    from ganpipe.commands.explore_page import explore

    explore(source, ROOT, resolve(device), port, not no_browser)


@app.command(rich_help_panel=PEOPLE)
def export(
    source: Source = None,
    format: Annotated[Literal["onnx", "pt2", "safetensors"], Option(help="pt2 is PyTorch's.")] = "onnx",
    out: Annotated[Path | None, Option(help="The file; generator.FORMAT if not given.")] = None,
) -> None:
    """Export a trained generator for use without ganpipe, check it, and print how to load it."""
    from ganpipe.commands.export import export

    export(source, format, out, ROOT)


@app.command(rich_help_panel=PEOPLE)
def sources() -> None:
    """List the sources of pictures with their licence, size and what is downloaded."""
    from ganpipe.fetch.catalogue import rows
    from ganpipe.fetch.download import cache

    _print_table(("source", "pictures", "size", "licence", "here"), rows(), f"cache: {cache()}")


@app.command(rich_help_panel=PEOPLE)
def recipe(name: Annotated[str | None, Argument(help="A recipe; else all are listed.")] = None) -> None:
    """List the papers' recipes, or print the settings of one; `ganpipe run` starts it."""
    from ganpipe.experiments.recipes import recipe_rows, recipe_settings

    if name is None:
        return _print_table(("recipe", "paper", "px", "pictures"), recipe_rows(load()))
    print(*recipe_settings(load(), name), sep="\n")


@app.command(rich_help_panel=PEOPLE)
def run(
    recipe: Annotated[str, Argument(help="A recipe in params.yaml.")],
    settings: Settings = None,
    name: Annotated[str | None, Option(help="Name of the experiment; DVC chooses one if not given.")] = None,
    queue: Annotated[bool, Option("--queue", help="Add it to DVC's queue instead of running it.")] = False,
) -> None:
    """Run a recipe as a DVC experiment, and print the `dvc exp run` command that does it."""
    from ganpipe.experiments.run import run

    run(ROOT, recipe, settings or [], name, queue)


@app.command(rich_help_panel=PEOPLE)
def grid(
    name: Annotated[str, Argument(help="A grid in params.yaml.")],
    seeds: Annotated[int, Option(min=1, help="Experiments per cell, with train.seed 0, 1, 2 …")] = 3,
    settings: Settings = None,
    run: Annotated[bool, Option("--run", help="Run the queue and wait for it.")] = False,
    jobs: Annotated[int, Option(min=1, help="Experiments at a time, with --run.")] = 1,
    on: Annotated[str | None, Option(help="ray[=HOST:PORT] or slurm[=PARTITION]; else DVC's queue.")] = None,
    gpus: Annotated[int | None, Option(min=0, help="GPUs a cell; else 1 if there are any.")] = None,
    cpus: Annotated[int, Option(min=1, help="CPU cores a cell.")] = 1,
    hours: Annotated[float, Option(min=0.02, help="After which Slurm interrupts and requeues a cell.")] = 24,
    collect: Annotated[bool, Option("--collect", help="Show the nodes' cells, fetch finished ones.")] = False,
    end: Annotated[bool, Option("--end", help="End them: with --collect now, else at Ctrl-C.")] = False,
) -> None:
    """Queue a DVC experiment for each cell and seed of a grid that has none yet, or run it on other nodes."""
    from ganpipe.cluster.submit import Options, grid

    grid(ROOT, name, seeds, settings or [], Options(run, jobs, on, gpus, cpus, hours, collect, end))


@app.command(rich_help_panel=PEOPLE)
def compare(
    experiments: Annotated[list[str] | None, Argument(help="Their names; all if not given.")] = None,
    grid: Annotated[str | None, Option(help="All experiments of a grid.")] = None,
    csv: Annotated[Path | None, Option(help="Write the table to a file.")] = None,
    html: Annotated[Path | None, Option(help="Write a page with images and loss curves.")] = None,
) -> None:
    """Compare finished experiments: params that differ, metrics over the seeds, and the better setting."""
    from ganpipe.experiments.compare import compare

    compare(ROOT, experiments or [], grid, csv, html)


@app.command(rich_help_panel=PEOPLE)
def doctor(fix: Annotated[bool, Option("--fix", help="Also apply the fixes.")] = False) -> None:
    """Find what a kill left behind: trainers, runs, locks, copies, a detached HEAD; never what is alive."""
    from ganpipe.commands.doctor import doctor

    raise typer.Exit(int(doctor(ROOT, fix) > 0))


def _print_table(header: Sequence[str], rows: Sequence[Sequence[str]], caption: str | None = None) -> None:
    from rich.console import Console
    from rich.table import Table

    table = Table(*header, caption=caption)
    for row in rows:
        table.add_row(*row)
    Console().print(table)


def main() -> NoReturn:
    """Run a command; a user's mistake ends with one line for each thing to correct and exit code 2."""
    command = " ".join(["ganpipe", *sys.argv[1:2]])
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="replace")  # a finished stage must not fail over a × in its summary
    try:
        app(prog_name="ganpipe")
    except Interrupted as error:
        print(f"{command}: {error}", file=sys.stderr)
        sys.exit(128 + error.signum)
    except (UserError, OSError) as error:
        if os.environ.get("GANPIPE_DEBUG"):
            raise
        print(*(f"{command}: error: {line}" for line in lines_of(error)), sep="\n", file=sys.stderr)
    sys.exit(2)
