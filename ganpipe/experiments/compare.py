"""Finished experiments beside each other: the params that differ and the metrics, mean ± sd over the seeds.

A cell is the experiments that differ in nothing but train.seed. Cells with the same training images and the
same protocol of the metrics make a set, in which the one with the lowest mean KID, of two seeds and more, is
compared with each other one, seed by seed (verdict.py). Sets stand beside each other without a verdict,
because their numbers do not mean the same.
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
from itertools import zip_longest
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import pandas as pd
from matplotlib.figure import Figure
from rich import box
from rich.console import Console
from rich.table import Table

from ganpipe import params
from ganpipe.common import files
from ganpipe.common.errors import UserError
from ganpipe.evaluate.card import brief
from ganpipe.experiments import recipes, revisions
from ganpipe.experiments.verdict import MOST_SEEDS, Verdict, verdict

SD = "_sd_over_seeds"
TEXTS = ("set", "cell")
# What the CSV has of a verdict beside its words.
NUMBERS = ("difference", "difference_low", "difference_high", "paired_seeds", "seeds_to_tell")
# Metrics that fit a screen; the CSV has all of them.
KID = re.compile("kid_(lite0|inception|dinov2_vits14|pixels)")
SHOWN = re.compile(
    f"{KID.pattern}|{KID.pattern.replace('kid', 'fd')}|fid|precision|recall|coverage|c2st_auc|nn_ratio"
)
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
.text { text-align: left }
.cells { display: grid; grid-template-columns: repeat(auto-fill, 340px); column-gap: 1.5em }
figure { margin: 0 0 1.5em; display: grid; grid-row: span 3; grid-template-rows: subgrid; row-gap: .5em }
figure img { width: 100%; display: block } .grid { image-rendering: pixelated }
figcaption { overflow-wrap: anywhere }
.mark { color: #b00020 }
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
        ended: how the training ended, such as "diverged at step 400"; "finished" where all went well.
        interventions: how often the training was rescued.
    """

    name: str
    seed: int
    values: dict[str, Any]
    metrics: dict[str, Any]
    data: str
    history: pd.DataFrame
    grid: bytes
    ended: str = "finished"
    interventions: int = 0

    @property
    def score(self) -> float:
        """The KID, whatever the extractor; lower is better, NaN: there is none."""
        names = [name for name in self.metrics if KID.fullmatch(name)]
        value = self.metrics[names[0]] if names else None
        return math.nan if value is None else float(value)

    @property
    def mark(self) -> str:
        """What a reader must know of how the numbers came about; empty: nothing."""
        ended = [] if self.ended == "finished" else [self.ended]
        times = "once" if self.interventions == 1 else f"{self.interventions} times"
        rescued = [f"rescued {times}"] if self.interventions else []
        return f"seed {self.seed} {', '.join(ended + rescued)}" if ended or rescued else ""


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
    for name in header:  # long names break at their dots and underscores
        broken = re.sub("(?<=[._])", "\n", name)
        shown.add_column(broken, justify="left" if name in TEXTS else "right", overflow="fold")
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
    model = json.loads(content["model"])
    return Run(
        name,
        values.train.seed,
        {k: v for k, v in revisions.flat(values).items() if k != recipes.SEED} | {"code": code},
        json.loads(content["metrics"]),
        model["data_digest"],
        pd.read_csv(io.BytesIO(content["history"])),
        content["grid"],
        model.get("ended", "finished"),
        model.get("interventions", 0),
    )


