"""Finished experiments beside each other: the params that differ and the metrics, mean ± sd over the seeds.

A cell is the experiments that differ in nothing but train.seed. Cells with the same training images and the
same protocol of the metrics make a set and are ranked by KID. Sets stand beside each other without a common
order, because their numbers do not mean the same.
"""

import base64
import html
import io
import json
import math
import os
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import pandas as pd
from matplotlib.figure import Figure
from rich import box
from rich.console import Console
from rich.table import Table

from ganpipe import files, params, recipes, revisions
from ganpipe.errors import UserError

BEST = "kid_lite0"  # lower is better
SD = "_sd_over_seeds"
TEXTS = ("set", "rank", "cell")
HIDDEN = ("experiments", "data", "protocol")  # columns that only the CSV has
FILES = {
    "metrics": "stages/evaluate/metrics.json",
    "model": "stages/train/model.json",
    "history": "stages/train/history.csv",
    "grid": "stages/sample/grid.png",
}
COLOURS = {"d_loss": "tab:blue", "g_loss": "tab:orange"}
STYLE = """
body { font: 15px/1.5 system-ui, sans-serif; margin: 2em; color: #222 }
table { border-collapse: collapse; margin: 1em 0 } td, th { padding: .25em .8em; text-align: right }
th { border-bottom: 2px solid #888; vertical-align: bottom }
td { border-bottom: 1px solid #ddd; white-space: nowrap } .wide { overflow-x: auto }
.text { text-align: left } .cells { display: flex; flex-wrap: wrap; gap: 1.5em }
figure { margin: 0; width: 340px } figure img { width: 100%; display: block }
.grid { image-rendering: pixelated } figcaption { overflow-wrap: anywhere; min-height: 5em }
"""


@dataclass(frozen=True)
class Run:
    """A finished experiment.

    Attributes:
        name: DVC's name of it.
        seed: train.seed.
        values: dotted name → value of the other params, and `code`: the digest of the stages' code.
        metrics: what metrics.json holds.
        data: digest of the training images.
        history: the table of losses, columns nimg, d_loss and g_loss among others.
        grid: PNG file of generated images.
    """

    name: str
    seed: int
    values: dict[str, Any]
    metrics: dict[str, Any]
    data: str
    history: pd.DataFrame
    grid: bytes


def compare(
    root: Path,
    names: Sequence[str] = (),
    grid: str | None = None,
    csv: Path | None = None,
    page: Path | None = None,
) -> pd.DataFrame:
    """Print the comparison of finished experiments, and write it to files if asked.

    Args:
        root: the checkout.
        names: experiments; none: all, or those of the grid.
        grid: a grid of params.yaml.
        csv: where the table goes as CSV.
        page: where it goes as an HTML page with images and loss curves, which needs no other file.

    Returns:
        What `arrange` does.

    Raises:
        UserError: no such experiment or grid, or none is finished.
    """
    runs, remarks = _read(root, names, grid)
    frame = arrange(runs)
    remarks = [*explained(frame), *remarks]
    header, rows = texts(frame)
    # Elsewhere than on a terminal nothing need fit a width.
    console = Console() if Console().is_terminal else Console(width=1000)
    shown = Table(box=box.SIMPLE_HEAD)
    for name in header:  # long names break at their dots
        shown.add_column(
            name.replace(".", ".\n"), justify="left" if name in TEXTS else "right", overflow="fold"
        )
    for row in rows:
        shown.add_row(*row)
    console.print(shown)
    for remark in remarks:
        console.print(remark, markup=False, highlight=False)
    if csv is not None:
        with files.whole(csv) as path:
            frame.to_csv(path, index=False)
    if page is not None:
        with files.whole(page) as path:
            path.write_text(_page(frame, runs, remarks, grid or "experiments"), encoding="utf-8")
    return frame


def _read(root: Path, names: Sequence[str], grid: str | None) -> tuple[list[Run], list[str]]:
    """Return the finished runs that were asked for, and remarks on those that were not found."""
    with revisions.opened(root) as repo:
        found = revisions.finished(repo)
    remarks: list[str] = []
    if grid is not None:
        cells = [cell.name for cell in recipes.cells(params.load(root / params.PARAMS_FILE), grid)]
        of = {name: _cell(name) for name in found}
        names = [*names, *(name for cell in cells for name in found if of[name] == cell)]
        remarks += [f"{cell}: no experiment is finished" for cell in cells if cell not in of.values()]
    elif not names:
        names = list(found)
    if unknown := [name for name in names if name not in found]:
        raise UserError(f"{', '.join(unknown)}: no such experiment; `dvc exp list -A` names them")
    runs = []
    for name in dict.fromkeys(names):
        try:
            runs.append(_run(root, name, found[name][0].revision))
        except (UserError, KeyError, ValueError, SyntaxError) as error:  # the latter: an older version's
            remarks.append(f"{name}: left out: {str(error).splitlines()[0]}")
    if not runs:
        raise UserError("\n".join([*remarks, "no finished experiment to compare; `ganpipe grid NAME --run`"]))
    return runs, remarks


