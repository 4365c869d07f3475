"""Run a grid's cells in one process and compare them: `ganpipe grid` and `ganpipe compare` without DVC.

    python tests/benchmarks/study.py FOLDER GRID --seeds 3 --set key=value …
    python tests/benchmarks/study.py FOLDER NAME --word recipe=celeba64,dcgan --word train.epochs=5,10 …

For studies whose cells train for less time than five stages, each a process with a mirror, take to start. The
stages are the same functions on the same params and give the same numbers. A cell is a folder
FOLDER/<cell>-s<seed> with its params.json and stages/; what is whole is skipped. Cells with the same pictures
share them. A cell that fails is told, and the others go on. `--train-only` ends a cell after its training.
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
from ganpipe.evaluate import stage as evaluate
from ganpipe.experiments import recipes, revisions
from ganpipe.experiments.cells import Run, cell_table, remarks_on, text_table
from ganpipe.experiments.compare_page import comparison_page
from ganpipe.fetch import stage as fetch
from ganpipe.preprocess import stage as preprocess
from ganpipe.sample import stage as sample
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
    """Run what is not there yet, seed by seed, then compare what is."""
    values = params.load()
    if words:
        values = values.model_copy(update={"grids": {name: words}})
    os.environ["DVC_ROOT"] = str(
        folder.resolve()
    )  # where unfinished trainings and features of real images are kept
    cells = recipes.grid_cells(values, name, settings or [])
    ready = [
        (
            f"{cell.name}-s{seed}",
            recipes.apply_settings(values, [*cell.settings, f"{recipes.SEED}={seed}"], cell.name),
        )
        for seed in range(seeds)
        for cell in cells
    ]
    for number, (experiment, each) in enumerate(ready, 1):
        print(f"{number}/{len(ready)} {experiment}", flush=True)
        try:
            _run(folder, folder / experiment, each, train_only)
        except Exception:
            traceback.print_exc()
    runs = [run for experiment, each in ready if (run := _result(folder / experiment, each))]
    if runs:
        frame = cell_table(runs)
        frame.to_csv(folder / f"{name}.csv", index=False)
        header, rows = text_table(frame)
        print(pd.DataFrame(rows, columns=header).to_string(index=False))
        remarks = remarks_on(frame)
        (folder / f"{name}.html").write_text(comparison_page(frame, runs, remarks, name))
        print(*remarks, sep="\n")


def _run(folder: Path, root: Path, each: Any, train_only: bool) -> None:
    """Run a cell's stages in its folder, the first two once for all cells with the same pictures."""
    pictures = (
        folder / "pictures" / hashlib.sha256(str((each.fetch, each.preprocess)).encode()).hexdigest()[:8]
    )
    for place in (pictures, root):
        place.mkdir(parents=True, exist_ok=True)
        if not (place / "ganpipe").exists():  # of which the training's identity has a digest
            (place / "ganpipe").symlink_to(Path("ganpipe").resolve())
    if not (pictures / STAGES / "preprocess" / "index.csv").exists():
        fetch.fetch(each.fetch, pictures)
        preprocess.preprocess(each.preprocess, pictures, workers=1)
    (root / STAGES).mkdir(exist_ok=True)
    (root / STAGES / "preprocess").unlink(missing_ok=True)
    (root / STAGES / "preprocess").symlink_to((pictures / STAGES / "preprocess").resolve())
    (root / "params.json").write_text(json.dumps(each.model_dump(include=set(each.experiment)), indent=1))
    if not (root / STAGES / "train" / "model.json").exists():
        train(plan_training(each.model, each.train, root), root, TrainOptions())
    if not train_only and not (root / STAGES / "evaluate" / "metrics.json").exists():
        sample.sample(each.sample, root)
        evaluate.evaluate(each.evaluate, each.sample, root, "cpu")


def _result(root: Path, each: Any) -> Run | None:
    """Return what `ganpipe compare` reads of a finished experiment; None where it is not finished."""
    stages = root / STAGES
    if not (stages / "evaluate" / "metrics.json").exists():
        return None
    model = json.loads((stages / "train" / "model.json").read_text())
    return Run(
        root.name,
        each.train.seed,
        {key: value for key, value in revisions.flat_params(each).items() if key != recipes.SEED},
        json.loads((stages / "evaluate" / "metrics.json").read_text()),
        model["data_digest"],
        pd.read_csv(stages / "train" / "history.csv"),
        (stages / "sample" / "grid.png").read_bytes(),
        model["ended"],
        model["interventions"],
    )


if __name__ == "__main__":
    typer.run(main)