def arrange(runs: Sequence[Run]) -> pd.DataFrame:
    """Gather runs into cells, cells into sets that may be compared, and judge each set by KID.

    Returns:
        A row a cell, sets in turn, the lowest KID first: set, cell, runs, each param that differs, verdict,
        marks of runs that ended badly, each metric with its sd, experiments, data, protocol and NUMBERS.
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
    sets: dict[tuple[str, Any], list[dict[str, Any]]] = {}
    for together in cells.values():
        row: dict[str, Any] = {"set": 0, "cell": _cell(together[0].name), "runs": len(together)}
        row |= {name: _text(together[0].values.get(name)) for name in differing}
        row |= {"verdict": "", "marks": "; ".join(run.mark for run in together if run.mark)}
        for name in metrics:
            numbers = pd.Series([run.metrics.get(name) for run in together], dtype=float)
            row |= {name: numbers.mean(), name + SD: numbers.std()}
        row["experiments"] = " ".join(run.name for run in together)
        row |= {"data": together[0].data, "protocol": together[0].metrics.get("protocol")}
        row |= dict.fromkeys(NUMBERS) | {"scores": {run.seed: run.score for run in together}}
        sets.setdefault((row["data"], row["protocol"]), []).append(row)
    for number, rows in enumerate(sets.values(), 1):
        rows.sort(key=lambda row: pd.Series(row["scores"]).fillna(math.inf).mean())
        _judge(rows)
        for row in rows:
            row["set"] = number
            del row["scores"]
    return pd.DataFrame([row for rows in sets.values() for row in rows])


def _judge(rows: list[dict[str, Any]]) -> None:
    """Compare the cell of a set that has the lowest KID with each other one.

    Of one seed, it would keep from a verdict all others, so the lowest of two seeds and more is taken.
    """
    several = [row for row in rows if sum(map(math.isfinite, row["scores"].values())) > 1]
    first = (several or rows)[0]
    others = [row for row in rows if row is not first]
    found = [verdict(row["scores"], first["scores"], len(others)) for row in others]
    for row, each in zip(others, found, strict=True):
        row["verdict"] = _words(each)
        if each:
            row |= zip(NUMBERS, (each.difference, each.low, each.high, each.pairs, each.seeds), strict=True)
    if others:
        every = all(each and each.word == "worse" for each in found)
        lowest = "lowest KID" if first is rows[0] else "lowest KID of two seeds and more"
        first["verdict"] = "better than all others" if every else lowest


def _words(found: Verdict | None) -> str:
    if found is None:
        return "no verdict: fewer than 2 seeds in common"
    decimals = max(0, 1 - math.floor(math.log10(max(found.high - found.low, 1e-9))))
    interval = f"{found.difference:+.{decimals}f} ({found.low:+.{decimals}f} to {found.high:+.{decimals}f})"
    if found.word != "not distinguishable":
        return f"{found.word}: {interval}"
    seeds = f"more than {MOST_SEEDS}" if found.seeds is None else f"about {found.seeds}"
    return f"not distinguishable: {interval}; {seeds} seeds would tell"


def explained(frame: pd.DataFrame) -> list[str]:
    """Return what a reader has to know: the floors, and why there are several sets where there are."""
    found = []
    for row in frame.drop_duplicates("set").to_dict("records"):
        floors = {
            name: row.get(f"{name}_floor", math.nan) for name in filter(SHOWN.fullmatch, map(str, frame))
        }
        texts = ", ".join(f"{name} {floor:.3g}" for name, floor in floors.items() if not math.isnan(floor))
        where = f" (set {row['set']})" if frame["set"].nunique() > 1 else ""
        found += [f"What as many real images score{where}: {texts}."] if texts else []
    for row in _shortened(frame).to_dict("records"):
        words = "; ".join(filter(None, (row["verdict"], row["marks"])))
        found += [f"{row['cell']}: {words}."] if words else []
    if frame["verdict"].any():
        found.append(
            "Verdicts are against the lowest KID of two seeds and more: the difference in KID, lower being "
            "better, and its 95 % interval over the seeds that both have, for all comparisons of the set "
            "together."
        )
    first = frame.drop_duplicates("set").to_dict("records")
    for other in first[1:]:
        differ = ", ".join(_differences(first[0], other))
        found.append(
            f"No verdict between sets {first[0]['set']} and {other['set']}, which do not compare: {differ}."
        )
    return found


def _differences(one: dict[Any, Any], other: dict[Any, Any]) -> list[str]:
    """Name what makes the numbers of two cells incomparable."""
    images = f"training images {one['data'][:8]} against {other['data'][:8]}"
    parts: list[tuple[str, str]] = []
    # The extractor; then how it is used.
    for pair in zip_longest(*(str(row["protocol"]).split("; ") for row in (one, other)), fillvalue=""):
        a, b = (each.split(", ") for each in pair)
        parts += zip(a, b, strict=True) if len(a) == len(b) else [(pair[0], pair[1])]
    return [
        *([images] if one["data"] != other["data"] else []),
        *(f"{a or 'nothing'} against {b or 'nothing'}" for a, b in parts if a != b),
    ]


def texts(frame: pd.DataFrame) -> tuple[list[str], list[list[str]]]:
    """Return header and rows to show: mean ± sd, a gap between sets; what all cells share is left out."""
    header = ["cell", "runs"] if frame["set"].nunique() == 1 else ["set", "cell", "runs"]
    header += [name for name in map(str, frame) if "." in name or name == "code" or SHOWN.fullmatch(name)]
    frame = _shortened(frame)
    rows: list[list[str]] = []
    for _, cells in frame.groupby("set"):
        rows += [[""] * len(header)] if rows else []
        for row in cells.to_dict("records"):
            plain = {n: "–" if pd.isna(row[n]) else str(row[n]) for n in header}
            rows.append([plus_minus(row[n], row[n + SD]) if n + SD in row else plain[n] for n in header])
    return header, rows


def _shortened(frame: pd.DataFrame) -> pd.DataFrame:
    """Take off the cells' names what all share."""
    shared = os.path.commonprefix(list(frame["cell"])).rpartition("-")[0] if len(frame) > 1 else ""
    return frame.assign(cell=frame["cell"].str.removeprefix(f"{shared}-"))