def _cell(experiment: str) -> str:
    return re.sub(r"-s\d+$", "", experiment)


def _run(root: Path, name: str, revision: str) -> Run:
    """Read an experiment's results out of git and DVC's cache."""
    from dvc.api import DVCFileSystem

    with TemporaryDirectory(prefix="ganpipe-") as place:
        values, last = revisions.unpack(root, revision, Path(place))
        code = revisions.code_of(Path(place))[:7]
    if last != "evaluate":
        raise UserError("its stages did not all run with its params and code")
    system = DVCFileSystem(str(root), rev=revision)
    try:
        content = {key: system.read_bytes(path) for key, path in FILES.items()}
    except OSError:
        raise UserError(f"not in the cache; `dvc exp apply {name}` and `dvc repro` make it") from None
    return Run(
        name,
        values.train.seed,
        {k: v for k, v in revisions.flat(values).items() if k != recipes.SEED} | {"code": code},
        json.loads(content["metrics"]),
        json.loads(content["model"])["data_digest"],
        pd.read_csv(io.BytesIO(content["history"])),
        content["grid"],
    )


def arrange(runs: Sequence[Run]) -> pd.DataFrame:
    """Gather runs into cells, cells into sets that may be compared, and rank each set by KID.

    Returns:
        A row a cell, sets in turn, the best first: set (a letter), rank (NA where there is nothing to compare
        with), cell, runs, each param that differs, each metric with its sd, experiments, data and protocol.
    """
    cells: dict[str, list[Run]] = {}
    for run in sorted(runs, key=lambda run: run.seed):
        key = json.dumps([run.values, run.data, run.metrics.get("protocol")], sort_keys=True)
        cells.setdefault(key, []).append(run)
    differing = [
        name
        for name in dict.fromkeys(name for run in runs for name in run.values)
        if len({_text(run.values.get(name)) for run in runs}) > 1
    ]
    # Numbers, but the sd over subsets of images, which is not the one over seeds, and null floors.
    metrics = dict.fromkeys(
        name
        for run in runs
        for name, value in run.metrics.items()
        if isinstance(value, int | float) and name != "n" and not name.endswith("_sd")
    )
    rows = []
    for together in cells.values():
        row: dict[str, Any] = {"cell": _cell(together[0].name), "runs": len(together)}
        row |= {name: _text(together[0].values.get(name)) for name in differing}
        for name in metrics:
            numbers = pd.Series([run.metrics.get(name) for run in together], dtype=float)
            row |= {name: numbers.mean(), name + SD: numbers.std()}
        row["experiments"] = " ".join(run.name for run in together)
        rows.append(row | {"data": together[0].data, "protocol": together[0].metrics.get("protocol")})
    frame = pd.DataFrame(rows)
    frame.insert(0, "set", frame.groupby(["data", "protocol"], sort=False, dropna=False).ngroup() + 1)
    score = frame.get(BEST, pd.Series(float("nan"), frame.index))
    alone = frame.groupby("set")["cell"].transform("size") == 1
    ranks = score.groupby(frame["set"]).rank(method="min").mask(alone)
    frame.insert(1, "rank", ranks.astype("Int64"))
    return frame.assign(score=score).sort_values(["set", "score"], ignore_index=True).drop(columns="score")


def explained(frame: pd.DataFrame) -> list[str]:
    """Return what a reader has to know: the floors, and why there are several sets where there are."""
    floors = [f"{name.removesuffix('_floor')} {frame[name][0]:.3g}" for name in _floors(frame)]
    found = [f"What as many real images score: {', '.join(floors)}."] if floors else []
    differ = [
        f"{frame[column].nunique()} different {what}"
        for column, what in (("data", "sets of training images"), ("protocol", "protocols of the metrics"))
        if frame[column].nunique() > 1
    ]
    if not differ:
        return found
    why = f"the numbers of one do not mean the same in another: there are {' and '.join(differ)}."
    found.append(f"Ranks hold within a set (first column) only, and sets have no order, because {why}")
    first = frame.drop_duplicates("set")
    sets = zip(first["set"], first["data"], first["protocol"], strict=True)
    return [*found, *(f"Set {number}: images {data[:7]}; {protocol}" for number, data, protocol in sets)]


def texts(frame: pd.DataFrame) -> tuple[list[str], list[list[str]]]:
    """Return header and rows to show: mean ± sd, a gap between sets; what all cells share is left out."""
    hidden = {*HIDDEN, *(_floors(frame)), *(() if frame["set"].nunique() > 1 else ("set",))}
    header = [name for name in map(str, frame) if not name.endswith(SD) and name not in hidden]
    shared = os.path.commonprefix(list(frame["cell"])).rpartition("-")[0] if len(frame) > 1 else ""
    frame = frame.assign(cell=frame["cell"].str.removeprefix(f"{shared}-"))
    rows: list[list[str]] = []
    for _, cells in frame.groupby("set"):
        rows += [[""] * len(header)] if rows else []
        for row in cells.to_dict("records"):
            plain = {n: "–" if pd.isna(row[n]) else str(row[n]) for n in header}
            rows.append([plus_minus(row[n], row[n + SD]) if n + SD in row else plain[n] for n in header])
    return header, rows


