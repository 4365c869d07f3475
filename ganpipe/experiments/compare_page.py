"""The comparison as one HTML file that needs no other: the table, curves of all cells, each cell's images."""

import base64
import io
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from jinja2 import Template
from matplotlib.figure import Figure
from matplotlib.ticker import EngFormatter
from PIL import Image

from ganpipe.common.sheets import COLOURS, plot_image
from ganpipe.experiments.cells import Run, plus_minus, text_table, words_of

LOSSES = {"d_loss": "tab:blue", "g_loss": "tab:orange"}
# The charts of all cells: title → attribute of a run and column.
CHARTS = {
    "D's loss": ("history", "d_loss"),
    "G's loss": ("history", "g_loss"),
    "KID of the snapshots": ("snapshots", "kid"),
    "Layout MMD of the snapshots": ("snapshots", "layout_mmd"),
}
POINTS = 100  # of a curve at most
STYLES = ("solid", "dashed", "dotted")  # in matplotlib and CSS, one after the other for each of the colours
NUMBERS = ("layout_mmd", "layout_kid", "kid", "fd", "precision", "recall", "coverage")  # under a snapshot
# Least width of embedded pictures, twice that on the page, in pixels; images a side of a snapshot's picture.
GRID_WIDTH, SNAPSHOT_WIDTH, SNAPSHOT_IMAGES = 680, 400, 4


