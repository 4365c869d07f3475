"""Finished runs pooled into cells, cells into sets that can be compared, and the verdicts within each set.

A cell holds the runs that differ only in train.seed. Cells with the same training images, protocol of the
metrics and evaluate.rank_by form a set. In a set, the cell with the lowest mean of the number that evaluate
ranks by, over two seeds or more, is compared with every other cell, seed by seed (verdict.py). Between sets
there is no verdict: their metrics do not compare.
"""

import json
import math
import os
import re
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass, field, fields
from typing import Any

import pandas as pd

from ganpipe.evaluate.card import aimed_at, brief
from ganpipe.experiments.recipes import cell_name, value_text
from ganpipe.experiments.verdict import Verdict, verdict

SD = "_sd_over_seeds"
# The columns of the CSV that hold a verdict's numbers.
NUMBERS = tuple(field.name for field in fields(Verdict) if field.name != "word")
# Metrics that fit a screen; the CSV has all of them.
MAIN = re.compile(
    "(layout_mmd|layout_kid|kid|fd)_(lite0|lite2|inception|dinov2_vits14|pixels)"
    "|fid|precision|recall|coverage|c2st_auc|nn_ratio"
)


@dataclass(frozen=True)
class Run:
    """A finished experiment."""

    name: str  # DVC's
    seed: int  # train.seed
    values: dict[str, Any]  # dotted name → value of the other params, and `code`: the digest of the code
    metrics: dict[str, Any]  # the content of metrics.json
    data: str  # digest of the training images
    history: pd.DataFrame  # the content of history.csv, with columns nimg, d_loss and g_loss among others
    grid: bytes  # PNG file of generated images
    ended: str = "finished"  # how the training ended; otherwise such as "diverged at step 400"
    interventions: int = 0  # how often the training was rescued
    snapshots: pd.DataFrame = field(default_factory=pd.DataFrame)  # the content of snapshots.csv
    grids: dict[int, bytes] = field(default_factory=dict)  # epoch → PNG file of images of the fixed z

    @property
    def rank(self) -> float:
        """The metric that runs are ranked by; lower is better, NaN if there is none or training saw it."""
        value = self.metrics[self.metrics["ranked_by"]]
        return math.nan if value is None or self.saw_judge else float(value)

    @property
    def saw_judge(self) -> bool:
        """Whether the metric is of the network in whose features the drifting loss trained."""
        return aimed_at(float(self.values.get("train.drift_weight", 0)), str(self.metrics["ranked_by"]))

    @property
    def mark(self) -> str:
        """A warning that the training ended early or was rescued, or that no image has content; or empty."""
        times = "once" if self.interventions == 1 else f"{self.interventions} times"
        parts = [self.ended] * (self.ended != "finished") + [f"rescued {times}"] * (self.interventions > 0)
        parts += [f"images {flaw}"] if (flaw := self.metrics.get("degenerate")) else []
        parts += ["not ranked: trained in Lite0; evaluate with evaluate.extractor=lite2"] * self.saw_judge
        return f"seed {self.seed} {', '.join(parts)}" if parts else ""


def cell_table(runs: Sequence[Run]) -> pd.DataFrame:
    """Pool runs into cells and sets, and judge each set by the metric that it is ranked by.

    Returns:
        A row a cell, set by set, the best first. Columns: set, cell, runs, each param that differs, verdict,
        NUMBERS, marks of runs that ended badly, each metric with its sd, experiments, data, protocol and
        ranked_by.
    """
    sets: dict[tuple[str, str, str], dict[str, list[Run]]] = defaultdict(lambda: defaultdict(list))
    for run in sorted(runs, key=lambda run: run.seed):
        key = run.data, run.metrics["protocol"], run.metrics["ranked_by"]
        sets[key][json.dumps(run.values, sort_keys=True)].append(run)
    params = dict.fromkeys(name for run in runs for name in run.values)
    differing = [name for name in params if len({value_text(run.values.get(name)) for run in runs}) > 1]
    # Without texts, floors that are null, and each _sd, which is over subsets of images and not over seeds.
    metrics = pd.DataFrame([run.metrics for run in runs], [run.name for run in runs]).select_dtypes("number")
    metrics = metrics[[name for name in map(str, metrics) if name != "n" and not name.endswith("_sd")]]
    rows = []
    for number, ((data, protocol, ranked_by), cells) in enumerate(sets.items(), 1):
        for cell, judgement in _judged(list(cells.values())):
            row: dict[str, Any] = {"set": number, "cell": cell_name(cell[0].name), "runs": len(cell)}
            row |= {name: value_text(cell[0].values.get(name)) for name in differing} | judgement
            row["marks"] = "; ".join(filter(None, (run.mark for run in cell)))
            names = [run.name for run in cell]
            for name, numbers in metrics.loc[names].items():
                row |= {str(name): numbers.mean(), f"{name}{SD}": numbers.std()}
            row |= {"experiments": " ".join(names), "data": data, "protocol": protocol}
            row["ranked_by"] = ranked_by
            rows.append(row)
    return pd.DataFrame(rows)