def _text(value: Any) -> str:
    return "null" if value is None else str(value).lower() if isinstance(value, bool) else str(value)


def plus_minus(mean: float, sd: float) -> str:
    """Write a mean with the decimals that two digits of its spread need; NaN: there is none."""
    if math.isnan(mean):
        return "–"
    if math.isnan(sd):
        return brief(mean)
    if sd == 0:
        return f"{brief(mean)} ± 0"
    decimals = min(6, max(0, 1 - math.floor(math.log10(sd))))
    return f"{mean:.{decimals}f} ± {sd:.{decimals}f}"


def _page(frame: pd.DataFrame, runs: Sequence[Run], remarks: Sequence[str], title: str) -> str:
    """Return an HTML file with the table and, for each cell, its images and the losses of all its runs."""
    header, rows = texts(frame)

    def line(cells: Sequence[str], tag: str) -> str:
        kinds = [' class="text"' if name in TEXTS else "" for name in header]
        return "".join(f"<{tag}{k}>{html.escape(c)}</{tag}>" for k, c in zip(kinds, cells, strict=True))

    by_name = {run.name: run for run in runs}
    limits = _limits([run.history[list(COLOURS)].to_numpy() for run in runs])
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


def _limits(losses: Sequence[np.ndarray]) -> tuple[float, float]:
    """Return one scale for all plots: all but each run's outermost hundredth, and what a runaway run does."""
    ends = [
        np.quantile(each[np.isfinite(each)], [0.005, 0.995]) for each in losses if np.isfinite(each).any()
    ]
    lows, highs = np.array(ends or [[0.0, 1.0]]).T
    high = highs[highs <= 10 * max(1.0, float(np.median(highs)))].max()
    return max(min(0.0, lows.min()), -float(high)), max(1.0, 1.05 * float(high))


def _figure(row: dict[Any, Any], runs: Sequence[Run], limits: tuple[float, float]) -> str:
    name = next((name for name in row if KID.fullmatch(name) and not pd.isna(row[name])), "")
    kid = plus_minus(row.get(name, math.nan), row.get(name + SD, math.nan))
    verdict = f"<br>{html.escape(row['verdict'])}" if row["verdict"] else ""
    marks = f'<br><span class="mark">{html.escape(row["marks"])}</span>' if row["marks"] else ""
    grid, losses = (base64.b64encode(png).decode() for png in (runs[0].grid, _losses(runs, limits)))
    return (
        f"<figure><figcaption><b>{html.escape(row['cell'])}</b><br>"
        f"KID {kid}; images of seed {runs[0].seed}{verdict}{marks}</figcaption>"
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
    axes.locator_params(axis="x", nbins=4)
    axes.legend(fontsize="small", frameon=False, loc="lower left", bbox_to_anchor=(0, 1), ncols=2)
    axes.spines[["top", "right"]].set_visible(False)
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png")
    return buffer.getvalue()
