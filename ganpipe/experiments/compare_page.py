"""The comparison as one HTML file that needs no other: the table, and each cell's images and loss curves."""

import base64
import io
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from jinja2 import Template
from matplotlib.figure import Figure

from ganpipe.experiments.cells import Run, plus_minus, text_table

COLOURS = {"d_loss": "tab:blue", "g_loss": "tab:orange"}


def comparison_page(frame: pd.DataFrame, runs: Sequence[Run], remarks: Sequence[str], title: str) -> str:
    """Return the HTML page of the table that `cell_table` made of runs, with remarks above it."""
    header, rows = text_table(frame)
    by_name = {run.name: run for run in runs}
    limits = loss_limits([run.history[list(COLOURS)].to_numpy() for run in runs])
    figures = []
    for row in frame.to_dict("records"):
        cell = [by_name[name] for name in row["experiments"].split()]
        kids = pd.Series([run.kid for run in cell])
        images: dict[Any, Any] = {
            "kid": plus_minus(kids.mean(), kids.std()),
            "seed": cell[0].seed,
            "grid": base64.b64encode(cell[0].grid).decode(),
            "losses": base64.b64encode(_loss_curves(cell, limits)).decode(),
        }
        figures.append(row | images)
    source = Path(__file__).with_name("compare.html").read_text(encoding="utf-8")
    template = Template(source, autoescape=True, trim_blocks=True)
    return template.render(title=title, remarks=remarks, header=header, rows=rows, figures=figures)


def loss_limits(losses: Sequence[np.ndarray]) -> tuple[float, float]:
    """Return the y limits that all loss plots share.

    Leaves out the outermost hundredth of each run, and runs that reach ten times the median of all runs.

    Args:
        losses: for each run float N×2, the losses of D and G; NaN is skipped.
    """
    finite = [run[np.isfinite(run)] for run in losses]
    lows, highs = np.array([np.quantile(run, [0.005, 0.995]) for run in finite if len(run)] or [[0.0, 1.0]]).T
    high = float(highs[highs <= 10 * max(1.0, float(np.median(highs)))].max())
    return max(min(0.0, lows.min()), -high), max(1.0, 1.05 * high)


def _loss_curves(runs: Sequence[Run], limits: tuple[float, float]) -> bytes:
    """Plot both losses of every run of a cell over the images seen, as a PNG file."""
    figure = Figure(figsize=(3.4, 2.2), dpi=200, layout="constrained")
    axes = figure.subplots()
    for run in runs:
        # About 300 points a curve at most, each a mean over steps, so that several curves stay apart.
        points = run.history[["nimg", *COLOURS]]
        points = points.groupby(points.index // max(1, len(points) // 300)).mean()
        for column, colour in COLOURS.items():
            label = f"{column[0].upper()}'s loss" if run is runs[0] else None
            axes.plot(points["nimg"], points[column], color=colour, linewidth=0.7, alpha=0.8, label=label)
    axes.set(xlabel="images seen", ylim=limits)
    axes.locator_params(axis="x", nbins=4)
    axes.legend(fontsize="small", frameon=False, loc="lower left", bbox_to_anchor=(0, 1), ncols=2)
    axes.spines[["top", "right"]].set_visible(False)
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png")
    return buffer.getvalue()