def _judged(cells: list[list[Run]]) -> list[tuple[list[Run], dict[str, Any]]]:
    """Return a set's cells, the lowest mean first, each with its verdict and NUMBERS.

    Each is compared with the lowest of two seeds or more: one of a single seed would leave all undecided.
    """
    scored = [({run.seed: run.rank for run in cell}, cell) for cell in cells]
    name = words_of(cells[0][0].metrics["ranked_by"])
    scored.sort(key=lambda pair: pd.Series(pair[0]).fillna(math.inf).mean())
    several = (i for i, (ranks, _) in enumerate(scored) if sum(map(math.isfinite, ranks.values())) > 1)
    best = next(several, 0)
    others = [i for i in range(len(scored)) if i != best]
    verdicts = {i: verdict(scored[i][0], scored[best][0], len(others)) for i in others}
    words = {i: str(verdicts[i] or "no verdict: fewer than 2 seeds in common") for i in others}
    words[best] = f"lowest {name} of two seeds and more" if best else f"lowest {name}"
    if all(compared and compared.word == "worse" for compared in verdicts.values()):
        words[best] = "better than all others" if others else ""
    return [
        (cell, {"verdict": words[i]} | {name: getattr(verdicts.get(i), name, None) for name in NUMBERS})
        for i, (_, cell) in enumerate(scored)
    ]


def remarks_on(frame: pd.DataFrame) -> list[str]:
    """Return the sentences below a table of cells: floors, verdicts, and why sets are not compared."""
    remarks = []
    sets = frame.drop_duplicates("set").to_dict("records")
    for _, rows in frame.groupby(["data", "protocol"], sort=False):  # sets may share a floor
        first = rows.bfill().iloc[0].dropna()  # a number that the first of them lacks comes from another
        named = [name for name in map(str, frame) if MAIN.fullmatch(name) and f"{name}_floor" in first]
        scores = ", ".join(f"{name} {first[f'{name}_floor']:.3g}" for name in named)
        numbers = [str(number) for number in rows["set"].unique()]
        where = f" in set{'s' * (len(numbers) > 1)} {' and '.join(numbers)}" if len(sets) > 1 else ""
        remarks += [f"Floor, the score of as many real images{where}: {scores}."] if scores else []
    for row in _without_shared_prefix(frame).to_dict("records"):
        words = "; ".join(filter(None, (row["verdict"], row["marks"])))
        remarks += [f"{row['cell']}: {words}."] if words else []
    if frame["verdict"].any():
        name = " or ".join(map(words_of, frame["ranked_by"].unique()))
        remarks.append(
            f"Verdicts are against the lowest {name} of two seeds and more: the difference in it, lower is "
            "better, and its 95 % interval over common seeds, for all comparisons of the set together."
        )
    drift = pd.to_numeric(frame.get("train.drift_weight", pd.Series(dtype=float)), errors="coerce")
    if (drift > 0).nunique() > 1:
        remarks.append("Features of ImageNet favour train.drift_weight: look at the images (docs/beyond.md).")
    if len(sets) > 1:
        remarks.append(f"No verdict between sets: {_differences(sets)}.")
    return remarks


def _differences(sets: list[dict[Any, Any]]) -> str:
    """Name what makes the metrics of sets incomparable: training images, or parts of the protocol."""
    having: dict[str, list[str]] = defaultdict(list)  # fact → the numbers of its sets
    for row in sets:
        text = f"training images {row['data'][:8]}; {row['protocol']}; ranked by {words_of(row['ranked_by'])}"
        for fact in re.split("[;,] ", text):
            having[fact].append(str(row["set"]))
    differing = {fact: numbers for fact, numbers in having.items() if len(numbers) < len(sets)}
    return "; ".join(f"{fact} (in {', '.join(numbers)})" for fact, numbers in differing.items())


def words_of(metric: str) -> str:
    """Name a metric by which cells are ranked."""
    words = metric.split("_")
    return f"layout {words[1].upper()}" if words[0] == "layout" else words[0].upper()


def text_table(frame: pd.DataFrame) -> tuple[list[str], list[list[str]]]:
    """Return header and rows as text: mean ± sd, an empty row between sets, without what all cells share."""
    header = ["cell", "runs"] if frame["set"].nunique() == 1 else ["set", "cell", "runs"]
    header += [name for name in map(str, frame) if "." in name or name == "code" or MAIN.fullmatch(name)]
    rows: list[list[str]] = []
    for _, cells in _without_shared_prefix(frame).groupby("set"):
        rows += [[""] * len(header)] if rows else []
        for row in cells.to_dict("records"):
            plain = {name: "–" if pd.isna(row[name]) else str(row[name]) for name in header}
            means = {name: plus_minus(row[name], row[name + SD]) for name in header if name + SD in row}
            rows.append(list((plain | means).values()))
    return header, rows


def _without_shared_prefix(frame: pd.DataFrame) -> pd.DataFrame:
    """Remove the words that the names of all cells begin with."""
    shared = os.path.commonprefix(list(frame["cell"])).rpartition("-")[0] if len(frame) > 1 else ""
    return frame.assign(cell=frame["cell"].str.removeprefix(f"{shared}-"))


def plus_minus(mean: float, sd: float) -> str:
    """Return "mean ± sd" with two digits of the sd; "–" if the mean, the mean alone if the sd is NaN."""
    if math.isnan(mean) or math.isnan(sd):
        return "–" if math.isnan(mean) else brief(mean)
    if sd == 0:
        return f"{brief(mean)} ± 0"
    decimals = min(6, max(0, 1 - math.floor(math.log10(sd))))
    return f"{mean:.{decimals}f} ± {sd:.{decimals}f}"
