"""Run a grid's cells in one process and compare them: `ganpipe grid` and `ganpipe compare` without DVC.

    python tests/benchmarks/study.py FOLDER GRID --seeds 3 --set key=value …
    python tests/benchmarks/study.py FOLDER NAME --word recipe=celeba64,dcgan --word train.epochs=5,10 …

For studies whose cells train for less time than the pipeline's five processes take to start. The stages are
the same functions with the same params and give the same numbers. A cell is a folder FOLDER/<cell>-s<seed>
with params.json and stages/; finished stages are skipped. Cells with the same pictures share them. If a cell
fails, its traceback is printed and the others continue. `--train-only` stops each cell after its training.
`--jobs` runs so many cells at once, in processes of their own.
"""

import hashlib
import json
import multiprocessing
import os
import sys
import time
import traceback
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from typing import Annotated

import pandas as pd
import typer

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))  # this checkout, not the installed package

from ganpipe import params  # noqa: E402
from ganpipe.common.stages import stage_file, stage_folder  # noqa: E402
from ganpipe.evaluate.stage import evaluate  # noqa: E402
from ganpipe.experiments import recipes, revisions  # noqa: E402
from ganpipe.experiments.cells import Run, cell_table, remarks_on, text_table  # noqa: E402
from ganpipe.experiments.compare_page import comparison_page  # noqa: E402
from ganpipe.fetch.stage import fetch  # noqa: E402
from ganpipe.params import Params  # noqa: E402
from ganpipe.preprocess.stage import preprocess  # noqa: E402
from ganpipe.sample.stage import sample  # noqa: E402
from ganpipe.train.options import TrainOptions  # noqa: E402
from ganpipe.train.plan import plan_training  # noqa: E402
from ganpipe.train.stage import train  # noqa: E402


def main(
    folder: Path,
    name: str,
    seeds: Annotated[int, typer.Option(min=1)] = 3,
    settings: Annotated[list[str] | None, typer.Option("--set")] = None,
    words: Annotated[list[str] | None, typer.Option("--word", help="The grid's words.")] = None,
    train_only: bool = False,
    device: str = "cpu",
    jobs: Annotated[int, typer.Option(min=1)] = 1,
) -> None:
    """Run the unfinished cells, seed by seed, then compare the finished ones."""
    values = params.load()
    if words:
        values = values.model_copy(update={"grids": {name: words}})
    os.environ["DVC_ROOT"] = str(folder.resolve())  # for unfinished trainings and cached features
    cells = recipes.grid_cells(values, name, settings or [])
    ready = [
        (
            f"{cell.name}-s{seed}",
            recipes.apply_settings(values, [*cell.settings, f"{recipes.SEED}={seed}"], cell.name),
        )
        for seed in range(seeds)
        for cell in cells
    ]
    for _, cell_params in ready:
        _pictures(folder, cell_params)
    options = TrainOptions(device)
    fork = multiprocessing.get_context("fork")
    with ProcessPoolExecutor(jobs, fork) as pool:
        running = [
            pool.submit(_run, folder, folder / experiment, cell_params, train_only, options)
            for experiment, cell_params in ready
        ]
    runs = [run for experiment, cell_params in ready if (run := _result(folder / experiment, cell_params))]
    if runs:
        frame = cell_table(runs)
        frame.to_csv(folder / f"{name}.csv", index=False)
        header, rows = text_table(frame)
        print(pd.DataFrame(rows, columns=header).to_string(index=False))
        remarks = remarks_on(frame)
        (folder / f"{name}.html").write_text(comparison_page(frame, runs, remarks, name))
        print(*remarks, sep="\n")
    raise typer.Exit(not all(cell.result() for cell in running))


def _pictures(folder: Path, cell_params: Params) -> Path:
    """Return the packed pictures of a cell, made once for all cells with the same ones."""
    wanted = str((cell_params.fetch, cell_params.preprocess))
    root = _checkout(folder / "pictures" / hashlib.sha256(wanted.encode()).hexdigest()[:8])
    if not stage_file(root, "index.csv").exists():
        fetch(cell_params.fetch, root)
        preprocess(cell_params.preprocess, root, workers=1)
    return root


def _checkout(root: Path) -> Path:
    root.mkdir(parents=True, exist_ok=True)
    if not (root / "ganpipe").exists():  # the training's key includes a digest of its code
        (root / "ganpipe").symlink_to(Path(__file__).resolve().parents[2] / "ganpipe")
    return root


def _run(folder: Path, root: Path, cell_params: Params, train_only: bool, options: TrainOptions) -> bool:
    """Run a cell's stages in its folder; return whether they succeeded, else print the traceback."""
    print(f"{root.name} begins", flush=True)
    began = time.monotonic()
    try:
        pictures = stage_folder(_pictures(folder, cell_params), "preprocess")
        preprocessed = stage_folder(_checkout(root), "preprocess")
        preprocessed.parent.mkdir(exist_ok=True)
        preprocessed.unlink(missing_ok=True)
        preprocessed.symlink_to(pictures.resolve())
        (root / "params.json").write_text(
            json.dumps(cell_params.model_dump(include=set(cell_params.experiment)), indent=1)
        )
        if not stage_file(root, "model.json").exists():
            train(plan_training(cell_params.model, cell_params.train, root), root, options)
        trained = time.monotonic()
        if not train_only and not stage_file(root, "metrics.json").exists():
            sample(cell_params.sample, root, options.device)
            evaluate(cell_params.evaluate, cell_params.sample, root, options.device)
        print(f"{root.name}: trained in {trained - began:.1f} s, all in {time.monotonic() - began:.1f} s")
        return True
    except Exception:
        traceback.print_exc()
        return False


def _result(root: Path, cell_params: Params) -> Run | None:
    """Read what `ganpipe compare` needs of a finished experiment; None: it is not finished."""
    if not stage_file(root, "metrics.json").exists():
        return None
    model = json.loads(stage_file(root, "model.json").read_text())
    return Run(
        root.name,
        cell_params.train.seed,
        {key: value for key, value in revisions.flat_params(cell_params).items() if key != recipes.SEED},
        json.loads(stage_file(root, "metrics.json").read_text()),
        model["data_digest"],
        pd.read_csv(stage_file(root, "history.csv")),
        stage_file(root, "grid.png").read_bytes(),
        model["ended"],
        model["interventions"],
        pd.read_csv(stage_file(root, "snapshots.csv")),
        {int(path.stem): path.read_bytes() for path in stage_file(root, "grids").glob("*.png")},
    )


if __name__ == "__main__":
    typer.run(main)
