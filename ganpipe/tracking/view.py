"""The prepared view of MLflow's page of runs: what a researcher looks at first, as a tag that its UI reads.

The format is internal to MLflow (3.17): a view that a later version cannot read leaves its own page.
"""

import base64
import json
import re
import time
import zlib
from collections import Counter
from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from mlflow import MlflowClient
    from mlflow.entities import Run

KEY = "ganpipe"
TAG, COLOUR = f"mlflow.sharedViewState.{KEY}", "mlflow.runColor"
# Told apart by people who see colours differently too (Okabe & Ito).
COLOURS = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#e69f00", "#56b4e9", "#000000", "#999933")
GRIDS = "samples/fixed_z"
SHOWN = 10  # runs that MLflow shows at first
MOST_PARAMS = 6  # columns of params that differ
LONGEST = 5000  # characters of a tag
SECTIONS = ("Generated images, the same z", "Scores", "Losses", "While training", "Speed")
# Collapsed: MLflow puts a chart of each other metric into the section of its prefix.
OTHERS = ("eval", "train", "perf", "samples", "final", "best")


def write(client: "MlflowClient", number: str) -> str:
    """Write the view of an experiment's runs and give each a colour of its own.

    Returns:
        What the address of the view has after the server's.
    """
    runs = client.search_runs([number], order_by=["start_time DESC"], max_results=1000)
    _colour(client, runs)
    shown = runs[:SHOWN]
    state = _state(shown, _last_step(client, shown))
    now = time.time_ns() // 1_000_000
    packed = base64.b64encode(zlib.compress(json.dumps(state, separators=(",", ":")).encode(), 9)).decode()
    view = {"name": "ganpipe", "createdAt": now, "updatedAt": now, "state": f"deflate;{packed}"}
    if len(text := json.dumps(view)) <= LONGEST:
        client.set_experiment_tag(number, TAG, text)
    where = f"workflowType=machine_learning&compareRunsMode=CHART&viewStateShareKey={KEY}"
    return f"/#/experiments/{number}/runs?{where}"


def _colour(client: "MlflowClient", runs: Sequence["Run"]) -> None:
    """Give a run without a colour the one that the fewest have; the others keep theirs."""
    count = Counter(dict.fromkeys(COLOURS, 0))
    count.update(run.data.tags[COLOUR] for run in runs if COLOUR in run.data.tags)
    for run in reversed(runs):
        if COLOUR not in run.data.tags:
            colour = min(COLOURS, key=lambda each: count[each])
            client.set_tag(run.info.run_id, COLOUR, colour)
            count[colour] += 1


def _last_step(client: "MlflowClient", runs: Iterable["Run"]) -> int:
    """Return the latest step of which the most runs have a grid."""
    steps: Counter[int] = Counter()
    name = re.compile(rf"images/{GRIDS.replace('/', '[~#]')}[+%]step[+%](\d+)[+%]")
    for run in runs:
        paths = (file.path for file in client.list_artifacts(run.info.run_id, "images"))
        steps.update({int(found[1]) for path in paths if (found := name.match(path))})
    return max(steps, key=lambda step: (steps[step], step), default=0)


def _state(runs: Sequence["Run"], step: int) -> dict[str, Any]:
    keys = sorted({key for run in runs for key in run.data.metrics})

    def held(*patterns: str) -> list[str]:
        return [key for pattern in patterns for key in keys if re.fullmatch(pattern, key)]

    kid, fd = held(r"eval/kid_[a-z0-9]+")[:1], held(r"eval/(fid|fd_[a-z0-9]+)")[:1]
    floors = [f"{key}_floor" for key in fd if f"{key}_floor" in keys]
    numbers = [*kid, *fd, *floors, *held("eval/recall", "eval/authenticity")]
    values = {name for run in runs for name in run.data.params}
    differing = [name for name in sorted(values) if len({run.data.params.get(name) for run in runs}) > 1]
    charts: list[dict[str, Any]] = [
        _chart("IMAGE", 0, imageKeys=[GRIDS], step=step, showRunParams=False),
        *(_chart("BAR", 1, key) for key in kid),
        *(_chart("BAR", 1, key, several=[*fd, *floors]) for key in fd),
        *(_chart("BAR", 1, key) for key in held("eval/recall", "eval/authenticity")),
        _line(2, "Both losses", ["train/d_loss", "train/g_loss"]),
        _line(2, "D's probability of real", ["train/d_real", "train/d_fake"]),
        *(_line(3, key, [key]) for key in held(r"train/(kid_light|spread|real_spread)")),
        _line(4, "images a second", ["perf/images_per_second"]),
    ]
    sections = [
        {"uuid": f"s{i}", "name": name, "display": True, "isReordered": True, "deleted": False}
        | {"isGenerated": False}
        for i, name in enumerate(SECTIONS)
        if any(chart["metricSectionId"] == f"s{i}" for chart in charts)
    ]
    sections[0] |= {"columns": 1, "cardHeight": 560}
    sections += [
        {"uuid": f"o{i}", "name": name, "display": False, "isReordered": True, "deleted": False}
        | {"isGenerated": False}
        for i, name in enumerate(OTHERS)
    ]
    return {
        "searchFilter": "",
        "orderByKey": f"metrics.`{kid[0]}`" if kid else "attributes.start_time",
        "orderByAsc": bool(kid),
        "startTime": "ALL",
        "lifecycleFilter": "Active",
        "datasetsFilter": [],
        "modelVersionFilter": "All Runs",
        "selectedColumns": [
            *(f"metrics.`{name}`" for name in numbers),
            *(f"params.`{name}`" for name in differing[:MOST_PARAMS]),
        ],
        "columnOrder": [],
        "columnWidths": {},
        "runsHiddenMode": "FIRST_10_RUNS",
        "compareRunCharts": charts,
        "compareRunSections": sections,
        "viewMaximized": False,
        "runListHidden": False,
        "isAccordionReordered": True,
        "useGroupedValuesInCharts": True,
        "hideEmptyCharts": True,
        "groupBy": None,
        "groupsExpanded": {},
        "globalLineChartConfig": {"xAxisKey": "step", "lineSmoothness": 0, "selectedXAxisMetricKey": ""},
        "chartsSearchFilter": "",
    }


def _chart(
    kind: str, section: int, key: str = "", several: Sequence[str] = (), title: str = "", **rest: Any
) -> dict[str, Any]:
    chart = {
        "uuid": f"{kind}{section}{key}{title}",
        "type": kind,
        "runsCountToCompare": SHOWN,
        "metricSectionId": f"s{section}",
        "deleted": False,
        "isGenerated": False,
    }
    if key:
        chart |= {"metricKey": key, "displayName": title or key.rpartition("/")[2]}
    if several:
        chart |= {"selectedMetricKeys": list(several)}
    return chart | rest


def _line(section: int, title: str, keys: Sequence[str]) -> dict[str, Any]:
    return _chart("LINE", section, keys[0], keys, title) | {
        "lineSmoothness": 0,
        "xAxisScaleType": "linear",
        "scaleType": "linear",
        "range": {},
        "xAxisKey": "step",
        "selectedXAxisMetricKey": "",
        "yAxisKey": "metric",
        "yAxisExpressions": [],
        "ignoreOutliers": False,
        "useGlobalXaxisKey": True,
        "useGlobalLineSmoothing": True,
    }
