"""Run a grid's cells in one process and compare them: `ganpipe grid` and `ganpipe compare` without DVC.

    python tests/benchmarks/study.py FOLDER GRID --seeds 3 --set key=value …
    python tests/benchmarks/study.py FOLDER NAME --word recipe=celeba64,dcgan --word train.epochs=5,10 …

For studies whose cells train for less time than the pipeline's five processes take to start. The stages are
the same functions with the same params and give the same numbers. A cell is a folder FOLDER/<cell>-s<seed>
with params.json and stages/; finished stages are skipped. Cells with the same pictures share them. If a cell
fails, its traceback is printed and the others continue. `--train-only` stops each cell after its training.
"""

import hashlib
import json
import os
import traceback
from pathlib import Path
from typing import Annotated, Any

import pandas as pd
import typer

from ganpipe import params
from ganpipe.evaluate.stage import evaluate
from ganpipe.experiments import recipes, revisions
from ganpipe.experiments.cells import Run, cell_table, remarks_on, text_table
from ganpipe.experiments.compare_page import comparison_page
from ganpipe.fetch.stage import fetch
from ganpipe.preprocess.stage import preprocess
from ganpipe.sample.stage import sample
from ganpipe.train.options import TrainOptions
from ganpipe.train.plan import plan_training
from ganpipe.train.stage import train

STAGES = Path("stages")


def main(
    folder: Path,
    name: str,
    seeds: Annotated[int, typer.Option(min=1)] = 3,
    settings: Annotated[list[str] | None, typer.Option("--set")] = None,
    words: Annotated[list[str] | None, typer.Option("--word", help="The grid's words.")] = None,
    train_only: bool = False,
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
    for number, (experiment, cell_params) in enumerate(ready, 1):
        print(f"{number}/{len(ready)} {experiment}", flush=True)
        try:
            _run(folder, folder / experiment, cell_params, train_only)
        except Exception:
            traceback.print_exc()
    runs = [run for experiment, cell_params in ready if (run := _result(folder / experiment, cell_params))]
    if runs:
        frame = cell_table(runs)
        frame.to_csv(folder / f"{name}.csv", index=False)
        header, rows = text_table(frame)
        print(pd.DataFrame(rows, columns=header).to_string(index=False))
        remarks = remarks_on(frame)
        (folder / f"{name}.html").write_text(comparison_page(frame, runs, remarks, name))
        print(*remarks, sep="\n")


def _run(folder: Path, root: Path, cell_params: Any, train_only: bool) -> None:
    """Run a cell's stages in its folder, the first two once for all cells with the same pictures."""
    pictures = (
        folder
        / "pictures"
        / hashlib.sha256(str((cell_params.fetch, cell_params.preprocess)).encode()).hexdigest()[:8]
    )
    for checkout in (pictures, root):
        checkout.mkdir(parents=True, exist_ok=True)
        if not (checkout / "ganpipe").exists():  # the training's key includes a digest of its code
            (checkout / "ganpipe").symlink_to(Path("ganpipe").resolve())
    if not (pictures / STAGES / "preprocess" / "index.csv").exists():
        fetch(cell_params.fetch, pictures)
        preprocess(cell_params.preprocess, pictures, workers=1)
    (root / STAGES).mkdir(exist_ok=True)
    (root / STAGES / "preprocess").unlink(missing_ok=True)
    (root / STAGES / "preprocess").symlink_to((pictures / STAGES / "preprocess").resolve())
    (root / "params.json").write_text(
        json.dumps(cell_params.model_dump(include=set(cell_params.experiment)), indent=1)
    )
    if not (root / STAGES / "train" / "model.json").exists():
        train(plan_training(cell_params.model, cell_params.train, root), root, TrainOptions())
    if not train_only and not (root / STAGES / "evaluate" / "metrics.json").exists():
        sample(cell_params.sample, root)
        evaluate(cell_params.evaluate, cell_params.sample, root, "cpu")


def _result(root: Path, cell_params: Any) -> Run | None:
    """Read what `ganpipe compare` needs of a finished experiment; None: it is not finished."""
    stages = root / STAGES
    if not (stages / "evaluate" / "metrics.json").exists():
        return None
    model = json.loads((stages / "train" / "model.json").read_text())
    return Run(
        root.name,
        cell_params.train.seed,
        {key: value for key, value in revisions.flat_params(cell_params).items() if key != recipes.SEED},
        json.loads((stages / "evaluate" / "metrics.json").read_text()),
        model["data_digest"],
        pd.read_csv(stages / "train" / "history.csv"),
        (stages / "sample" / "grid.png").read_bytes(),
        model["ended"],
        model["interventions"],
    )


if __name__ == "__main__":
    typer.run(main)
