"""Compare finished experiments: read them from git and DVC's cache, print the table of cells, write files."""

import io
import json
import re
from collections.abc import Sequence
from pathlib import Path

import pandas as pd
from rich import box
from rich.console import Console
from rich.table import Table

from ganpipe import params
from ganpipe.common import files
from ganpipe.common.errors import UserError
from ganpipe.experiments import revisions
from ganpipe.experiments.cells import Run, cell_table, remarks_on, text_table
from ganpipe.experiments.compare_page import comparison_page
from ganpipe.experiments.recipes import SEED, cell_name, grid_cells


def compare(
    root: Path,
    names: Sequence[str] = (),
    grid: str | None = None,
    csv: Path | None = None,
    page: Path | None = None,
) -> pd.DataFrame:
    """Print the comparison of finished experiments: those named, those of a grid, or all; return its table.

    With `csv`, write the table to that file; with `page`, write an HTML page with images and loss curves.

    Raises UserError: an experiment or the grid is unknown, or none is finished.
    """
    runs, skipped = read_runs(root, names, grid)
    frame = cell_table(runs)
    remarks = [*remarks_on(frame), *skipped]
    # Written to a file or a pipe, lines need no wrapping.
    console = Console() if Console().is_terminal else Console(width=1000)
    header, rows = text_table(frame)
    table = Table(box=box.SIMPLE_HEAD)
    for name in header:  # long names break after their dots and underscores
        broken = re.sub("(?<=[._])", "\n", name)
        table.add_column(broken, justify="left" if name in ("set", "cell") else "right", overflow="fold")
    for row in rows:
        table.add_row(*row)
    console.print(table)
    for remark in remarks:
        console.print(remark, markup=False, highlight=False)
    if csv is not None:
        with files.whole(csv) as path:
            frame.to_csv(path, index=False)
    if page is not None:
        with files.whole(page) as path:
            path.write_text(comparison_page(frame, runs, remarks, grid or "experiments"), encoding="utf-8")
    return frame


def read_runs(root: Path, names: Sequence[str], grid: str | None) -> tuple[list[Run], list[str]]:
    """Return the requested finished runs, and a remark on each that is unfinished or unreadable.

    Raises UserError: an experiment or the grid is unknown, or no run can be read.
    """
    with revisions.open_repo(root) as repo:
        held = revisions.finished(repo)
    remarks: list[str] = []
    if grid is not None:
        for cell in grid_cells(params.load(root / params.PARAMS_FILE), grid):
            of_cell = [name for name in held if cell_name(name) == cell.name]
            names = [*names, *of_cell]
            remarks += [] if of_cell else [f"{cell.name}: no experiment is finished"]
    elif not names:
        names = list(held)
    if unknown := [name for name in names if name not in held]:
        raise UserError(f"{', '.join(unknown)}: no such experiment; `dvc exp list -A` lists them")
    runs = []
    for name in dict.fromkeys(names):
        try:
            runs.append(_read_run(root, name, held[name][0].revision))
        except revisions.UNREADABLE as error:
            remarks.append(f"{name}: left out: {str(error).splitlines()[0]}")
    if not runs:
        raise UserError("\n".join([*remarks, "no finished experiment to compare; `ganpipe grid NAME --run`"]))
    return runs, remarks


def _read_run(root: Path, name: str, revision: str) -> Run:
    """Read an experiment's results from git and DVC's cache."""
    flat, code, last = revisions.identity_of(root, revision)
    if last != "evaluate":
        raise UserError("its stages did not all run with its params and code")
    outputs = "model.json", "metrics.json", "history.csv", "snapshots.csv", "grid.png", "grids"
    held = revisions.read_outputs(root, name, revision, outputs)
    model, metrics = json.loads(held["model.json"]), json.loads(held["metrics.json"])
    losses, snapshots = (pd.read_csv(io.BytesIO(held[f"{table}.csv"])) for table in ("history", "snapshots"))
    grids = {int(Path(file).stem): held[file] for file in held if file.startswith("grids/")}
    ending = model["ended"], model["interventions"]
    seed, values, data = flat.pop(SEED), flat | {"code": code[:7]}, model["data_digest"]
    return Run(name, seed, values, metrics, data, losses, held["grid.png"], *ending, snapshots, grids)