def _floors(frame: pd.DataFrame) -> list[str]:
    """Return the metrics of real images that are the same for all cells."""
    floors = [name for name in map(str, frame) if name.endswith("_floor")]
    return [name for name in floors if frame[name].nunique() == 1 and frame[name].notna().all()]


def _text(value: Any) -> str:
    return "null" if value is None else str(value).lower() if isinstance(value, bool) else str(value)


def plus_minus(mean: float, sd: float) -> str:
    """Write a mean with the decimals that two digits of its spread need; NaN: there is none."""
    if math.isnan(mean):
        return "–"
    if math.isnan(sd):
        return f"{mean:.3g}"
    if sd == 0:
        return f"{mean:.3g} ± 0"
    decimals = min(6, max(0, 1 - math.floor(math.log10(sd))))
    return f"{mean:.{decimals}f} ± {sd:.{decimals}f}"


def _page(frame: pd.DataFrame, runs: Sequence[Run], remarks: Sequence[str], title: str) -> str:
    """Return an HTML file with the table and, for each cell, its images and the losses of all its runs."""
    header, rows = texts(frame)

    def line(cells: Sequence[str], tag: str) -> str:
        kinds = [' class="text"' if name in TEXTS else "" for name in header]
        return "".join(f"<{tag}{k}>{html.escape(c)}</{tag}>" for k, c in zip(kinds, cells, strict=True))

    by_name = {run.name: run for run in runs}
    losses = np.concatenate([run.history[list(COLOURS)].to_numpy().ravel() for run in runs])
    # All plots have one scale, which shows all but the outermost hundredth.
    low, high = map(float, np.quantile(losses[np.isfinite(losses)], [0.005, 0.995]))
    limits = (min(0.0, low), max(1.0, 1.05 * high))
    parts = [f"<h1>{html.escape(title)}</h1>", *(f"<p>{html.escape(remark)}</p>" for remark in remarks)]
    lines = [line(header, "th").replace(".", ".<wbr>"), *(line(row, "td") for row in rows)]
    parts += ['<div class="wide"><table>', *(f"<tr>{cells}</tr>" for cells in lines), "</table></div>"]
    for number, cells in frame.groupby("set"):
        parts += [f"<h2>Set {number}</h2>"] if frame["set"].nunique() > 1 else []
        figures = [
            _figure(row, [by_name[name] for name in row["experiments"].split()], limits)
            for row in cells.to_dict("records")
        ]
        parts += ['<div class="cells">', *figures, "</div>"]
    head = f'<meta charset="utf-8"><title>{html.escape(title)}</title><style>{STYLE}</style>'
    body = "\n".join(parts)
    return f"<!DOCTYPE html>\n<html><head>{head}</head>\n<body>{body}</body></html>\n"


def _figure(row: dict[Any, Any], runs: Sequence[Run], limits: tuple[float, float]) -> str:
    rank = "" if pd.isna(row["rank"]) else f"{row['rank']}. "
    kid = plus_minus(row.get(BEST, math.nan), row.get(BEST + SD, math.nan))
    grid, losses = (base64.b64encode(png).decode() for png in (runs[0].grid, _losses(runs, limits)))
    return (
        f"<figure><figcaption><b>{html.escape(rank + row['cell'])}</b><br>"
        f"KID {kid}; images of seed {runs[0].seed}</figcaption>"
        f'<img class="grid" alt="generated images" src="data:image/png;base64,{grid}">'
        f'<img alt="losses over images seen" src="data:image/png;base64,{losses}"></figure>'
    )


def _losses(runs: Sequence[Run], limits: tuple[float, float]) -> bytes:
    """Draw both losses of every run of a cell, as a PNG file."""
    figure = Figure(figsize=(3.4, 2.2), dpi=200, layout="constrained")
    axes = figure.subplots()
    for run in runs:
        # At most some 300 points a curve, each the mean of its neighbours, so that several can be told apart.
        points = run.history[["nimg", *COLOURS]]
        points = points.groupby(points.index // max(1, len(points) // 300)).mean()
        for column, colour in COLOURS.items():
            label = f"{column[0].upper()}'s loss" if run is runs[0] else None
            axes.plot(points["nimg"], points[column], color=colour, linewidth=0.7, alpha=0.8, label=label)
    axes.set(xlabel="images seen", ylim=limits)
    axes.legend(fontsize="small", frameon=False, loc="lower left", bbox_to_anchor=(0, 1), ncols=2)
    axes.spines[["top", "right"]].set_visible(False)
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png")
    return buffer.getvalue()
