"""Write a study's table, pictures and losses into its page, from finished experiments.

    python tests/benchmarks/study_page.py docs/studies/NAME.md [EXPERIMENT …] [--grid GRID]

The page has its claim, setting and rule above the line MARK; whatever is below is replaced. NAME.jpg beside
it shows, a row a cell, the first images of each seed after the training; NAME-losses.png shows all losses.
Experiments are those of this checkout, named like those of `ganpipe compare`.
"""

import io
import itertools
import re
import sys
from pathlib import Path
from typing import Annotated

import numpy as np
import pandas as pd
import typer
from matplotlib.figure import Figure
from matplotlib.ticker import EngFormatter
from PIL import Image

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))  # this checkout, not the installed package

from ganpipe.common.sheets import COLOURS, captioned, sheet  # noqa: E402
from ganpipe.experiments.cells import SD, Run, cell_name, cell_table, plus_minus, remarks_on  # noqa: E402
from ganpipe.experiments.compare import read_runs  # noqa: E402
from ganpipe.experiments.compare_page import LOSSES, loss_limits, medians  # noqa: E402

ROOT = Path(__file__).resolve().parents[2]
MARK = "<!-- Below: tests/benchmarks/study_page.py -->"
COLUMNS = ("layout_mmd", "layout_kid", "kid", "swd", "precision", "recall", "coverage", "nn_ratio")
TILES = {32: 6, 96: 3, 1024: 2}  # pixels a side at most → images a side of a seed's picture
QUALITY = 75  # of JPEG: noise at 88 makes a file of a megabyte
LONGER = 5  # times as many images in one cell as in another: the losses are shown over their logarithm


def main(
    page: Path, names: Annotated[list[str] | None, typer.Argument()] = None, grid: str | None = None
) -> None:
    """Replace what is below MARK in the page, and write its pictures."""
    head, mark, _ = page.read_text(encoding="utf-8").partition(MARK)
    if not mark:
        raise typer.BadParameter(f"{page}: found no line {MARK}")
    runs, left_out = read_runs(ROOT, names or [], grid)
    runs.sort(key=lambda run: run.seed)
    frame = cell_table(runs)
    # Shorter than the names: without the study's, and without params that are null.
    frame["title"] = [re.sub(r"-\w+=null", "", cell.removeprefix(f"{page.stem}-")) for cell in frame["cell"]]
    pictures(frame, runs).save(page.with_suffix(".jpg"), quality=QUALITY)
    losses(frame, runs).savefig(page.with_name(f"{page.stem}-losses.png"))
    remarks = [*remarks_on(frame.assign(cell=frame["title"])), *left_out]
    images = (
        f"![The first images of each seed, a row a cell]({page.stem}.jpg)\n\n"
        f"![D's and G's loss, a colour a cell, median over seeds]({page.stem}-losses.png)"
    )
    lines = "\n".join(f"- {remark}" for remark in remarks)
    text = f"{head}{MARK}\n\n{table(frame)}\n\n{lines}\n\n{images}\n"
    page.write_text(text, encoding="utf-8")


def table(frame: pd.DataFrame) -> str:
    """Return a markdown table, a row a cell: mean ± sd over the seeds of the main numbers."""
    shown = [
        name
        for wanted in COLUMNS
        for name in map(str, frame)
        if name == wanted or name.startswith(f"{wanted}_lite")
    ]
    shown = [name for name in shown if not name.endswith(("_floor", SD))]
    rows = [["cell", "seeds", *shown], ["---"] * (len(shown) + 2)]
    for row in frame.to_dict("records"):
        numbers = [plus_minus(row[name], row[f"{name}{SD}"]) for name in shown]
        rows.append([row["title"], str(row["runs"]), *numbers])
    return "\n".join(f"| {' | '.join(row)} |" for row in rows)


def pictures(frame: pd.DataFrame, runs: list[Run]) -> Image.Image:
    """Show the first images of each seed side by side, a row a cell."""
    rows = []
    for cell, title in zip(frame["cell"], frame["title"], strict=True):
        seeds = [run for run in runs if cell_name(run.name) == cell]
        tiles = []
        for run in seeds:
            resolution = run.values["preprocess.resolution"]
            side = resolution * next(count for most, count in TILES.items() if resolution <= most)
            with Image.open(io.BytesIO(run.grid)) as picture:
                tiles.append(np.asarray(picture.convert("RGB").crop((0, 0, side, side))))
        word = "seeds" if len(seeds) > 1 else "seed"
        caption = f"{title}, {word} {', '.join(str(run.seed) for run in seeds)}"
        rows.append(captioned(sheet(np.stack(tiles), len(tiles), gap=8), caption))
    width = max(row.width for row in rows)
    canvas = Image.new("RGB", (width, sum(row.height for row in rows)), "white")
    top = 0
    for row in rows:
        canvas.paste(row, (0, top))
        top += row.height
    return canvas


def losses(frame: pd.DataFrame, runs: list[Run]) -> Figure:
    """Plot D's and G's losses side by side, a colour a cell: medians over seeds and neighbouring steps."""
    figure = Figure(figsize=(11, 3), dpi=120, layout="constrained")
    for axes, (column, player) in zip(figure.subplots(1, 2), zip(LOSSES, "DG", strict=True), strict=True):
        curves, lengths = [], []
        looks = itertools.cycle(itertools.product(("-", "--"), COLOURS))
        for cell, title, (dashes, colour) in zip(frame["cell"], frame["title"], looks, strict=False):
            steps = pd.concat([run.history for run in runs if cell_name(run.name) == cell])
            points = medians(steps, column)
            curves.append(points[column].to_numpy())
            axes.plot(
                points["nimg"], points[column], color=colour, linestyle=dashes, label=title, linewidth=1.2
            )
            lengths.append(points["nimg"].max())
        lowest, highest = loss_limits(curves, outside=0.05)
        if highest > 30:  # a diverged cell would flatten the others
            axes.set_yscale("symlog")
        if max(lengths) > LONGER * min(lengths):
            axes.set_xscale("log")
        axes.xaxis.set_major_formatter(EngFormatter(sep=""))
        axes.set(ylim=(lowest, highest), xlabel="images seen", ylabel=f"{player}'s loss")
        axes.spines[["top", "right"]].set_visible(False)
    lines, titles = figure.axes[0].get_legend_handles_labels()
    figure.legend(lines, titles, loc="outside right upper", fontsize="small", frameon=False)
    return figure


if __name__ == "__main__":
    typer.run(main)