def comparison_page(frame: pd.DataFrame, runs: Sequence[Run], remarks: Sequence[str], title: str) -> str:
    """Return the HTML page of the table that `cell_table` made of runs, with remarks above it."""
    header, rows = text_table(frame)
    names = [dict(zip(header, row, strict=True))["cell"] for row in rows if any(row)]
    by_name = {run.name: run for run in runs}
    limits = loss_limits([run.history[list(LOSSES)].to_numpy() for run in runs])
    figures: list[dict[Any, Any]] = []
    for i, (row, name) in enumerate(zip(frame.to_dict("records"), names, strict=True)):
        cell = [by_name[experiment] for experiment in row["experiments"].split()]
        ranks = pd.Series([run.rank for run in cell])
        rank = f"{words_of(cell[0].metrics['ranked_by'])} {plus_minus(ranks.mean(), ranks.std())}"
        facts = {"name": name, "runs": cell, "rank": rank}
        facts |= {"colour": COLOURS[i % len(COLOURS)], "style": STYLES[i // len(COLOURS) % len(STYLES)]}
        facts |= {"grid": _picture(cell[0].grid, GRID_WIDTH), "losses": _loss_curves(cell, limits)}
        figures.append(row | facts | {"snapshots": _snapshots(cell)})
    charts = {chart: _chart(figures, chart) for chart in CHARTS}
    source = Path(__file__).with_name("compare.html").read_text(encoding="utf-8")
    template = Template(source, autoescape=True, trim_blocks=True)
    texts = {"title": title, "remarks": remarks, "header": header, "rows": rows}
    return template.render(texts, figures=figures, charts=charts)


def loss_limits(losses: Sequence[np.ndarray], outside: float = 0.01) -> tuple[float, float]:
    """Return the y limits that loss plots share.

    Leaves out runs that reach ten times the median of all runs.

    Args:
        losses: for each run float, such as N×2: the losses of D and G; NaN is skipped.
        outside: the share of each run's numbers, the outermost ones, that is left out.
    """
    ends = outside / 2, 1 - outside / 2
    finite = [run[np.isfinite(run)] for run in losses]
    lows, highs = np.array([np.quantile(run, ends) for run in finite if len(run)] or [[0.0, 1.0]]).T
    high = float(highs[highs <= 10 * max(1.0, float(np.median(highs)))].max())
    return max(min(0.0, lows.min()), -high), max(1.0, 1.05 * high)


def _chart(figures: Sequence[dict[Any, Any]], title: str) -> str | None:
    """Plot one of CHARTS, a curve a cell, as a PNG file in base64; None: no run has its numbers."""
    table, column = CHARTS[title]
    figure, curves = Figure(figsize=(5, 3), dpi=200, layout="constrained"), []
    axes = figure.subplots()
    for cell in figures:
        rows = pd.concat([getattr(run, table) for run in cell["runs"]])
        if column in rows and len(rows):
            points = medians(rows, column)
            curves.append(points[column].to_numpy())
            style = {"color": cell["colour"], "linestyle": cell["style"], "linewidth": 1.2}
            axes.plot(points["nimg"], points[column], marker="." if len(points) < 20 else None, **style)
    axes.set(ylabel=title, ylim=loss_limits(curves, outside=0.05))
    return _rendered(figure) if curves else None


def medians(rows: pd.DataFrame, column: str) -> pd.DataFrame:
    """Return medians of nimg and a column over each 1 / POINTS of a training; spikes would hide others."""
    return rows[["nimg", column]].groupby((rows["nimg"] - 1) * POINTS // rows["nimg"].max()).median()


def _loss_curves(runs: Sequence[Run], limits: tuple[float, float]) -> str:
    """Plot both losses of every run of a cell, as a PNG file in base64."""
    figure = Figure(figsize=(3.4, 2.2), dpi=200, layout="constrained")
    axes = figure.subplots()
    for run in runs:
        # About 300 points a curve at most, each a mean over steps, so that several curves stay apart.
        points = run.history[["nimg", *LOSSES]]
        points = points.groupby(points.index // max(1, len(points) // 300)).mean()
        for column, colour in LOSSES.items():
            label = f"{column[0].upper()}'s loss" if run is runs[0] else None
            axes.plot(points["nimg"], points[column], color=colour, linewidth=0.7, alpha=0.8, label=label)
    axes.set(ylim=limits)
    axes.legend(fontsize="small", frameon=False, loc="lower left", bbox_to_anchor=(0, 1), ncols=2)
    return _rendered(figure)


def _rendered(figure: Figure) -> str:
    """Finish a chart over the images seen, and return its PNG file in base64."""
    (axes,), file = figure.axes, io.BytesIO()
    axes.set(xlabel="images seen")
    axes.locator_params(axis="x", nbins=4)
    axes.xaxis.set_major_formatter(EngFormatter(sep=""))
    plot_image(figure).save(file, "PNG")
    return base64.b64encode(file.getvalue()).decode()


def _snapshots(cell: Sequence[Run]) -> dict[int, dict[str, Any]]:
    """Return epoch → picture of the first run's snapshot, and numbers: name → mean ± sd over the seeds."""
    side = SNAPSHOT_IMAGES * cell[0].values.get("preprocess.resolution", SNAPSHOT_WIDTH)
    scores, snapshots = pd.concat([run.snapshots for run in cell]), {}
    for epoch, grid in sorted(cell[0].grids.items()):
        rows = scores[scores["epoch"] == epoch]
        names = [name for name in NUMBERS if name in rows and len(rows)]
        numbers = {name: plus_minus(rows[name].mean(), rows[name].std()) for name in names}
        snapshots[epoch] = {"picture": _picture(grid, SNAPSHOT_WIDTH, side), "numbers": numbers}
    return snapshots


def _picture(png: bytes, width: int, side: int | None = None) -> str:
    """Return a PNG file in base64, enlarged or reduced by an integer to `width` pixels or somewhat more.

    With `side`, only the square of that many pixels at the top left is kept.
    """
    with Image.open(io.BytesIO(png)) as picture:
        right, bottom = (min(side or length, length) for length in picture.size)
        kept = picture.crop((0, 0, right, bottom))
    factor, file = math.ceil(width / kept.width), io.BytesIO()
    larger = kept.resize((kept.width * factor, kept.height * factor), Image.Resampling.NEAREST)
    larger.reduce(larger.width // width).save(file, "PNG")
    return base64.b64encode(file.getvalue()).decode()
